"""The hypernetwork ρ: a noisy mean embedding and its noise level → LoRA weights for every site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.lora import LoraSite, Weights

LOG_NOISE_CENTRE, LOG_NOISE_SCALE = math.log(0.01), 2.0
TRUNK = ("inlet.", "blocks.", "norm.", "outlet.")  # what lies before the heads
DIRECT_STD = 0.55  # of a coordinate of √k · mean over public tasks, about


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """Shape of the hypernetwork.

    Attributes:
        embed_dim: k.
        rank: r of the emitted adapters.
        basis: size of each site's learned output basis U (at most its out_features).
        width, depth: of the residual trunk.
        bottleneck: numbers of the trunk that the heads read.
        direct: whether the heads read the mean itself beside them, each coordinate times what its
            noise leaves of it (Wiener's gain 1 / (1 + noise variance / variance), learned).
        blind: takes every noise level for the same one, to see what knowing it is worth.
    """

    embed_dim: int
    rank: int = 8
    basis: int = 32
    width: int = 512
    depth: int = 3
    bottleneck: int = 192
    direct: bool = False
    blind: bool = False

    @property
    def code_size(self) -> int:
        """Numbers that the heads read."""
        return self.bottleneck + (self.embed_dim if self.direct else 0)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.silu(self.up(self.norm(x))))  # type: ignore[no-any-return]


class Hypernetwork(nn.Module):
    """lora_A = A_s, shared by all tasks; lora_B = U_s M_s(z), with only the small M_s emitted.

    A_s and U_s are learned on public tasks (cf. the bases of LiDB in HyperDreamBooth,
    arXiv 2307.06949, there random). The heads start at zero, so ΔW starts at zero.
    """

    def __init__(self, config: HypernetworkConfig, sites: list[LoraSite]) -> None:
        super().__init__()
        self.config, self.sites = config, sites
        self.inlet = nn.Linear(config.embed_dim + 2, config.width)
        self.blocks = nn.Sequential(*[_Block(config.width) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width)
        self.outlet = nn.Linear(config.width, config.bottleneck)
        self.a = nn.ParameterList()
        self.u = nn.ParameterList()
        self.sizes: list[int] = []
        for site in sites:
            fan_in = math.prod(site.a_shape)
            self.a.append(nn.Parameter(torch.randn(config.rank, *site.a_shape) / math.sqrt(fan_in)))
            basis = min(config.basis, site.out_features)
            self.u.append(
                nn.Parameter(torch.nn.init.orthogonal_(torch.empty(site.out_features, basis)))
            )
            self.sizes.append(basis * config.rank)
        if config.direct:
            self.log_std = nn.Parameter(torch.full((config.embed_dim,), math.log(DIRECT_STD)))
            self.slope = nn.Parameter(torch.full((config.embed_dim,), 2.0))
        self.head = nn.Linear(config.code_size, sum(self.sizes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def code(self, mean: Tensor, noise_std: Tensor) -> Tensor:
        """What the heads read: [G, k], [G] → [G, code_size]."""
        if self.config.blind:
            noise_std = torch.full_like(noise_std, math.exp(LOG_NOISE_CENTRE))
        level = (noise_std.clamp(min=1e-6).log() - LOG_NOISE_CENTRE) / LOG_NOISE_SCALE  # [G]
        norm = mean.norm(dim=1, keepdim=True)
        scaled = mean * math.sqrt(self.config.embed_dim)
        x = self.inlet(torch.cat([scaled, norm, level[:, None]], 1))
        # A fixed scale: a code that could shrink would, before the heads have learned to read it.
        of_trunk = functional.layer_norm(
            self.outlet(self.norm(self.blocks(x))), (self.config.bottleneck,)
        )
        if not self.config.direct:
            return of_trunk
        log_noise = noise_std.clamp(min=1e-6).log() + 0.5 * math.log(self.config.embed_dim)
        gain = torch.sigmoid(self.slope * (self.log_std - log_noise[:, None]))  # [G, k]
        return torch.cat([of_trunk, scaled / DIRECT_STD * gain], 1)

    def forward(self, mean: Tensor, noise_std: Tensor) -> Weights:
        """Emits G adapters.

        Args:
            mean: float32 [G, k], noisy mean of clipped embeddings.
            noise_std: float32 [G], std per coordinate of the noise in `mean`.

        Returns:
            Site name → (A [1, r, in, …] shared, B [G, out, r]).
        """
        code = self.code(mean, noise_std) / math.sqrt(self.config.code_size)
        cores = torch.split(self.head(code), self.sizes, dim=1)
        weights: Weights = {}
        for site, a, u, core in zip(self.sites, self.a, self.u, cores, strict=True):
            m = core.view(len(mean), -1, self.config.rank)  # [G, basis, r]
            weights[site.name] = (a[None], torch.matmul(u, m))
        return weights

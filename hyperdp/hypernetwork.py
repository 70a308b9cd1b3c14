"""The hypernetwork ρ: a noisy mean embedding and its noise level → LoRA weights for every site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.errors import UsageError
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
        descent: for means of `GradientEncoder`, in which each number is of the core that it stands
            for: the cores are the mean itself, each number times Wiener's gain and a learned step,
            beside a learned map of this rank and what the heads make of the trunk; A and U stay as
            they are set. 0 for other encoders.
    """

    embed_dim: int
    rank: int = 8
    basis: int = 32
    width: int = 512
    depth: int = 3
    bottleneck: int = 192
    direct: bool = False
    blind: bool = False
    descent: int = 0

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
        if config.direct or config.descent:
            self.log_std = nn.Parameter(torch.full((config.embed_dim,), math.log(DIRECT_STD)))
            self.slope = nn.Parameter(torch.full((config.embed_dim,), 2.0))
        self.head = nn.Linear(config.code_size, sum(self.sizes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if config.descent:
            self._check_descent()
            self.log_step = nn.Parameter(torch.zeros(config.embed_dim))
            self.inward = nn.Linear(config.embed_dim, config.descent, bias=False)
            self.outward = nn.Linear(config.descent, config.embed_dim, bias=False)
            nn.init.zeros_(self.outward.weight)
            for factor in (*self.a, *self.u):
                factor.requires_grad_(False)

    def _check_descent(self) -> None:
        if self.config.embed_dim != sum(self.sizes) or self.config.direct:
            raise UsageError(
                expected=f"embed_dim = {sum(self.sizes)}, a number for each core, and direct off",
                found=f"embed_dim = {self.config.embed_dim}, direct = {self.config.direct}",
                todo="Correct the recipe, or leave `descent` out.",
            )

    def code(self, mean: Tensor, noise_std: Tensor) -> Tensor:
        """What the heads read: [G, k], [G] → [G, code_size]."""
        if self.config.blind:
            noise_std = torch.full_like(noise_std, math.exp(LOG_NOISE_CENTRE))
        level = (noise_std.clamp(min=1e-6).log() - LOG_NOISE_CENTRE) / LOG_NOISE_SCALE  # [G]
        if self.config.descent:
            mean = mean * self.gain(noise_std)  # of thousands of numbers, most are noise
        norm = mean.norm(dim=1, keepdim=True)
        scaled = mean * math.sqrt(self.config.embed_dim)
        x = self.inlet(torch.cat([scaled, norm, level[:, None]], 1))
        # A fixed scale: a code that could shrink would, before the heads have learned to read it.
        of_trunk = functional.layer_norm(
            self.outlet(self.norm(self.blocks(x))), (self.config.bottleneck,)
        )
        if not self.config.direct:
            return of_trunk
        return torch.cat([of_trunk, scaled / DIRECT_STD * self.gain(noise_std)], 1)

    def gain(self, noise_std: Tensor) -> Tensor:
        """What noise of a level, [G], leaves of each coordinate of the mean, [G, k] in (0, 1)."""
        log_noise = noise_std.clamp(min=1e-6).log() + 0.5 * math.log(self.config.embed_dim)
        return torch.sigmoid(self.slope * (self.log_std - log_noise[:, None]))

    def forward(self, mean: Tensor, noise_std: Tensor) -> Weights:
        """Emits G adapters.

        Args:
            mean: float32 [G, k], noisy mean of clipped embeddings.
            noise_std: float32 [G], std per coordinate of the noise in `mean`.

        Returns:
            Site name → (A [1, r, in, …] shared, B [G, out, r]).
        """
        cores = self.head(self.code(mean, noise_std) / math.sqrt(self.config.code_size))
        if self.config.descent:
            shrunk = mean * self.gain(noise_std)
            cores = cores + self.log_step.exp() * (shrunk + self.outward(self.inward(shrunk)))
        return {site.name: self.site_weights(i, cores) for i, site in enumerate(self.sites)}

    def site_weights(self, index: int, cores: Tensor) -> tuple[Tensor, Tensor]:
        """A [1, r, in, …] and B = U M [G, out, r] of one site.

        Args:
            index: of the site.
            cores: [G, k'], the numbers M of all sites, in their order.
        """
        core = torch.split(cores, self.sizes, dim=1)[index]
        m = core.view(len(cores), -1, self.config.rank)  # [G, basis, r]
        return self.a[index][None], torch.matmul(self.u[index], m)

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
DESCENT_SCALE = 16.0  # of a direction of the mean, so that public tasks' are about 1
SCALES = tuple(0.05 * 30 ** (i / 19) for i in range(20))  # norms of tasks' means, 0.05 to 1.5
FURTHEST = 2.0  # log of how much longer than usual a task's step can be at a site
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
        loudness: with `descent`, the mean is first replaced by its posterior mean under a scale
            mixture of Gaussians in the shape of public tasks' means (see `shrink`), the trunk reads
            the directions of the map, and says how long the step is at each site.
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
    loudness: bool = False

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
        read = config.descent if config.loudness else config.embed_dim  # by the trunk
        self.inlet = nn.Linear(read + 2, config.width)
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

        if config.loudness:
            if not config.descent:
                raise UsageError(
                    expected="loudness together with descent",
                    found="descent = 0",
                    todo="Correct the recipe, or leave `loudness` out.",
                )
            self.pace = nn.Linear(config.bottleneck, len(sites))
            nn.init.zeros_(self.pace.weight)
            nn.init.zeros_(self.pace.bias)
            self.log_spread = nn.Parameter(torch.zeros(config.descent))
            self.inward.weight.requires_grad_(False)  # directions at right angles, of length 1

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
            mean = self.shrink(mean, noise_std)  # of thousands of numbers, most are noise
        norm = mean.norm(dim=1, keepdim=True)
        if self.config.loudness:
            scaled = self.inward(mean) * DESCENT_SCALE
        else:
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

    def shrink(self, mean: Tensor, noise_std: Tensor) -> Tensor:
        """The noisy mean [G, k] with as much of each number as `gain` leaves; noise_std [G].

        With `loudness` it is the posterior mean where a task's mean is s · m: m Gaussian, with a
        variance of its own along each direction of the map and in each number of what is left,
        both learned; s is out of `SCALES`, each as likely (a Gaussian scale mixture: Portilla et
        al. 2003, doi 10.1109/TIP.2003.818640, with one s for all numbers). Thousands of numbers say
        what s is, so a quiet task is shrunk as such, and one that is loud in few directions too.
        """
        if not self.config.loudness:
            return mean * self.gain(noise_std)
        noise = noise_std.clamp(min=1e-6).square()[:, None, None]  # [G, 1, 1]
        scales = torch.tensor(SCALES, device=mean.device).square()[:, None]  # [S, 1]
        directions = self.inward.weight  # [q, k]
        along = mean @ directions.T  # [G, q]
        rest = mean - along @ directions  # [G, k]
        kept, likely = [], torch.zeros((), device=mean.device)
        for numbers, log_std in ((along, self.log_spread), (rest, self.log_std)):
            wanted = scales * (2 * log_std).exp() / self.config.embed_dim  # [S, q or k]
            seen = wanted + noise  # [G, S, q or k]
            likely = likely - 0.5 * (seen.log() + numbers.square()[:, None] / seen).sum(2)
            kept.append(wanted / seen)
        weights = torch.softmax(likely, 1)[:, :, None]  # [G, S, 1]
        of_along, of_rest = ((weights * part).sum(1) for part in kept)
        return (along * of_along) @ directions + rest * of_rest

    def forward(self, mean: Tensor, noise_std: Tensor) -> Weights:
        """Emits G adapters.

        Args:
            mean: float32 [G, k], noisy mean of clipped embeddings.
            noise_std: float32 [G], std per coordinate of the noise in `mean`.

        Returns:
            Site name → (A [1, r, in, …] shared, B [G, out, r]).
        """
        code = self.code(mean, noise_std) / math.sqrt(self.config.code_size)
        cores = self.head(code)
        if self.config.descent:
            shrunk = self.shrink(mean, noise_std)
            step = self.log_step.exp()
            if self.config.loudness:
                paces = (FURTHEST * torch.tanh(self.pace(code))).exp()  # [G, sites]
                sizes = torch.tensor(self.sizes, device=paces.device)
                step = step * paces.repeat_interleave(sizes, 1)
            cores = cores + step * (shrunk + self.outward(self.inward(shrunk)))
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

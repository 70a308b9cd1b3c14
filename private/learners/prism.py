"""PRISM: private steps on Z = lora_B lora_A itself, indifferent to how Z is split into factors.

Wang & Zhang 2026, arXiv 2606.00944; `fixed_rank` holds the geometry and its symbols. Per-example
gradients are lifted to tangents of the rank-r manifold, clipped by the norm of what they do to Z,
and the noise is isotropic among tangents: r(m + n - r) directions a site, where noise on the
factors reaches all m n through the bilinear term and grows without bound as the factors drift
apart in size.

What differs from the paper and from its released code, and why:

- The noise of equation 19 leaves A'dA of the sum without noise (see `FixedRank.noise`). Here the
  noise and the lifts are of one gauge, and `update` takes one representative of the noisy dZ
  before anything else, so that moments are functions of what was released.
- The lift (14) is not horizontal, as appendix A.1 says it is, and equation 39 is transposed; the
  horizontal lift is the released code's. A second one before the retraction, as in that code,
  changes nothing: the retraction sees dZ only.
- tr(M⁻¹) and tr(N⁻¹) are not invariant under (A R, B R'⁻¹), so the adaptive step of an unbalanced
  pair depends on the split. `start` balances, every retraction keeps it so, and then the whole run
  depends on Z alone.
- The mean is over qN, not over the batch that happened to be drawn; the loss is one example's own.
  Both are the loop's affair (`step_rule`).
- Debiasing subtracts the second moment that the noise has in the gauge used, at the step at which
  it entered, not the present step's from the whole average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.lora import Weights
from hyperdp.private.learners.fixed_rank import FixedRank, Pair, balance, retract, singular_values
from hyperdp.private.learners.normal import Normal
from hyperdp.private.learners.step_rule import PerExample, StepRule

_MOMENTS = ("mean_a", "mean_b", "second_a", "second_b")


@dataclass(frozen=True, kw_only=True)
class PrismOptions:
    """What can be varied without touching the promise: all of it is post-processing.

    Attributes:
        adaptive: precondition (equations 24-26); otherwise the step is the noisy tangent itself.
        betas: decay of first and second moment, both corrected for their start at zero.
        gauge: the pair that stands for the noisy dZ: `horizontal`, or the paper's `lift`.
        floor: λ of equation 26: `trace`, (σC/b)² tr(N⁻¹)/r; `scalar`, (σC/b)²; or `none`.
        floor_scale: multiplies λ.
        damping: `ridge`, V + λ I as the paper says; `clamp`, eigenvalues below λ are raised to it.
        condition_cap: eigenvalues below the largest over this are raised to it; 0 for no cap.
        debias: take the noise's second moment out of V.
        epsilon: added to the eigenvalues of V, for runs without noise.
        rank_floor: smallest singular value of Z that a start may have and that a retraction leaves,
            as a part of the largest.
    """

    adaptive: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    gauge: Literal["horizontal", "lift"] = "horizontal"
    floor: Literal["trace", "scalar", "none"] = "trace"
    floor_scale: float = 1.0
    damping: Literal["ridge", "clamp"] = "ridge"
    condition_cap: float = 0.0
    debias: bool = False
    epsilon: float = 1e-16
    rank_floor: float = 1e-6

    def __post_init__(self) -> None:
        legal = {
            "betas in [0, 1)": all(0 <= beta < 1 for beta in self.betas),
            "floor_scale >= 0": self.floor_scale >= 0,
            "condition_cap = 0 or > 1": self.condition_cap == 0 or self.condition_cap > 1,
            "epsilon > 0": self.epsilon > 0,
            "0 < rank_floor < 1": 0 < self.rank_floor < 1,
            "gauge 'horizontal' or 'lift'": self.gauge in ("horizontal", "lift"),
            "floor 'trace', 'scalar' or 'none'": self.floor in ("trace", "scalar", "none"),
            "damping 'ridge' or 'clamp'": self.damping in ("ridge", "clamp"),
        }
        broken = [rule for rule, kept in legal.items() if not kept]
        if broken:
            raise UsageError(expected=", ".join(broken), found=str(self), todo="Mend the options.")

    @classmethod
    def released(cls) -> PrismOptions:
        """What the released trainer runs (osu-srml/PRISM-DP-LoRA, commit 51cddad)."""
        return cls(
            floor="scalar", floor_scale=0.5, damping="clamp", condition_cap=1e4, epsilon=1e-8
        )


class Prism(StepRule):
    """One PRISM step; see `StepRule`.

    Args:
        options: see `PrismOptions`.
    """

    name = "prism"

    def __init__(self, options: PrismOptions | None = None) -> None:
        self.options = options or PrismOptions()
        self._step = 0
        self._moments: dict[str, dict[str, Tensor]] = {}
        self._seen: Weights = {}
        self._points: dict[str, FixedRank] = {}

    def start(self, weights: Weights) -> Weights:
        """The same adapter, balanced: lora_B'lora_B = lora_A lora_A'.

        Raises:
            UsageError: a site whose lora_B lora_A has rank below r, where the geometry is singular;
                the standard start of LoRA is one.
        """
        started = {}
        for name, (lora_a, lora_b) in weights.items():
            a, b = _factors(lora_a, lora_b)
            rank = a.shape[1]
            if rank > min(len(a), len(b)):
                raise UsageError(
                    expected=f"rank at most {min(len(a), len(b))} at {name!r}",
                    found=f"rank {rank}",
                    todo="Choose a smaller rank or leave the site out.",
                )
            finite = bool(a.isfinite().all() and b.isfinite().all())
            s = singular_values(a, b) if finite else a.new_zeros(rank)
            full = int((s > self.options.rank_floor * s[0]).sum())
            if full < rank:
                raise UsageError(
                    expected=f"an adapter of full rank {rank} at every site, with finite values",
                    found=f"rank {full} at {name!r}" if finite else f"other values at {name!r}",
                    todo="PRISM cannot begin at LoRA's standard start, whose lora_B is zero. Start "
                    "from the base model's own leading singular vectors (`--start spectral`), from "
                    "what the bundle makes of the public mean (`--start public-mean`), or from a "
                    "release (`--init RELEASE`).",
                )
            started[name] = _unflatten(*balance(a, b), lora_a, lora_b)
        self._step, self._moments = 0, {}
        return started

    def contributions(self, weights: Weights, grads: PerExample) -> PerExample:
        """The lift of each example's gradient (equation 14), in the shapes of the gradients."""
        lifted = {}
        for name, (g_lora_a, g_lora_b) in grads.items():
            point = self._at(weights)[name]
            g_b = g_lora_a.flatten(2).double().transpose(1, 2)  # [B, n, r]
            d_a, d_b = point.lift(g_lora_b.double(), g_b)
            lifted[name] = (
                d_b.transpose(1, 2).reshape(g_lora_a.shape).to(g_lora_a.dtype),
                d_a.to(g_lora_b.dtype),
            )
        return lifted

    def norms(self, weights: Weights, contributions: PerExample) -> Tensor:
        """The norm of what a contribution does to Z, over all sites (equation 15); float64 [B]."""
        squares = [
            self._at(weights)[name].norm_squared(_pair(pair))
            for name, pair in contributions.items()
        ]
        return torch.stack(squares).sum(0).sqrt()

    def noise(self, weights: Weights, std: float, normal: Normal) -> Weights:
        """Noise of std `std` in every tangent direction of Z (equation 19, of the lift's gauge)."""
        drawn = {}
        for name, (lora_a, lora_b) in weights.items():
            d_a, d_b = self._at(weights)[name].noise(normal)
            drawn[name] = _unflatten(d_a * std, d_b * std, lora_a, lora_b, dtype=torch.float64)
        return drawn

    def update(self, weights: Weights, mean: Weights, noise_std: float, lr: float) -> Weights:
        """A preconditioned step along the noisy tangent and back to rank r (algorithm 1)."""
        self._step += 1
        points, options = self._at(weights), self.options
        updated = {}
        for name, (lora_a, lora_b) in weights.items():
            point = points[name]
            choose = point.horizontal if options.gauge == "horizontal" else point.canonical
            d_a, d_b = choose(_factors(*mean[name]))
            if options.adaptive:
                d_a, d_b = self._precondition(name, point, (d_a, d_b), noise_std)
            new = retract(point.a, point.b, -lr * d_a, -lr * d_b, rank_floor=options.rank_floor)
            updated[name] = _unflatten(*new, lora_a, lora_b)
        return updated

    def state_dict(self) -> dict[str, Tensor]:
        """Moments of every site, float64, and the number of steps."""
        state = {
            f"{name}:{which}": value
            for name, moments in self._moments.items()
            for which, value in moments.items()
        }
        return {"step": torch.tensor(self._step), **state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, after `start`.

        Raises:
            UsageError: the state is another rule's.
        """
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, colon, which = key.rpartition(":")
            if colon:
                moments.setdefault(name, {})[which] = value.clone()
        if "step" not in state or any(set(m) != set(_MOMENTS) for m in moments.values()):
            raise UsageError(
                expected=f"the state of {self.name}",
                found=f"entries {', '.join(sorted(state)[:3]) or 'none'}",
                todo="Resume a run with the method it was begun with.",
            )
        self._step, self._moments = int(state["step"]), moments

    def _precondition(self, name: str, point: FixedRank, pair: Pair, noise_std: float) -> Pair:
        """Equations 24-26: moments of the noisy pair and U = m (V + λ I)^{-1/2} of each factor."""
        options = self.options
        d_a, d_b = pair
        r = d_a.shape[1]
        kept = self._moments.setdefault(
            name,
            {
                "mean_a": torch.zeros_like(d_a),
                "mean_b": torch.zeros_like(d_b),
                "second_a": d_a.new_zeros(r, r),
                "second_b": d_b.new_zeros(r, r),
            },
        )
        expected = point.noise_moments(horizontal=options.gauge == "horizontal")
        floors = {
            "trace": (float(point.nu.reciprocal().mean()), float(point.mu.reciprocal().mean())),
            "scalar": (1.0, 1.0),
            "none": (0.0, 0.0),
        }[options.floor]
        beta_1, beta_2 = options.betas
        steps = []
        for factor, d, moment, floor in zip("ab", pair, expected, floors, strict=True):
            square = d.T @ d / len(d)
            if options.debias:
                square = square - noise_std**2 * moment / len(d)
            mean = beta_1 * kept[f"mean_{factor}"] + (1 - beta_1) * d
            second = beta_2 * kept[f"second_{factor}"] + (1 - beta_2) * square
            kept[f"mean_{factor}"], kept[f"second_{factor}"] = mean, second
            lam = options.floor_scale * noise_std**2 * floor
            root = self._inverse_root(second / (1 - beta_2**self._step), lam)
            steps.append(mean / (1 - beta_1**self._step) @ root)
        return steps[0], steps[1]

    def _inverse_root(self, second: Tensor, lam: float) -> Tensor:
        """(V + λ I)^{-1/2} with the damping of the options, [r, r]."""
        options = self.options
        values, vectors = torch.linalg.eigh((second + second.T) / 2)
        values = values.clamp(min=0)  # rounding and debiasing may leave negative ones
        values = values + lam if options.damping == "ridge" else values.clamp(min=lam)
        values = values + options.epsilon
        if options.condition_cap:
            values = values.clamp(min=float(values.max()) / options.condition_cap)
        root: Tensor = vectors * values.rsqrt() @ vectors.T
        return root

    def _at(self, weights: Weights) -> dict[str, FixedRank]:
        """The geometry at `weights`, worked out once a step."""
        if self._seen.keys() != weights.keys() or any(
            own is not given
            for name, pair in weights.items()
            for own, given in zip(self._seen[name], pair, strict=True)
        ):
            self._points = {
                name: FixedRank.at(*_factors(lora_a, lora_b))
                for name, (lora_a, lora_b) in weights.items()
            }
            self._seen = dict(weights)
        return self._points


def _factors(lora_a: Tensor, lora_b: Tensor) -> Pair:
    """A [m, r] and B [n, r] of one adapter's site, float64."""
    return lora_b[0].double(), lora_a[0].flatten(1).T.double()


def _pair(contribution: tuple[Tensor, Tensor]) -> Pair:
    """Factors dA [B, m, r] and dB [B, n, r] of a contribution [B, r, in, …], [B, out, r]."""
    d_lora_a, d_lora_b = contribution
    return d_lora_b, d_lora_a.flatten(2).transpose(1, 2)


def _unflatten(
    a: Tensor, b: Tensor, lora_a: Tensor, lora_b: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A and B in the shapes of lora_A and lora_B, and in their dtype unless one is given."""
    dtype = dtype or lora_a.dtype
    return (
        b.T.reshape(lora_a.shape).to(dtype).contiguous(),
        a.reshape(lora_b.shape).to(dtype).contiguous(),
    )

"""How much of a step's noise reaches Z = lora_B lora_A, as Z is split into factors differently.

(lora_B, lora_A) and (c lora_B, lora_A / c) are the same adapter. DP-SGD's noise of std t on both
factors reaches Z with mean energy t²(m‖lora_A‖² + n‖lora_B‖²) + m n r t⁴, which has no bound as c
goes to 0 or infinity; FFA-LoRA's, on lora_B alone, with t² m‖lora_A‖²; PRISM's with
t² r(m + n - r), whatever c is (Wang & Zhang 2026, arXiv 2606.00944). Norms are Frobenius.
The units differ: t is std per clip norm of what the method itself clips. FFA-LoRA's noise falls as
c grows because a clipped gradient of lora_B then moves Z less too.

    python -m hyperdp.eval.gauge_noise     rows: eval/results/research, figure: docs/images
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.eval.results import RESULTS, Row, append_rows, peak_rss_mb, provenance
from hyperdp.private.learners.fixed_rank import FixedRank, balance
from hyperdp.private.learners.normal import SystemNormal

M, N, R, STD = 64, 48, 4, 0.01
GAUGES = tuple(10.0 ** (power / 2) for power in range(-6, 7))
METHODS = {
    "dpsgd": ("DP-SGD on both factors", "#c0392b"),
    "ffa": ("FFA-LoRA", "#7f8c8d"),
    "prism": ("PRISM", "#1f6f54"),
}
_METRIC = "noise_rms@c="


def factors(gauge: float) -> tuple[Tensor, Tensor]:
    """A random adapter, balanced and then split as (c A, B / c): float64 [m, r] and [n, r]."""
    rng = torch.Generator().manual_seed(0)
    a, b = balance(
        torch.randn(M, R, generator=rng, dtype=torch.float64) / math.sqrt(M),
        torch.randn(N, R, generator=rng, dtype=torch.float64) / math.sqrt(N),
    )
    return gauge * a, b / gauge


def closed_form(method: str, gauge: float) -> float:
    """Root mean square of the noise on Z, Frobenius, by the formulas above."""
    a, b = factors(gauge)
    a2, b2 = float(a.square().sum()), float(b.square().sum())
    energy = {
        "dpsgd": STD**2 * (M * b2 + N * a2) + M * N * R * STD**4,
        "ffa": STD**2 * M * b2,
        "prism": STD**2 * R * (M + N - R),
    }
    return math.sqrt(energy[method])


def drawn(method: str, gauge: float, draws: int) -> float:
    """The same by drawing the noise of one step `draws` times."""
    a, b = factors(gauge)
    point, normal, energy = FixedRank.at(a, b), SystemNormal(), 0.0
    for _ in range(draws):
        if method == "prism":
            d_a, d_b = (STD * part for part in point.noise(normal))
            on_z = d_a @ b.T + a @ d_b.T
        else:
            d_a = STD * normal(M, R)
            d_b = STD * normal(N, R) if method == "dpsgd" else torch.zeros_like(b)
            on_z = (a + d_a) @ (b + d_b).T - a @ b.T
        energy += float(on_z.square().sum()) / draws
    return math.sqrt(energy)


def measure(*, draws: int = 400) -> list[Row]:
    """Drawn and closed-form noise of each method at each gauge, as rows.

    Args:
        draws: of the noise, for each method and gauge.
    """
    origin = provenance() | {"command": "python -m hyperdp.eval.gauge_noise"}
    rows = []
    for method in METHODS:
        for gauge in GAUGES:
            begun = time.perf_counter()
            values = {method: drawn(method, gauge, draws)}
            values[f"{method}_closed_form"] = closed_form(method, gauge)
            seconds = round(time.perf_counter() - begun, 3)
            rows += [
                Row(
                    bench="gauge-noise", base="none", private_set="none", method=name, n=None,
                    epsilon=None, delta=None, seed=0, metric=f"{_METRIC}{gauge:.4g}", value=value,
                    seconds=seconds, peak_rss_mb=peak_rss_mb(), **origin,
                )
                for name, value in values.items()
            ]  # fmt: skip
    return rows


def draw_figure(rows: list[Row], path: Path) -> None:
    """Noise on Z over the gauge c: points drawn, lines by the closed form.

    Args:
        rows: as `measure` gives them.
        path: an .svg or .png.

    Raises:
        UsageError: a method is missing from the rows.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.metric.startswith(_METRIC):
            point = (float(row.metric.removeprefix(_METRIC)), row.value)
            curves.setdefault(row.method, []).append(point)
    if missing := [m for m in METHODS if not {m, f"{m}_closed_form"} <= curves.keys()]:
        raise UsageError(
            expected=f"rows of {', '.join(METHODS)}, drawn and in closed form",
            found=f"none of {', '.join(missing)}",
            todo="Make them with `python -m hyperdp.eval.gauge_noise`.",
        )
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for method, (label, colour) in METHODS.items():
        for name, style in ((f"{method}_closed_form", "-"), (method, "o")):
            x, y = zip(*sorted(curves[name]), strict=True)
            shown = label if name == method else None
            axes.plot(x, y, style, color=colour, linewidth=1.5, markersize=4, label=shown)
    axes.set(xscale="log", yscale="log", xlabel="c, in (c lora_B, lora_A / c)")
    axes.set_ylabel("noise on Z, root mean square")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    nothing = dict.fromkeys(("Date", "Creator")) if path.suffix == ".svg" else None
    with mpl.rc_context({"svg.hashsalt": "hyperdp", "svg.fonttype": "none"}):
        figure.savefig(path, metadata=nothing)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = RESULTS / "research" / "gauge-noise.jsonl"
    found = measure()
    target.unlink(missing_ok=True)
    append_rows(target, found)
    draw_figure(found, Path(__file__).resolve().parent.parent / "docs/images/gauge-noise.svg")

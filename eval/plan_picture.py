"""The privacy–utility curve that `hyperdp plan` draws, and the tasks that it goes by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hyperdp.images import to_uint8
from hyperdp.plan import INTERVAL, Plan

INK, BAND, MARK, CONTROL = "#1f2937", "#9db7e8", "#2456b8", "#b45309"


def draw_plan(plan: Plan, path: Path, *, title: str, wanted: float) -> Path:
    """Writes the curve to a picture file; its kind follows the suffix.

    Args:
        plan: see `hyperdp.plan.make_plan`.
        path: .png, .svg or .pdf.
        title: of the picture.
        wanted: the gain that was asked for.
    """
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epsilon = [o.epsilon for o in plan.curve]
    low, high = [o.gain_low for o in plan.curve], [o.gain_high for o in plan.curve]
    label = f"{INTERVAL:.0%} interval"
    axes.fill_between(epsilon, low, high, color=BAND, alpha=0.5, linewidth=0, label=label)
    for task in range(plan.tasks):
        gains = [o.gains[task] for o in plan.curve]
        label = "" if task else "each public task"
        axes.plot(epsilon, gains, color=MARK, alpha=0.35, linewidth=0.7, label=label)
    axes.plot(epsilon, [o.gain for o in plan.curve], color=MARK, linewidth=2, label="median")
    control = plan.public_mean_gain
    axes.axhline(control, color=CONTROL, linewidth=1.2, dashes=(4, 3))
    axes.annotate(
        "ρ(public mean): no private data", (epsilon[0], control), xytext=(4, 4),
        textcoords="offset points", color=CONTROL, fontsize=9,
    )  # fmt: skip
    axes.axhline(wanted, color=INK, linewidth=0.8, dashes=(1, 2))
    axes.annotate(
        f"wanted: {wanted:g}", (epsilon[-1], wanted), xytext=(-4, 4), ha="right",
        textcoords="offset points", color=INK, fontsize=9,
    )  # fmt: skip
    asked = plan.outlooks
    axes.errorbar(
        [o.epsilon for o in asked],
        [o.gain for o in asked],
        yerr=[
            [max(o.gain - o.gain_low, 0.0) for o in asked],
            [max(o.gain_high - o.gain, 0.0) for o in asked],
        ],
        fmt="o", color=INK, capsize=4, linewidth=1.4, label="asked for",
    )  # fmt: skip
    if plan.smallest_epsilon is not None:
        axes.axvline(plan.smallest_epsilon, color=MARK, linewidth=0.8, dashes=(1, 2))
    axes.set_xscale("log")
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(epsilon[0], epsilon[-1])
    shown = [*low, *high, control, wanted, *(v for o in asked for v in (o.gain_low, o.gain_high))]
    bottom, top = max(min(*shown, 0.0), -1.0), min(max(*shown, 1.0), 1.5)
    axes.set_ylim(bottom - 0.05, top + 0.05)
    axes.set_xlabel("ε")
    axes.set_ylabel(f"recovered gain ({plan.quantity})")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def draw_tasks(samples: Tensor, gains: list[float | None], path: Path) -> Path:
    """Writes a row of records for each public task of a forecast, the least gain first.

    Args:
        samples: float32 [T, S, C, H, W] in [-1, 1].
        gains: recovered gain of each with hardly any noise, None where there is none.
        path: .png, .svg or .pdf.
    """
    order = sorted(range(len(gains)), key=lambda t: (gains[t] is None, gains[t] or 0.0))
    tasks, shown, *_ = samples.shape
    figure = Figure(figsize=(0.55 * shown + 0.9, 0.6 * tasks), layout="constrained")
    for row, axes in enumerate(figure.subplots(tasks, 1, squeeze=False)[:, 0]):
        pixels = to_uint8(samples[order[row]])  # [S, H, W, C]
        strip = np.concatenate(list(pixels), axis=1)
        axes.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray")
        gain = gains[order[row]]
        label = "none" if gain is None else f"{gain:.2f}"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    return path

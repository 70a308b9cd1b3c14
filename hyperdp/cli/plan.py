"""`hyperdp plan`: what to expect at which ε, before anything is spent."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from hyperdp.cli import _options as o
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.plan import Plan


PICTURES = (".png", ".svg", ".pdf")


def _epsilons(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()] or [math.nan]
    except ValueError:
        raise UsageError(
            expected="numbers separated by commas, for example --epsilon 0.2,1,8",
            found=repr(text),
            todo="Correct --epsilon.",
        ) from None


def plan_command(
    n: Annotated[float, typer.Option("--n", "-n", help="Number of units; a guess is enough.")],
    bundle: o.BundleName = "glyphs",
    epsilon: Annotated[
        str, typer.Option("--epsilon", "-e", help="One or more ε, separated by commas.")
    ] = "0.2,1,8",
    delta: o.Delta = 1e-5,
    unit: Annotated[
        Literal["record", "user"],
        typer.Option("--unit", help="What n counts: records, or users with all their records."),
    ] = "record",
    adjacency: o.AdjacencyName = "add-remove",
    classes: Annotated[
        int, typer.Option(min=1, help="Number of classes of a labelled release, of n / L units.")
    ] = 1,
    like: Annotated[
        Literal["any", "print", "hand"],
        typer.Option(
            help="What your data is most like, of what the bundle's forecast has: print (a script "
            "in its typefaces), hand (a few characters by many hands), or any."
        ),
    ] = "any",
    gain: Annotated[float, typer.Option(help="The recovered gain that is wanted.")] = 0.5,
    quantity: Annotated[
        Literal["loss", "fid"] | None,
        typer.Option(help="What gains are of; FID where the bundle's table has it, else the loss."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw the privacy–utility curve here.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Foretell the recovered gain from public validation tasks alone; nothing private is read.

    Recovered gain: 0 is the bundle's base model, 1 is non-private LoRA on all records.
    Of the shipped bundles, `glyphs` has a forecast; other bundles of glyphs need one beside them
    (`hyperdp pretrain forecast`, hours), and those of texts can have none yet.

    Example: hyperdp plan --bundle glyphs --n 500 --epsilon 0.2,1,8 -o plan.png
    """
    from hyperdp.budget import PrivacyBudget
    from hyperdp.bundle import load_bundle
    from hyperdp.forecast import load_forecast
    from hyperdp.mechanism import MechanismSpec
    from hyperdp.plan import make_plan

    check_picture(out, "--out")
    loaded = load_bundle(bundle)
    forecast = load_forecast(loaded.path, loaded.hash)
    spec = MechanismSpec(
        embedding_dim=loaded.config.embed_dim,
        clip_norm=float(loaded.config.clip_norm),
        num_classes=classes,
        adjacency=adjacency,
    )
    budgets = [
        PrivacyBudget(epsilon=e, delta=delta, adjacency=adjacency, unit=unit)
        for e in _epsilons(epsilon)
    ]
    table = forecast.table(quantity, like)
    plan = make_plan(table, spec=spec, budgets=budgets, units=n, wanted=gain)
    title = f"{loaded.name}: n = {n:,.0f} {unit}s, δ = {delta:g}, {adjacency}"
    if as_json and out is not None:
        _draw(plan, out, title=title, wanted=gain)
    if as_json:
        facts = dataclasses.asdict(plan) | {"n": n, "delta": delta, "wanted": gain, "like": like}
        typer.echo(json.dumps(facts | {"says": says(plan, n=n, wanted=gain, delta=delta)}))
        return
    of = "held-out loss" if plan.quantity == "loss" else plan.quantity.upper()
    reach = f"tasks at {gain:g}"
    shown = Table("ε", "noise", "recovered gain", "80 % interval", reach, of, box=None)
    for outlook in plan.outlooks:
        shown.add_row(
            f"{outlook.epsilon:g}",
            f"{outlook.noise_std:.2g}",
            f"{outlook.gain:.2f}",
            f"{outlook.gain_low:.2f} … {outlook.gain_high:.2f}",
            outlook.reached(gain),
            f"{outlook.figure:.3g} ({outlook.figure_low:.3g} … {outlook.figure_high:.3g})",
        )
    Console().print(shown)
    for line in says(plan, n=n, wanted=gain, delta=delta):
        typer.echo(line)
    if out is not None:
        _draw(plan, out, title=title, wanted=gain)
        typer.echo(f"curve in {out}")


def _draw(plan: Plan, out: Path, *, title: str, wanted: float) -> None:
    from hyperdp.eval.plan_picture import draw_plan

    draw_plan(plan, out, title=title, wanted=wanted)


def check_picture(path: Path | None, option: str) -> None:
    """Refuse a picture's file that could not be written, before anything is worked out for it.

    Raises:
        UsageError: its name does not end in .png, .svg or .pdf, or it is a folder.
    """
    if path is not None and (path.suffix.lower() not in PICTURES or path.is_dir()):
        raise UsageError(
            expected=f"{option} FILE that ends in {', '.join(PICTURES)}",
            found=f"'{path}'" + (", a folder" if path.is_dir() else ""),
            todo="Name such a file.",
        )


def says(plan: Plan, *, n: float, wanted: float, delta: float) -> list[str]:
    """The plan in sentences."""
    of = "held-out loss" if plan.quantity == "loss" else plan.quantity.upper()
    lines = [
        f"From {plan.tasks} held-out public tasks (gain of {of}); 1 is non-private LoRA, and "
        f"ρ(public mean), which needs no private data, reaches {plan.public_mean_gain:.2f}."
    ]
    if plan.out_of_reach:
        lines.append(
            f"It is neither n nor ε that a gain of {wanted:g} wants: with a mean as good as exact "
            f"the median is {plan.ceiling.gain:.2f}, and {plan.ceiling.reached(wanted)} public "
            "tasks reach it. What yours is like decides."
        )
    elif plan.smallest_epsilon is not None:
        lines.append(f"A gain of {wanted:g} is expected from ε = {plan.smallest_epsilon:.2g} on.")
    else:
        lines.append(f"n is too small for a gain of {wanted:g}: no ε up to 16 is expected to do.")
    for outlook, needed in zip(plan.outlooks, plan.units_needed, strict=True):
        if outlook.gain < wanted and not plan.out_of_reach:
            much = f"about n = {needed:,}" if needed else "more than a million units, if any"
            lines.append(f"At ε = {outlook.epsilon:g} a gain of {wanted:g} takes {much}.")
        if outlook.drowned:
            lines.append(
                f"n is too small at ε = {outlook.epsilon:g}: on most public tasks the measurement "
                "brings nothing over ρ(public mean)."
            )
        if not outlook.inside:
            lines.append(
                f"At ε = {outlook.epsilon:g}, n or noise is beyond the table: the figures are of "
                "its nearest cell, and too good."
            )
    if delta * n >= 1:
        lines.append(f"δ = {delta:g} is not below 1/n: such a release is refused. Lower δ.")
    return lines

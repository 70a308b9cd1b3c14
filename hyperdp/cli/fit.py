"""`hyperdp fit`: train an adapter by many noisy steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._bars import steps_bar
from hyperdp.cli._device import OnDevice, on_device
from hyperdp.cli._emitting import next_step
from hyperdp.cli._opening import Reading, charged_to, check_one_process, check_out, open_checked
from hyperdp.cli._words import command
from hyperdp.errors import UsageError

_STEPS_PANEL = "The steps: public, and chosen before anything of this dataset was released"


def fit_command(
    data: o.Data,
    epsilon: o.Epsilon,
    delta: o.Delta,
    size: Annotated[
        int,
        typer.Option(
            help="Number of units as far as it is public: what everybody knows, or a guess. A "
            "wrong one costs accuracy, never privacy."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="PEFT directory to be made.")],
    method: Annotated[
        str, typer.Option("--method", "-m", help="dpsgd, ffa, projected, prism or anadp.")
    ] = "dpsgd",
    bundle: o.BundleName = "glyphs",
    ledger: o.LedgerFile = None,
    dataset: o.DatasetName = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="A release: start from its adapter. Both budgets come from the same ledger, so "
            "raise the cap first with `hyperdp ledger set-cap`; `hyperdp private --refine` splits "
            "one budget instead.",
            metavar="RELEASE",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        Literal["fresh", "public-mean", "spectral"],
        typer.Option(
            help="Where to start without --init: LoRA's standard start; what the bundle makes of "
            "the public mean; or the base's own leading singular vectors, which end in an adapter "
            "of twice the rank. Prism needs one of the last two, or --init."
        ),
    ] = "fresh",
    steps: Annotated[int, typer.Option(rich_help_panel=_STEPS_PANEL)] = 200,
    batch: Annotated[int, typer.Option(help="Expected batch.", rich_help_panel=_STEPS_PANEL)] = 64,
    clip_norm: Annotated[
        float, typer.Option(help="C, in the norm of the method.", rich_help_panel=_STEPS_PANEL)
    ] = 0.01,
    lr: Annotated[float, typer.Option(rich_help_panel=_STEPS_PANEL)] = 1e-3,
    rank: Annotated[
        int, typer.Option(help="Of a fresh adapter.", rich_help_panel=_STEPS_PANEL)
    ] = 8,
    draws: Annotated[
        int,
        typer.Option(help="Times and noises of each record a step.", rich_help_panel=_STEPS_PANEL),
    ] = 1,
    average: Annotated[
        float,
        typer.Option(help="Decay of the mean of the weights.", rich_help_panel=_STEPS_PANEL),
    ] = 0.9,
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        typer.Option(help="Not for prism, which has its own.", rich_help_panel=_STEPS_PANEL),
    ] = "adamw",
    dims: Annotated[
        int,
        typer.Option(help="Of the public subspace (projected).", rich_help_panel=_STEPS_PANEL),
    ] = 64,
    target_module: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA site; may be repeated. By default all of the bundle's.",
            rich_help_panel=_STEPS_PANEL,
            show_default=False,
        ),
    ] = None,
    microbatch: Annotated[int, typer.Option(min=1, help="Records in memory at once.")] = 32,
    device: OnDevice = "cpu",
    image_column: o.ImageColumn = None,
    text_column: o.TextColumn = None,
    unit_column: o.UnitColumn = None,
    skip_unreadable: o.SkipUnreadable = False,
    allow_weak_delta: o.AllowWeakDelta = False,
    as_json: o.AsJson = False,
) -> None:
    """Train an adapter by many noisy steps: DP-SGD and its relatives.

    Its noise and gradients are floating-point numbers, and their rounding is not charged to δ: a
    weaker promise than a release's (docs/privacy.md). Images are read as they are: light on dark.

    Killed and started again with the same words, it goes on and spends nothing twice.
    The budget is taken from the ledger first, and stays spent if anything fails.

    Example: hyperdp fit scans/ --method dpsgd --size 2000 --epsilon 8 --delta 1e-5 -o out/adapter
    """
    from hyperdp.budget import PrivacyBudget
    from hyperdp.ledger import Ledger
    from hyperdp.private.learners.config import FitConfig, Pace
    from hyperdp.private.learners.fit import fit
    from hyperdp.private.learners.methods import make_rule
    from hyperdp.private.learners.starting import start_weights
    from hyperdp.private.release import Release
    from hyperdp.text_bundle import open_bundle

    config = FitConfig(
        method=method,
        size=size,
        expected_batch=batch,
        steps=steps,
        clip_norm=clip_norm,
        lr=lr,
        rank=rank,
        start=start,
        draws=draws,
        average=average,
        optimizer=optimizer,
        dims=dims,
        target_modules=tuple(target_module) if target_module else None,
    )
    _check_used(method=method, optimizer=optimizer, start=start, init=init)
    unit: Literal["record", "user"] = "record" if unit_column is None else "user"
    budget = PrivacyBudget(epsilon=epsilon, delta=delta, unit=unit)
    loaded = on_device(open_bundle(bundle), device)
    reading = Reading(
        data=data,
        image_column=image_column,
        text_column=text_column,
        unit_column=unit_column,
        skip_unreadable=skip_unreadable,
    )
    check_one_process("fit")
    check_out(out, data)
    begin = None if init is None else Release.load(init)
    if begin is not None and begin.certificate.inverted:
        raise UsageError(
            expected="a release of records as they are: `fit` does not invert",
            found=f"{init}, whose records were inverted",
            todo="Use `hyperdp private --refine dpsgd --invert`, or invert the images first and "
            "release them anew.",
        )
    # Before the data is read: an unknown method or site, and a start that the method cannot use.
    make_rule(config, loaded).start(start_weights(config, loaded, begin))
    opened = open_checked(reading, loaded)
    with steps_bar() as bar:
        task = bar.add_task("steps", total=steps, epsilon=0.0)
        made = fit(
            opened.records(),
            bundle=loaded,
            config=config,
            budget=budget,
            ledger=Ledger(ledger or o.default_ledger()),
            out=out,
            dataset=charged_to(opened, dataset),
            start=begin,
            allow_weak_delta=allow_weak_delta,
            pace=Pace(microbatch=microbatch),
            progress=lambda done, _, spent: bar.update(task, completed=done, epsilon=spent),
        )
    c = made.certificate
    facts = {
        "adapter": str(out),
        "method": c.method,
        "bundle": c.bundle_name,
        "epsilon": c.epsilon,
        "delta": c.delta,
        "adjacency": c.adjacency,
        "unit": c.unit,
        "noise_multiplier": c.noise_multiplier,
        "sampling_probability": c.sampling_probability,
        "steps": c.steps,
        "total_epsilon": c.total_epsilon,
        "total_delta": c.total_delta,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"adapter in {out}")
    typer.echo(f"spent: epsilon {c.epsilon:g}, delta {c.delta:g}, {c.adjacency}, unit {c.unit}")
    if c.start_event:
        typer.echo(f"with the release it started from: epsilon {c.total_epsilon:.4g}")
    typer.echo(next_step(loaded, out))
    typer.echo(f"Check it with `{command('verify', out)}`.")


def _check_used(*, method: str, optimizer: str, start: str, init: Path | None) -> None:
    """Refuses options that would stand in the certificate and change nothing."""
    unused = {
        "--start": init is not None and start != "fresh",
        "--optimizer": method == "prism" and optimizer != "adamw",
    }
    if given := [option for option, there in unused.items() if there]:
        raise UsageError(
            expected="options that are used: --init is the start, and prism has steps of its own",
            found=" and ".join(given),
            todo="Leave it out.",
        )

"""The second half of `hyperdp private --refine`: run the hybrid and say what it cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from hyperdp.cli._bars import steps_bar
from hyperdp.cli._emitting import Emitted, next_step
from hyperdp.cli._opening import charged_to, check_one_process, check_out, open_checked
from hyperdp.cli._options import default_ledger
from hyperdp.cli._refining import Refinement
from hyperdp.cli._releasing import (
    ReleaseRequest,
    describe,
    signal_warnings,
)
from hyperdp.cli._words import command
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.text_bundle import TextBundle


def refine(
    request: ReleaseRequest,
    settled: Refinement,
    bundle: Bundle | TextBundle,
    *,
    microbatch: int,
    as_json: bool,
) -> None:
    """Release, emit and train on, under the one budget of the command line.

    Args:
        request: the command line of the release; its ε and δ are those of both parts.
        settled: share and settings of the steps.
        bundle: the bundle it names.
        microbatch: records in memory at once.
        as_json: print one JSON object.

    Raises:
        HyperdpError: whatever stands in the way.
    """
    from hyperdp.ledger import Ledger
    from hyperdp.private.emit import judge_release
    from hyperdp.private.learners.config import Pace
    from hyperdp.private.learners.hybrid import fit_hybrid
    from hyperdp.text_bundle import TextBundle

    assert settled.config is not None  # noqa: S101  # f > 0
    if request.classes is not None:
        raise UsageError(
            expected="an unlabelled release with --refine, whose adapter is one",
            found="--classes",
            todo="Leave --label-column and --classes out, or --refine.",
        )
    budget = request.budget()
    check_one_process("private --refine")
    check_out(request.out, request.data)
    dataset = open_checked(request.reading(), bundle)
    out = request.out.parent
    with signal_warnings(), steps_bar() as bar:
        task = bar.add_task("steps", total=settled.config.steps, epsilon=0.0)
        made = fit_hybrid(
            dataset.records,
            bundle=bundle,
            config=settled.config,
            fraction=settled.fraction,
            budget=budget,
            ledger=Ledger(request.ledger or default_ledger()),
            out=out,
            dataset=charged_to(dataset, request.dataset),
            inverted=request.invert,
            allow_weak_delta=request.allow_weak_delta,
            pace=Pace(microbatch=microbatch),
            progress=lambda done, _, spent: bar.update(task, completed=done, epsilon=spent),
        )
    c = made.fit.certificate
    first = describe(made.release, request.out)
    emitted = Emitted(
        folders=[out / "adapter"],
        finding=judge_release(request.out, bundle),
        next_step=next_step(bundle, out / "adapter"),
        inverted=None if isinstance(bundle, TextBundle) else request.invert,
    )
    facts = (
        first
        | emitted.facts()
        | {
            "epsilon": c.total_epsilon,
            "delta": c.total_delta,
            "release_epsilon": first["epsilon"],
            "method": c.method,
            "fraction": settled.fraction,
            "fraction_from": settled.source,
            "noise_multiplier": c.noise_multiplier,
            "steps": c.steps,
        }
    )
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"release in {request.out}")
    typer.echo(f"refined by {c.steps} steps of {c.method}")
    typer.echo(
        f"spent: epsilon {c.total_epsilon:.4g}, delta {c.total_delta:g}, {c.adjacency}, unit "
        f"{c.unit}; the release alone epsilon {first['epsilon']:.4g}"
    )
    emitted.tell()
    typer.echo(
        f"Check with `{command('verify', request.out)}` and `{command('verify', out / 'adapter')}`."
    )

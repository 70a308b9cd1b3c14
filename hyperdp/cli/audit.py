"""`hyperdp audit`: attack the real code path and bound what it leaks from below."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from hyperdp.cli import _options as o


def audit_command(
    bundle: o.BundleName = "glyphs",
    epsilon: o.Epsilon = 1.0,
    delta: o.Delta = 1e-5,
    adjacency: o.AdjacencyName = "add-remove",
    num_classes: Annotated[
        int, typer.Option("--num-classes", help="Classes of the release; 1 is unlabelled.", min=1)
    ] = 1,
    trials: Annotated[
        int, typer.Option(help="Releases of each of the two neighbouring datasets.", min=100)
    ] = 100_000,
    membership: Annotated[
        int,
        typer.Option(help="Adapters in and out, per target, for membership inference.", min=0),
    ] = 200,
    workers: Annotated[int, typer.Option(help="Processes that share the releases.", min=1)] = 2,
    as_json: o.AsJson = False,
) -> None:
    """Attack the mechanism as it runs here, and bound ε from below.

    No private data is read and no budget is spent: both datasets are made up, and worst-case.

    Example: hyperdp audit --bundle glyphs --epsilon 1 --trials 100000 --json
    """
    from hyperdp.budget import PrivacyBudget
    from hyperdp.bundle import load_bundle
    from hyperdp.eval.audit import CONFIDENCE, audit
    from hyperdp.eval.membership import attack_adapters
    from hyperdp.mechanism import MechanismSpec

    loaded = load_bundle(bundle)
    budget = PrivacyBudget(epsilon=epsilon, delta=delta, adjacency=adjacency)
    spec = MechanismSpec(
        embedding_dim=loaded.config.embed_dim,
        clip_norm=float(loaded.config.clip_norm),
        num_classes=num_classes,
        adjacency=adjacency,
    )
    start = time.monotonic()
    bound = audit(spec, budget, trials=trials, workers=workers)
    facts: dict[str, Any] = {
        "bundle": loaded.name,
        "bundle_hash": loaded.hash,
        "epsilon": epsilon,
        "delta": delta,
        "adjacency": adjacency,
        "num_classes": num_classes,
        "trials": trials,
        "confidence": CONFIDENCE,
        "epsilon_lower_bound": bound.epsilon_gaussian,
        "epsilon_lower_bound_any_mechanism": bound.epsilon,
        "true_positive_rate": bound.true_positive_rate,
        "false_positive_rate": bound.false_positive_rate,
        "seconds": round(time.monotonic() - start, 1),
        "membership": (
            [vars(m) for m in attack_adapters(loaded, budget, rounds=membership)]
            if membership
            else []
        ),
    }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _tell(facts)
    if max(bound.epsilon_gaussian, bound.epsilon) > epsilon:
        raise typer.Exit(1)


def _tell(facts: dict[str, Any]) -> None:
    typer.echo(
        f"claimed: epsilon {facts['epsilon']:g} at delta {facts['delta']:g}, {facts['adjacency']}"
    )
    typer.echo(
        f"attacked: {2 * facts['trials']} releases; epsilon is at least "
        f"{facts['epsilon_lower_bound']:.3f} with {facts['confidence']:.1%} confidence"
    )
    for row in facts["membership"]:
        typer.echo(
            f"membership by the adapter's loss, {row['target']}: AUC {row['auc']:.3f} "
            f"(0.5 is a coin), at most {row['auc_limit']:.3f} by the claim"
        )
    holds = facts["epsilon_lower_bound"] <= facts["epsilon"]
    typer.echo("the claim stands" if holds else "THE CLAIM IS FALSE: do not publish")

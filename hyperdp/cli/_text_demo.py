"""`hyperdp demo --text`: the story on real mail."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console


def text_demo(out: Path, bundle: str, *, epsilon: float, seed: int, as_json: bool) -> None:
    """Adapt a language model to private mail with one release, and write a report.

    Args:
        out: new folder for all it makes.
        bundle: name or folder.
        epsilon: of the release.
        seed: of the draw of mails and of what is written.
        as_json: print the figures as one JSON object.
    """
    from hyperdp.eval.text_demo import (
        LABELS,
        TextDemoConfig,
        run_text_demo,
        write_text_report,
    )

    console = Console(stderr=True)

    def stage(name: str) -> Callable[[int, int], None]:
        console.print(name)
        return lambda done, total: None

    began = time.monotonic()
    config = TextDemoConfig(bundle=bundle, epsilon=epsilon, seed=seed)
    result = run_text_demo(config, out, stage)
    command = shlex.join(["hyperdp", *sys.argv[1:]])
    page = write_text_report(result, config, out / "report.html", command=command)
    if as_json:
        seconds = time.monotonic() - began
        facts = {"report": str(page), "perplexity": result.perplexity, "seconds": seconds}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{'method':<24}{'perplexity':>12}")
    for name, value in result.perplexity.items():
        typer.echo(f"{LABELS[name][0]:<24}{value:>12.1f}")
    for text in result.messages["hyper"]:
        typer.echo(f"\n--- {text}")
    typer.echo(f"\n{time.monotonic() - began:.0f} seconds. Look at it: {page.resolve().as_uri()}")

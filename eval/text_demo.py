"""The story on real mail, in minutes: release, emit, generate, perplexity, report."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hyperdp import __version__
from hyperdp.budget import PrivacyBudget
from hyperdp.errors import UsageError
from hyperdp.eval.measure import NOT_PRIVATE
from hyperdp.eval.page import environment
from hyperdp.eval.release_facts import ReleaseFacts
from hyperdp.eval.results import hardware
from hyperdp.eval.reveal import reveal
from hyperdp.eval.text_bench import open_text_bundle
from hyperdp.eval.text_sets import load_text_set
from hyperdp.eval.text_split import TextSet
from hyperdp.eval.text_study import control_weights, nats, perplexity, to_tokens
from hyperdp.ledger import Ledger
from hyperdp.lora import Weights, adapters, load_peft
from hyperdp.private.emit import emit_adapter
from hyperdp.private.readers import open_text_dataset
from hyperdp.private.release import Release, release
from hyperdp.text_bundle import TextBundle

PRIVATE_SET = "spam-assassin"
LABELS = {
    "base": ("base model", "before any adaptation"),
    "public_mean": ("ρ(public mean)", "what one shared LoRA gives"),
    "other_task": ("ρ(another task)", "the adapter of another task's embedding"),
    "hyper": ("hyperdp", "the adapter of the one noisy measurement"),
}
GENERATED = ("base", "hyper")

Stage = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True, kw_only=True)
class TextDemoConfig:
    """What the demo spends and draws.

    Attributes:
        bundle: name or folder.
        epsilon, delta: of the release.
        n: private mails.
        messages: that each model writes. temperature: that it writes them at.
        seed: of the draw of the mails and of what is written; the release's noise has none.
    """

    bundle: str = "text-tiny"
    epsilon: float = 1.0
    delta: float = 1e-5
    n: int = 2000
    messages: int = 10
    temperature: float = 0.8
    seed: int = 0


@dataclass(kw_only=True)
class TextDemoResult:
    """What the report shows.

    Attributes:
        facts: of the release.
        about: the private set, in a sentence.
        perplexity: method → on mails that are not in the release.
        messages: method → generated texts.
        reference: number of those mails.
        stages: (what, seconds).
    """

    facts: ReleaseFacts
    about: str
    perplexity: dict[str, float] = field(default_factory=dict)
    messages: dict[str, list[str]] = field(default_factory=dict)
    reference: int = 0
    stages: list[tuple[str, float]] = field(default_factory=list)


def run_text_demo(
    config: TextDemoConfig, out: Path, stage: Stage, data: TextSet | None = None
) -> TextDemoResult:
    """Runs the demo; everything it makes lies in `out`.

    Args:
        config: see `TextDemoConfig`.
        out: a new or empty folder.
        stage: called with the name of each stage; returns its progress callback.
        data: the private set; `PRIVATE_SET` when None.

    Returns:
        All that the report shows.

    Raises:
        UsageError: `out` holds something already, or a bundle of images.
        DataError: the mails are not installed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected="a new or empty folder",
            found=str(out),
            todo="Choose another --out, or remove it: releases are never overwritten.",
        )
    budget = PrivacyBudget(epsilon=config.epsilon, delta=config.delta)  # before anything is written
    bundle = open_text_bundle(config.bundle)
    mails = load_text_set(PRIVATE_SET) if data is None else data
    stages: list[tuple[str, float]] = []

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.monotonic()
        stage(name)
        yield
        stages.append((name, time.monotonic() - began))

    path = out / "private-data" / "mails.jsonl"
    path.parent.mkdir(parents=True)
    rows = (
        json.dumps({"text": text}) + "\n" for text in mails.documents(config.n, seed=config.seed)
    )
    path.write_text("".join(rows), encoding="utf-8")
    with timed(f"release of {config.n:,} mails"):
        made = _release(bundle, path, out / "release", budget)
    with timed("emit"):
        [folder] = emit_adapter(out / "release", bundle, out / "adapter")
    level = float(made.mean_noise_std()[0])
    weights: dict[str, Weights] = {
        "base": {},
        "public_mean": control_weights(bundle, "public_mean"),
        "other_task": control_weights(bundle, "other_task", noise_std=level),
        "hyper": load_peft(folder),
    }
    result = TextDemoResult(
        facts=ReleaseFacts.of(made, f"{config.n:,} mails"),
        about=mails.about,
        reference=len(mails.reference),
        stages=stages,
    )
    tokens = to_tokens(bundle, mails.reference)
    for name, adapter in weights.items():
        with timed(f"perplexity: {LABELS[name][0]}"):
            result.perplexity[name] = perplexity(nats(bundle, adapter, tokens))
    for name in GENERATED:
        with timed(f"write: {LABELS[name][0]}"), adapters(bundle.base.model, weights[name]):
            result.messages[name] = bundle.base.sample(
                config.messages, seed=config.seed, temperature=config.temperature
            )
        together = "\n\n-----\n\n".join(result.messages[name])
        (out / f"messages-{name}.txt").write_text(together + "\n", encoding="utf-8")
    return result


def _release(bundle: TextBundle, path: Path, folder: Path, budget: PrivacyBudget) -> Release:
    dataset = open_text_dataset(path, encode=bundle.base.tokenizer.encode)
    return release(
        dataset.records(),
        bundle=bundle,
        budget=budget,
        ledger=Ledger(folder.parent / "ledger.db"),
        out=folder,
        # A dataset has one ledger, and each demo has a new one.
        dataset=f"{path.resolve()} {secrets.token_hex(16)}",
    )


def write_text_report(
    result: TextDemoResult, config: TextDemoConfig, path: Path, *, command: str
) -> Path:
    """Writes the page, and beside it its facts as JSON, which hold no mail and no message.

    Args:
        result: of `run_text_demo`.
        config: of the same run.
        path: of the page; the facts take its name with the suffix `.json`.
        command: what was typed.

    Returns:
        The page's path.
    """
    facts = {
        "format": "hyperdp-text-report/1",
        "warning": f"metrics computed on private data: {NOT_PRIVATE}",
        "title": "Mail with one private measurement",
        "private_about": result.about,
        "release": asdict(result.facts),
        "perplexity": result.perplexity,
        "reference": result.reference,
        "config": asdict(config),
        "stages": [{"stage": name, "seconds": seconds} for name, seconds in result.stages],
        "command": command,
        "hardware": hardware(),
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    page = environment().get_template("text.html").render(
        r=facts,
        facts=result.facts,
        found=reveal(result.facts),
        labels=LABELS,
        messages=result.messages,
        not_private=NOT_PRIVATE,
        total_seconds=sum(seconds for _, seconds in result.stages),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
    text = json.dumps(facts, ensure_ascii=False, indent=2, allow_nan=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path

"""What the metric table says in plain words: from its numbers alone, and never more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hyperdp.eval.metrics.fid import Score, recovered_gain

METHODS = {
    "base": "the model before any adaptation",
    "public_mean": "what one shared LoRA gives",
    "other_task": "the adapter that ρ makes of another task's embedding",
    "hyper": "the adapter that ρ makes of the one noisy measurement",
    "dpsgd": "LoRA trained with DP-SGD",
    "lora": "LoRA trained on all private records without any privacy: the mark to reach",
}
"""What the known methods are; another name may stand in a table and is explained by its label."""
NOTHING_SHOWN = {
    "base": "adapting brought nothing that can be measured here.",
    "public_mean": "nothing here shows that the private measurement helped beyond what one shared "
    "public adapter gives.",
    "other_task": "nothing here shows that it matters whose embedding ρ is given.",
}
"""What it means not to beat one of the methods that see no private data."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One line of the metric table.

    Attributes:
        method: a key of `METHODS`, or another name.
        label: how the table prints it.
        n: number of private records, None where the method saw none.
        epsilon: ε that was spent, None where the method spent none.
        fid, kid: distance to the reference; smaller is closer.
        kid_std: standard deviation of KID over subsets.
        precision, recall, density, coverage: see `ManifoldScores`; None where not measured.
        fid_low, fid_high: ends of FID's 95 % interval; None where not measured.
    """

    method: str
    label: str
    n: int | None = None
    epsilon: float | None = None
    fid: float
    kid: float
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    fid_low: float | None = None
    fid_high: float | None = None

    @property
    def about(self) -> str:
        """What the method is, or nothing for an unknown one."""
        return METHODS.get(self.method, "")

    @property
    def privacy(self) -> str:
        """What making the images cost the private records."""
        if self.method in NOTHING_SHOWN:
            return "no private data"
        return "none" if self.epsilon is None else f"ε = {self.epsilon:g}"


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One finding.

    Attributes:
        text: plain language.
        tone: `good`, `bad` or `plain`.
    """

    text: str
    tone: str = "plain"


def number(value: float) -> str:
    """Three significant digits, and no fewer than the whole part has: "439", "62.1", "0.304"."""
    if value and abs(value) < 1:
        return f"{value:.3f}"
    return f"{value:,.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def compare(ours: MetricRow, other: MetricRow) -> int:
    """Whether one row is closer to the reference than another, by both metrics.

    Args:
        ours: a row.
        other: the row it is compared with.

    Returns:
        1 if FID and KID are both smaller and KID by more than the larger of the two standard
        deviations over subsets; −1 if both are larger by the same measure; else 0: not told apart.
    """
    spread = max(ours.kid_std or 0.0, other.kid_std or 0.0)
    fid, kid = other.fid - ours.fid, other.kid - ours.kid
    if fid > 0 and kid > spread:
        return 1
    return -1 if fid < 0 and kid < -spread else 0


def verdict(rows: Sequence[MetricRow], *, floor_fid: float) -> Sentence | None:
    """The one line above everything else, about the release of the most records.

    Args:
        rows: the table.
        floor_fid: real against real.

    Returns:
        The line, or None where no row is hyperdp's.
    """
    hyper = [row for row in rows if row.method == "hyper"]
    if not hyper:
        return None
    ours = max(hyper, key=lambda row: row.n or 0)
    controls = [row for row in rows if row.method in NOTHING_SHOWN]
    known = ", ".join(f"{row.label} {number(row.fid)}" for row in controls)
    figures = f"FID {number(ours.fid)}" + (f" against {known}" if known else "")
    figures += f"; real images score {number(floor_fid)}."
    unbeaten = [row.label for row in controls if compare(ours, row) <= 0]
    if not controls:
        return Sentence(text=f"{ours.label}: {figures}")
    if unbeaten:
        text = f"{ours.label} is not shown to be better than {_listed(unbeaten)}. {figures}"
        return Sentence(text=text, tone="bad")
    text = f"{ours.label} is closer to the private images than every control, none of which saw "
    text += f"them. {figures}"
    return Sentence(text=text, tone="good")


def read_rows(
    rows: Sequence[MetricRow], *, floor_fid: float, extractor: str, samples: int, reference: int
) -> list[Sentence]:
    """The table in sentences.

    Args:
        rows: the table.
        floor_fid: FID of real images against other real images, at the same sizes.
        extractor: of the features.
        samples: generated images of each method.
        reference: reference images.

    Returns:
        Findings, from what the floor means to what the figures cannot tell.
    """
    one = {row.method: row for row in rows if row.n is None or row.method == "lora"}
    hyper = sorted((row for row in rows if row.method == "hyper"), key=lambda row: row.n or 0)
    found = [
        Sentence(
            text=f"FID and KID are distances: smaller is closer. Real images that the reference "
            f"does not hold score FID {number(floor_fid)} at these sizes, so that is as good as a "
            "generator can be expected to get."
        )
    ]
    for ours in hyper:
        found += _against(ours, {m: one[m] for m in NOTHING_SHOWN if m in one})
    if hyper:
        best = min(hyper, key=lambda row: row.fid)
        found += _reach(best, one, floor_fid=floor_fid, sizes=(samples, reference))
    found += _more_records(hyper)
    if hyper:
        found.append(
            Sentence(
                text="This is one draw of records and one draw of noise for each release; another "
                "run will give other figures. The command hyperdp bench repeats it over seeds."
            )
        )
    small = " With fewer than 5,000 images on a side, trust KID's order more than FID's."
    found.append(
        Sentence(
            text=f"The features are {extractor}'s, so the figures compare with no FID over other "
            f"features, and with none at other sizes than {samples:,} generated against "
            f"{reference:,} reference images." + (small if min(samples, reference) < 5000 else "")
        )
    )
    return found


def _against(ours: MetricRow, others: dict[str, MetricRow]) -> list[Sentence]:
    """What one row beats, in a sentence, and what it does not beat, each in its own."""
    found = []
    beaten = {method: row for method, row in others.items() if compare(ours, row) == 1}
    if beaten:
        meanings = []
        if "base" in beaten:
            meanings.append("adapting brought the images closer to the private ones")
            if "public_mean" in beaten:
                meanings.append("part of that comes from the private measurement itself")
        if "other_task" in beaten:
            meanings.append("it matters whose embedding ρ is given")
        names = _listed([f"{row.label} ({_figures(row)})" for row in beaten.values()])
        text = f"{ours.label} ({_figures(ours)}) beats {names}"
        found.append(
            Sentence(text=text + (f": {_listed(meanings)}." if meanings else "."), tone="good")
        )
    for method, row in others.items():
        if method not in beaten:
            how = "does worse than" if compare(ours, row) == -1 else "cannot be told apart from"
            text = f"{ours.label} ({_figures(ours)}) {how} {row.label} ({_figures(row)}): "
            found.append(Sentence(text=text + NOTHING_SHOWN[method], tone="bad"))
    return found


def _figures(row: MetricRow) -> str:
    return f"FID {number(row.fid)}, KID {number(row.kid)}"


def _listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + list(words[-1:]))


def _reach(
    best: MetricRow, one: dict[str, MetricRow], *, floor_fid: float, sizes: tuple[int, int]
) -> list[Sentence]:
    """How far the best of ours went, and how far is left."""
    found = []
    if "base" in one and "lora" in one:

        def score(row: MetricRow) -> Score:
            return Score(
                metric="fid", extractor="", value=row.fid, std=None,
                generated=sizes[0], reference=sizes[1],
            )  # fmt: skip

        gain = recovered_gain(
            base=score(one["base"]), method=score(best), nonprivate=score(one["lora"])
        )
        if math.isfinite(gain):
            found.append(
                Sentence(
                    text=f"Recovered gain: {best.label} reaches {gain:.2f} of what training on all "
                    "private records without privacy gains over the base model (0 is none of it, "
                    "1 all of it)."
                )
            )
    if floor_fid > 0:
        ratio = best.fid / floor_fid
        left = "about as close as real images are" if ratio < 1.1 else (
            f"{number(ratio)} times the floor: well short of real images"
            if ratio > 2 else f"{number(ratio)} times the floor"
        )  # fmt: skip
        found.append(Sentence(text=f"At its best ({best.label}), FID is {left}."))
    return found


def _more_records(hyper: Sequence[MetricRow]) -> list[Sentence]:
    found = []
    for few, many in pairwise(hyper):
        if few.n is None or many.n is None or few.n == many.n or few.epsilon != many.epsilon:
            continue
        text = f"From {few.n:,} to {many.n:,} records at the same ε, "
        text += {
            1: "the images come closer: more records drown the same noise.",
            0: "the two cannot be told apart.",
            -1: "the images do not come closer in this run.",
        }[compare(many, few)]
        found.append(Sentence(text=text))
    return found

"""What the report says of a release's promise, the gallery, and the sections they stand in."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hyperdp.errors import UsageError
from hyperdp.eval.features import Features
from hyperdp.eval.flags import Findings, flags
from hyperdp.eval.gallery import failures_panel, pairs_panel
from hyperdp.eval.report import report_facts, write_report
from hyperdp.eval.reveal import best_attack, reveal
from tests.test_eval_report import ROWS, Page, facts, releases, report

__all__ = ["facts", "releases"]  # fixtures


@pytest.mark.parametrize("multiplier", [0.6, 3.73])
def test_no_attack_bound_agrees_with_drawn_noise(multiplier):
    """The best test is the projection itself: N(0, τ²) against N(1, τ²), drawn."""
    rng = np.random.default_rng(0)
    count = 400_000
    without, within = rng.normal(0, multiplier, count), rng.normal(1, multiplier, count)
    auc, tpr = best_attack(multiplier, fpr=0.01)
    labels = np.repeat([0, 1], count)
    assert auc == pytest.approx(roc_auc_score(labels, np.r_[without, within]), abs=0.003)
    threshold = np.quantile(without, 0.99)
    assert tpr == pytest.approx((within > threshold).mean(), abs=0.003)


def promise(**changes):
    values = {
        "unit": "record", "noise_multiplier": 3.73, "num_classes": 1, "embedding_dim": 64,
        "count_is_noisy": True,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def test_the_words_follow_the_promise():
    found = reveal(promise())
    assert "64 numbers, their average" in found.tells[0]
    assert "at most 58% of comparisons" in found.hides[0]
    assert "several records" in found.beyond[1]
    by_user = reveal(promise(unit="user", num_classes=10, noise_multiplier=0.6))
    assert "for each of 10 classes" in by_user.tells[0]
    assert "at most 88% of comparisons" in by_user.hides[0]
    assert "another user's name" in by_user.beyond[1]


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 6, 6, generator=generator) * 2 - 1


def as_features(images):
    return Features(extractor="pixels", values=images.flatten(1))


def test_closest_pairs_stand_above_each_other():
    train, held = pictures(12, 1), pictures(30, 2)
    made = pictures(40, 3)
    made[7], made[9] = train[4], train[2]
    findings = flags(as_features(made), train=as_features(train), held_out=as_features(held))
    panel = pairs_panel(findings, made, train, held)
    assert panel.private
    rows = panel.images.view(3, 8, 1, 6, 6)
    assert torch.equal(rows[0, :2], rows[1, :2])
    assert {rows[1, i].numpy().tobytes() for i in (0, 1)} == {
        train[i].numpy().tobytes() for i in (4, 2)
    }
    assert not torch.equal(rows[0, 5], rows[1, 5])
    with pytest.raises(UsageError, match="memorisation"):
        pairs_panel(Findings(flags=(), memorisation=None, conditioning=()), made, train, held)


def test_few_pairs_leave_blanks_and_keep_the_rows():
    train, held = pictures(3, 1), pictures(9, 2)
    findings = flags(
        as_features(pictures(20, 3)), train=as_features(train), held_out=as_features(held)
    )
    panel = pairs_panel(findings, pictures(20, 3), train, held)
    rows = panel.images.view(3, 8, 1, 6, 6)
    count = len(findings.memorisation.pairs)
    assert 1 <= count <= 3
    assert (rows[:, count:] == 1).all()


def test_failures_are_the_farthest_from_any_real_image():
    made, real = pictures(60, 4), pictures(50, 5)
    made[11] = 1.0
    panel = failures_panel(as_features(made), as_features(real), made)
    assert torch.equal(panel.images[0], made[11])
    assert (len(panel.images), panel.private) == (32, False)


def test_the_page_shows_failures_shares_and_what_is_revealed(facts, tmp_path):
    made, train, held = pictures(40, 3), pictures(12, 1), pictures(30, 2)
    copies = train.repeat(4, 1, 1, 1)[:40]
    healthy, planted = (
        flags(as_features(m), train=as_features(train), held_out=as_features(held))
        for m in (made, copies)
    )
    shares = {"precision": 0.81, "recall": 0.42, "density": 1.07, "coverage": 0.66}
    rows = [dataclasses.replace(row, **shares, fid_low=300.0, fid_high=333.0) for row in ROWS]
    page = report(
        facts, rows=rows, floor=(0.9, 0.91, 1.01, 0.97), flags=[*healthy.flags, *planted.flags],
        checks=[pairs_panel(healthy, made, train, held)], grids=[],
    )  # fmt: skip
    text = write_report(page, tmp_path / "r.html").read_text()
    words = " ".join(" ".join(Page(text).text).split())
    for part in (
        "What this release reveals and what it does not", "It does not reveal",
        "Private records are repeated", "No sign of repeated private records",
        "Closest to private records", "It shows private records", "private: do not publish",
        "0.81", "1.07", "0.97", "300 to 333",
    ):  # fmt: skip
        assert part in words, part
    assert text.count('<li class="bad">Private records are repeated') == 1
    saved = json.loads((tmp_path / "r.json").read_text())
    assert [flag["raised"] for flag in saved["flags"]] == [False, True]
    assert "checks" not in report_facts(page)
    plain = write_report(report(facts), tmp_path / "plain.html").read_text()
    assert "Failures that were looked for" not in plain
    assert "all kinds of images" not in plain

"""Failures planted in real images and models are raised by the report; a healthy run is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.eval.features import EfficientNetLite0, Features, extract
from hyperdp.eval.flags import Findings, flags
from hyperdp.eval.gallery import pairs_panel
from hyperdp.eval.private_sets import PrivateSet, load_private_set
from hyperdp.eval.release_facts import ReleaseFacts
from hyperdp.eval.report import GridPanel
from hyperdp.eval.study import (
    SamplingConfig,
    control_weights,
    draw_images,
    release_once,
    released_weights,
)
from hyperdp.lora import Weights, pick
from hyperdp.private.release import Release
from tests.test_eval_report import Page, page_of, report
from tests.worlds import tiny_bundle

SAMPLING = SamplingConfig(count=96, steps=4, batch_size=24, bf16=False)
RECORDS = 8


@pytest.fixture(autouse=True)
def own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))


def features(images: Tensor) -> Features:
    return extract(EfficientNetLite0(), images)


def released(bundle: Bundle, data: PrivateSet, n: int = 400) -> tuple[Release, Weights]:
    images, _ = data.records(n, seed=0)
    made = release_once(bundle, images, PrivacyBudget(epsilon=8.0, delta=1e-4))
    return made, pick(released_weights(bundle, made), 0)


def told(made: Release, found: Findings, tmp_path: Path, checks: list[GridPanel]) -> str:
    """The page's list of failures, as the report shows it."""
    facts = [ReleaseFacts.of(made, "the release")]
    page = page_of(report(facts, flags=list(found.flags), checks=checks), tmp_path)
    assert page.count('class="bad"') >= sum(flag.raised for flag in found.flags)
    return " ".join(" ".join(Page(page).text).split())


def used_z(bundle: Bundle, made: Release, ours: Weights) -> Findings:
    """Ours against ρ(another task) at the release's noise level, from other starting noise."""
    level = float(made.mean_noise_std()[0])
    other = control_weights(bundle, "other_task", noise_std=level)
    images = draw_images(bundle, ours, SAMPLING, seed=0)
    return flags(
        features(images),
        controls={"ρ(another task)": features(draw_images(bundle, other, SAMPLING, seed=1))},
    )


def test_a_hypernetwork_that_ignores_z_is_raised_and_one_that_does_not_is_not(
    tmp_path: Path,
) -> None:
    bundle, data = tiny_bundle(tmp_path / "bundle"), load_private_set("digits")
    made, ours = released(bundle, data)
    healthy = used_z(bundle, made, ours)
    assert [flag.raised for flag in healthy.flags] == [False]
    assert "The private measurement shows" in told(made, healthy, tmp_path / "a", [])

    honest = bundle.hypernetwork.forward
    deaf = bundle.public_mean[None]
    bundle.hypernetwork.forward = lambda mean, std: honest(deaf.expand_as(mean), std)  # type: ignore[method-assign]
    ours = pick(released_weights(bundle, made), 0)
    collapsed = used_z(bundle, made, ours)
    assert [flag.name for flag in collapsed.flags if flag.raised] == ["collapse"]
    assert "nothing shows that the private measurement was used" in told(
        made, collapsed, tmp_path / "b", []
    )


def repeated(records: Tensor, count: int) -> Tensor:
    """What a generator overfitted on records draws: them, a pixel off and with a little noise."""
    rng = torch.Generator().manual_seed(3)
    picked = records[torch.arange(count) % len(records)]
    shifts = torch.randint(-1, 2, (count, 2), generator=rng).tolist()
    moved = torch.stack(
        [image.roll(shift, (1, 2)) for image, shift in zip(picked, shifts, strict=True)]
    )
    return (moved + 0.03 * torch.randn(moved.shape, generator=rng)).clamp(-1, 1)


def test_a_generator_overfitted_on_eight_records_is_raised_and_a_healthy_one_is_not(
    tmp_path: Path,
) -> None:
    bundle, data = tiny_bundle(tmp_path / "bundle"), load_private_set("digits")
    made, _ = released(bundle, data, 200)
    train, _ = data.records(RECORDS, seed=0)
    held_out, fresh = data.reference[:150], data.reference[150:246]
    target = features(held_out)
    images = repeated(train, 64)
    found = flags(features(images), train=features(train), held_out=target)
    assert [flag.name for flag in found.flags if flag.raised] == ["memorisation"]
    words = told(made, found, tmp_path / "a", [pairs_panel(found, images, train, held_out)])
    assert "Private records are repeated" in words
    assert "private: do not publish" in words

    healthy = flags(features(fresh), train=features(train), held_out=target)
    assert not any(flag.raised for flag in healthy.flags)
    assert "No sign of repeated private records" in told(made, healthy, tmp_path / "b", [])

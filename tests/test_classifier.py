"""The DP-SGD classifier: its gradients, its clipping and its noise, each computed a second way."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from hypothesis import given
from hypothesis import strategies as st
from opacus import GradSampleModule
from sklearn.datasets import load_digits
from torch.nn import functional

from hyperdp.accounting import event_from_json, pld_epsilon
from hyperdp.budget import PrivacyBudget
from hyperdp.classifier_certificate import ClassifierCertificate
from hyperdp.errors import BudgetRefusedError, DataError, UsageError, VerificationError
from hyperdp.ledger import Ledger
from hyperdp.private.classifier.augment import draw_views
from hyperdp.private.classifier.config import ClassifierConfig
from hyperdp.private.classifier.fit import PrivateClassifier, fit_classifier
from hyperdp.private.classifier.gradients import (
    BOUND,
    clip_to_steps,
    per_example_gradients,
    unflatten,
)
from hyperdp.private.classifier.network import NetworkConfig, WideResNet, WSConv2d, wide_resnet
from hyperdp.private.classifier.training import Speed, averaged, filled, noisy_mean, train
from hyperdp.private.learners.normal import SystemNormal
from hyperdp.private.records import Record
from hyperdp.verification import verify

TINY = NetworkConfig(
    image_shape=(1, 8, 8), classes=3, stem_width=8, widths=(8, 12), strides=(1, 2), blocks=2,
    groups=4,
)  # fmt: skip
CONFIG = ClassifierConfig(
    network=TINY, batch_size=6, steps=3, lr=0.5, multiplicity=2, pad=1, flip=True, ema=0.9
)


@pytest.fixture(autouse=True)
def one_thread_and_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world(count: int, network: NetworkConfig = TINY, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *network.image_shape, generator=rng) * 2 - 1
    return images, torch.randint(network.classes, (count,), generator=rng)


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def one_at_a_time(model, views, labels):
    """Every example's gradient by a backward pass of its own: the slow, plain way."""
    rows = []
    for images, label in zip(views, labels, strict=True):
        model.zero_grad()
        loss = torch.stack(
            [functional.cross_entropy(model(view[None]), label[None]) for view in images]
        ).mean()
        loss.backward()
        rows.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("norm", "standardised", "relu_first"), itertools.product((True, False), repeat=3)
)
def test_gradients_are_those_of_one_example_at_a_time(norm, standardised, relu_first):
    config = replace(
        TINY, group_norm=norm, weight_standardisation=standardised, relu_before_norm=relu_first
    )
    torch.manual_seed(0)
    model = WideResNet(config)
    images, labels = world(5)
    views = draw_views(
        images, multiplicity=3, pad=2, flip=True, rng=torch.Generator().manual_seed(1)
    )
    found = per_example_gradients(model, weights(model), views, labels)
    flat = torch.cat([g.flatten(1) for g in found.values()], 1).double()
    wanted = one_at_a_time(model, views, labels)
    assert ((flat - wanted).norm(dim=1) <= 1e-5 * wanted.norm(dim=1)).all()
    assert (wanted.norm(dim=1) > 1e-3).all()


def test_gradients_agree_with_opacus():
    torch.manual_seed(0)
    model = WideResNet(replace(TINY, weight_standardisation=False))
    images, labels = world(4)
    found = per_example_gradients(model, weights(model), images[:, None], labels)
    hooked = GradSampleModule(model, loss_reduction="sum")
    functional.cross_entropy(hooked(images), labels, reduction="sum").backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad_sample, rtol=1e-4, atol=1e-6), name


def test_a_gradient_is_the_same_to_the_bit_under_permutation_and_other_companions():
    torch.manual_seed(0)
    model = WideResNet(TINY)
    images, labels = world(16)
    views = torch.stack([images, -images, images.flip(3)], 1)

    def gradients(some, shown):
        some, shown = filled(some, 16), filled(shown, 16)
        grads = per_example_gradients(model, weights(model), some, shown)
        return torch.cat([g.flatten(1) for g in grads.values()], 1)

    first = gradients(views, labels)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gradients(views[order], labels[order]), first[order])
    assert torch.equal(gradients(views[:5], labels[:5])[:5], first[:5])
    for companion in (torch.nan, 1e30, -1.0):
        other = views.clone()
        other[8:] = companion
        assert torch.equal(gradients(other, labels)[:8], first[:8])


def test_the_mean_over_views_comes_before_the_clip():
    model = WideResNet(TINY)
    images, labels = world(4)
    views = torch.cat([images[:, None], -images[:, None]], 1)
    flat = []
    for some in (views, views[:, :1], views[:, 1:]):
        grads = per_example_gradients(model, weights(model), some, labels)
        flat.append(torch.cat([g.flatten(1) for g in grads.values()], 1))
    assert torch.allclose(flat[0], (flat[1] + flat[2]) / 2, rtol=1e-4, atol=1e-6)
    together = clip_to_steps({"all": flat[0]}, 0.01).norm(dim=1)
    assert (together <= BOUND).all()


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=True), min_size=7, max_size=7),
        min_size=1,
        max_size=5,
    ),
    st.floats(1e-3, 1e3),
)
def test_no_row_exceeds_the_bound_whatever_its_floats(rows, clip_norm):
    given_rows = torch.tensor(rows, dtype=torch.float32)
    steps = clip_to_steps({"a": given_rows[:, :3], "b": given_rows[:, 3:]}, clip_norm)
    for row, original in zip(steps.tolist(), given_rows, strict=True):
        assert all(value == int(value) for value in row)
        assert sum(int(value) ** 2 for value in row) <= BOUND**2  # Python's integers: exact
        if not original.isfinite().all():
            assert not any(row)


def test_the_clip_is_the_textbook_one_up_to_a_lattice_step():
    rows = torch.randn(6, 50, dtype=torch.float64).float() * torch.logspace(-2, 2, 6)[:, None]
    for clip_norm in (0.1, 1.0, 7.0):
        wanted = rows.double() / rows.double().norm(dim=1, keepdim=True).clamp(min=clip_norm)
        found = clip_to_steps({"w": rows}, clip_norm).double() / BOUND
        assert (found - wanted).abs().max() <= 2 / BOUND
        assert (found.norm(dim=1)[-1] - 1).abs() < 1e-4


def test_one_example_moves_the_sum_by_at_most_the_bound_in_any_order():
    rows = torch.randn(40, 300) * 10
    steps = clip_to_steps({"w": rows}, 1.0)
    total = steps.sum(0, dtype=torch.float64)
    order = torch.randperm(40)
    parts = sum(part.sum(0, dtype=torch.float64) for part in steps[order].split(7))
    assert torch.equal(total, parts)
    for i in range(40):
        without = torch.cat([steps[:i], steps[i + 1 :]]).sum(0, dtype=torch.float64)
        assert sum(int(v) ** 2 for v in (total - without).tolist()) <= BOUND**2


def test_the_noise_has_the_std_that_is_accounted_for():
    size, multiplier, divisor = 40_000, 1.7, 25
    total = torch.full((size,), 3.0 * BOUND, dtype=torch.float64)
    found = noisy_mean(total, noise_multiplier=multiplier, divisor=divisor, normal=SystemNormal())
    steps = found * BOUND * divisor
    assert (
        steps - steps.round()
    ).abs().max() < 1e-6  # whole steps: no low bits of a float are left
    std = multiplier / divisor
    assert abs(float(found.mean()) - 3 / divisor) < 5 * std / math.sqrt(size)  # 6e-7 to fail
    assert abs(float(found.std()) / std - 1) < 5 / math.sqrt(2 * size)


def test_the_average_is_warmed_up_as_the_paper_writes():
    average = {"w": torch.tensor([1.0])}
    expected = 1.0
    for step, value in enumerate((2.0, 3.0, 5.0)):
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        average = averaged(average, {"w": torch.tensor([value])}, 0.15, step)
        assert float(average["w"]) == pytest.approx(expected, rel=1e-6)
    assert float(averaged(average, {"w": torch.tensor([7.0])}, 0.0, 9)["w"]) == 7.0


def test_every_view_is_a_crop_of_the_reflected_image():
    images, _ = world(3)
    found = draw_views(
        images, multiplicity=30, pad=2, flip=True, rng=torch.Generator().manual_seed(0)
    )
    assert found.shape == (3, 30, 1, 8, 8)
    for image, views in zip(images.numpy(), found.numpy(), strict=True):
        padded = np.pad(image[0], 2, mode="reflect")
        crops = [padded[i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        legal = {c.tobytes() for crop in crops for c in (crop, np.ascontiguousarray(crop[:, ::-1]))}
        drawn = {view.tobytes() for view in views[:, 0]}
        assert drawn <= legal
        assert len(drawn) > 10
    assert torch.equal(
        draw_views(images, multiplicity=0, pad=2, flip=True, rng=torch.Generator()), images[:, None]
    )


def test_weights_are_standardised_as_in_the_paper():
    torch.manual_seed(0)
    conv = WSConv2d(3, 5, 3, 2)
    torch.nn.init.uniform_(conv.gain, 0.5, 2)
    w = conv.weight.detach().numpy().astype(np.float64)
    for channel, row in enumerate(w):
        scale = 1 / math.sqrt(max(row.size * row.var(), 1e-4))
        wanted = (row - row.mean()) * float(conv.gain[channel].detach()) * scale
        assert np.allclose(conv.standardised()[channel].detach().numpy(), wanted, atol=1e-6)
    assert conv(torch.randn(2, 3, 9, 9)).shape == (2, 5, 5, 5)


def test_wrn_16_4_has_the_papers_layers():
    model = WideResNet(wide_resnet(16, 4))

    def conv(channels, out, size):
        return channels * out * size**2 + 2 * out  # weight, bias and gain

    wanted, channels = conv(3, 16, 3), 16
    for out in (64, 128, 256):
        wanted += 2 * channels + conv(channels, out, 1)  # norm and convolution of the skip
        for before in (channels, out, out, out):
            wanted += 2 * before + conv(before, out, 3)
        channels = out
    wanted += 2 * 256 + 256 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == wanted
    groups = {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {16}
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UsageError, match="depth"):
        wide_resnet(17, 4)


def test_an_images_logits_do_not_depend_on_its_companions():
    model = WideResNet(TINY)
    images, _ = world(6)
    alone = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(model(images), alone, atol=1e-5)


def test_training_without_noise_is_gradient_descent_by_hand():
    config = replace(CONFIG, batch_size=10, multiplicity=0, clip_norm=0.3, ema=0.5)
    images, labels = world(10)
    model = WideResNet(TINY)
    start = weights(model)
    for rescale in (True, False):
        found = train(
            images,
            labels,
            replace(config, rescale=rescale),
            noise_multiplier=1.0,
            probability=1.0,
            start=start,
            speed=Speed(microbatch=3),
            normal=lambda *shape: torch.zeros(shape, dtype=torch.float64),
        )
        params, average = dict(start), dict(start)
        for step in range(config.steps):
            model.load_state_dict(params)
            rows = one_at_a_time(model, images[:, None], labels)
            rows *= (0.3 / rows.norm(dim=1, keepdim=True)).clamp(max=1)
            mean = rows.mean(0) / (0.3 if rescale else 1.0)
            update = unflatten((config.lr * mean).float(), params)
            params = {name: p - update[name] for name, p in params.items()}
            decay = min(0.5, (1 + step) / (10 + step))
            average = {n: decay * average[n] + (1 - decay) * params[n] for n in params}
        for name, p in average.items():
            assert torch.allclose(found[name], p, atol=2e-5), name
        assert any(not torch.allclose(found[name], start[name], atol=1e-3) for name in start)


def to_records(images, labels):
    return [
        Record(image=image, label=str(int(label)))
        for image, label in zip(images.numpy(), labels, strict=True)
    ]


def fit(tmp_path: Path, records, *, name: str = "out", **change):
    values = {
        "classes": ["0", "1", "2"],
        "config": CONFIG,
        "expected_units": 12,
        "budget": PrivacyBudget(epsilon=2.0, delta=1e-5),
        "ledger": Ledger(tmp_path / "ledger.db"),
        "dataset": "test",
        "out": tmp_path / name,
        "speed": Speed(microbatch=12),
    }
    return fit_classifier(records, **{**values, **change})


def test_a_run_is_reserved_spent_and_committed_and_what_is_written_loads(tmp_path):
    images, labels = world(12)
    made = fit(tmp_path, to_records(images, labels))
    event = event_from_json(made.about["event"])
    inner = event.event
    assert (event.count, inner.sampling_probability) == (3, 0.5)
    multiplier = inner.event.noise_multiplier

    def cost(sigma):
        step = dp_event.PoissonSampledDpEvent(0.5, dp_event.GaussianDpEvent(sigma))
        return pld_epsilon([dp_event.SelfComposedDpEvent(step, 3)], 1e-5)

    assert cost(multiplier) <= 2.0 < cost(0.99 * multiplier)
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.account("test").spent_epsilon <= 2.0
    with ledger.open() as chain:
        assert [e.kind for e in chain.entries] == ["cap", "reserve", "spend", "commit"]
    again = PrivateClassifier.load(tmp_path / "out")
    assert torch.equal(again.predict(images), made.predict(images))
    assert again.classes == ["0", "1", "2"]
    with pytest.raises(BudgetRefusedError, match="at most epsilon"):
        fit(tmp_path, to_records(images, labels), name="second")
    assert not (tmp_path / "second").exists()
    (tmp_path / "out" / "classifier.json").write_text("{}")
    with pytest.raises(DataError, match="private classifier"):
        PrivateClassifier.load(tmp_path / "out")


def test_its_certificate_is_signed_and_every_claim_of_it_verifies(tmp_path):
    images, labels = world(12)
    fit(tmp_path, to_records(images, labels))
    out, ledger = tmp_path / "out", tmp_path / "ledger.db"
    claims = {claim.name for claim in verify(out, ledger=ledger)}
    assert {"epsilon (PLD)", "epsilon (Fourier)", "recipe (SHA-256)", "ledger entry"} <= claims
    (commit,) = [e for e in Ledger(ledger).history() if e.kind == "commit"]
    statement = (out / "certificate.json").read_bytes()
    assert commit.body["certificate_sha256"] == hashlib.sha256(statement).hexdigest()
    for name in ("classifier.safetensors", "classifier.json", "certificate.json"):
        good = (out / name).read_bytes()
        for place in (len(good) // 2, len(good) - 9):
            byte = bytes([good[place] ^ 1])
            (out / name).write_bytes(good[:place] + byte + good[place + 1 :])
            with pytest.raises(VerificationError):
                verify(out)
        (out / name).write_bytes(good)
    # Claims that were signed all the same, by an operator who states less than was spent.
    honest = ClassifierCertificate.from_bytes(statement)
    less = honest.event | {"count": 2}
    for lie, word in (
        ({"epsilon": 1.0}, "epsilon"),
        ({"steps": 2, "event": less}, "recipe"),
        ({"bundle_hash": "0" * 64}, "recipe"),
        ({"sampling_probability": 0.25}, "sampling probability"),
        ({"classes": ["0", "1"]}, "classes"),
    ):
        (out / "certificate.json").write_bytes(replace(honest, **lie).signed().to_bytes())
        with pytest.raises(VerificationError, match=word):
            verify(out)


def test_two_runs_share_no_randomness(tmp_path):
    images, labels = world(12)
    first, second = (
        fit(tmp_path, to_records(images, labels), name=f"run{i}", dataset=f"set {i}")
        for i in (0, 1)
    )
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_an_empty_dataset_trains_on_noise_alone(tmp_path):
    made = fit(tmp_path, [])
    assert all(p.isfinite().all() for p in made.model.parameters())


def test_what_is_refused(tmp_path):
    images, labels = world(12)
    records = to_records(images, labels)
    for change, word in (
        ({"expected_units": 5}, "batch_size <= 5"),
        ({"classes": ["0", "1"]}, "class names"),
        ({"budget": PrivacyBudget(epsilon=1, delta=1e-5, adjacency="replace-one")}, "add-remove"),
        ({"budget": PrivacyBudget(epsilon=1, delta=1e-5, unit="user")}, "record"),
        ({"start": {"head.weight": torch.zeros(2, 2)}}, "same network"),
        ({"budget": PrivacyBudget(epsilon=1e-4, delta=1e-9)}, "noise multiplier"),
    ):
        with pytest.raises(UsageError, match=word):
            fit(tmp_path, records, **change)
        assert not (tmp_path / "ledger.db").exists()  # nothing was reserved
    with pytest.raises(UsageError, match="steps >= 1"):
        replace(CONFIG, steps=0)
    with pytest.raises(UsageError, match="stride"):
        replace(TINY, strides=(1,))
    secret = Record(image=records[0].image, label="a secret")
    with pytest.raises(DataError) as told:
        fit(tmp_path, [*records, secret])
    assert "secret" not in str(told.value)
    assert told.value.__cause__ is None
    assert told.value.__context__ is None
    assert not (tmp_path / "out").exists()


def test_it_learns_digits():
    data = load_digits()
    images = torch.from_numpy((data.images / 8 - 1).astype(np.float32))[:, None]
    labels = torch.from_numpy(data.target.astype(np.int64))
    network = replace(TINY, classes=10, stem_width=16, widths=(32,), strides=(2,), blocks=1)
    config = ClassifierConfig(
        network=network, batch_size=300, steps=25, lr=4.0, multiplicity=1, pad=1, flip=False
    )
    found = train(
        images[:1200], labels[:1200], config, noise_multiplier=0.5, probability=0.25,
        speed=Speed(microbatch=150),
    )  # fmt: skip
    model = WideResNet(network)
    model.load_state_dict(found)
    with torch.no_grad():
        accuracy = float((model(images[1200:]).argmax(1) == labels[1200:]).float().mean())
    assert accuracy > 0.5  # chance is 0.1; eight runs lay between 0.71 and 0.84


@pytest.mark.gpu
def test_wrn_16_4_trains_on_a_gpu():
    network = wide_resnet(16, 4, image_shape=(1, 28, 28))
    images, labels = world(64, network)
    config = ClassifierConfig(network=network, batch_size=64, steps=2, multiplicity=16)
    found = train(
        images, labels, config, noise_multiplier=1.0, probability=1.0,
        speed=Speed(microbatch=16, device="cuda"),
    )  # fmt: skip
    assert all(p.isfinite().all() and p.device.type == "cpu" for p in found.values())

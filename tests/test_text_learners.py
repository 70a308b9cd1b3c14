"""The private learners over a language model: the same steps, each document by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hyperdp.budget import PrivacyBudget
from hyperdp.cli._app import app
from hyperdp.errors import DataError, UsageError
from hyperdp.ledger import Ledger
from hyperdp.lora import adapters, attach_peft, load_peft
from hyperdp.private.finetune import FinetuneConfig, finetune_lora, fresh_adapter
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.fit import fit
from hyperdp.private.learners.gradients import per_example_gradients, record_losses
from hyperdp.private.learners.hybrid import fit_hybrid
from hyperdp.private.records import TextRecord
from hyperdp.text_bundle import TextBundle
from hyperdp.text_encoder import PAD
from hyperdp.verification import verify
from tests.private_world import own_keys  # noqa: F401  # every test its own keys
from tests.text_world import LENGTH, TEXTS, text_bundle

BUDGET = PrivacyBudget(epsilon=0.5, delta=1e-4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    return text_bundle(tmp_path_factory.mktemp("texts") / "b")


def settings(**changes) -> FitConfig:
    start = {"method": "dpsgd", "size": 12, "expected_batch": 4, "steps": 3, "rank": 2}
    return FitConfig(**{**start, **changes})


def documents(bundle: TextBundle, texts: list[str]) -> list[TextRecord]:
    return [TextRecord(tokens=bundle.base.tokenizer.encode(text)) for text in texts]


def run(bundle: TextBundle, folder: Path, **changes):
    given = {
        "config": settings(), "budget": BUDGET, "ledger": Ledger(folder / "ledger.db"),
        "out": folder / "out", "dataset": "some mails",
        "pace": Pace(microbatch=4, checkpoint_every=1), **changes,
    }  # fmt: skip
    records = given.pop("records", None) or documents(bundle, [*TEXTS, *TEXTS])
    return fit(records, bundle=bundle, **given)


@pytest.mark.parametrize("method", ["dpsgd", "ffa", "projected", "prism", "anadp"])
def test_every_method_trains_on_documents_and_its_certificate_verifies(method, bundle, tmp_path):
    start = "public-mean" if method == "prism" else "fresh"
    made = run(bundle, tmp_path, config=settings(method=method, start=start, dims=4))
    assert (made.certificate.method, made.certificate.bundle_hash) == (method, bundle.hash)
    verify(tmp_path / "out", ledger=tmp_path / "ledger.db")
    tokens = torch.from_numpy(bundle.base.tokenizer.encode_all(TEXTS)).clamp(min=0)
    with torch.no_grad(), adapters(bundle.base.model, load_peft(tmp_path / "out")):
        hooked = bundle.base.model(input_ids=tokens).logits
    with torch.no_grad():
        stock = attach_peft(bundle.load_base().model, tmp_path / "out")(input_ids=tokens).logits
    torch.testing.assert_close(hooked, stock, rtol=1e-4, atol=1e-4)


def test_a_documents_gradient_is_the_one_it_has_alone(bundle):
    base = bundle.load_base()
    base.model.requires_grad_(False)
    texts = [TEXTS[0], "Rain.", "", TEXTS[3]]  # of different lengths, and one with nothing in it
    tokens = torch.from_numpy(base.tokenizer.encode_all(texts))
    rng = torch.Generator().manual_seed(0)
    weights = fresh_adapter(bundle.hypernetwork.sites, 2, rng)
    for _, b in weights.values():
        b.data.normal_(std=0.1, generator=rng)
    found = per_example_gradients(
        base.model, weights, lambda: record_losses(base, tokens, 1, rng), examples=len(texts)
    )
    for row, ids in enumerate(tokens):
        alone = {n: (a.detach().requires_grad_(), b.detach().requires_grad_())
                 for n, (a, b) in weights.items()}  # fmt: skip
        real = ids[ids >= 0][None]
        if not len(real[0]):
            assert all(not g[row].any() for pair in found.values() for g in pair)
            continue
        with adapters(base.model, alone):
            base.model(input_ids=real, labels=real).loss.backward()  # transformers' own loss
        for name, pair in alone.items():
            for leaf, mine in zip(pair, found[name], strict=True):
                torch.testing.assert_close(leaf.grad[0], mine[row], rtol=1e-3, atol=1e-5)


def test_with_little_noise_it_learns_what_the_documents_say(bundle, tmp_path):
    text = TEXTS[4]
    made = run(
        bundle,
        tmp_path,
        records=documents(bundle, [text] * 64),
        budget=PrivacyBudget(epsilon=200.0, delta=1e-4),
        config=settings(size=64, expected_batch=32, steps=30, clip_norm=0.5, lr=2e-2, average=0.0),
        pace=Pace(microbatch=16),
    )
    mine = torch.from_numpy(bundle.base.tokenizer.encode_all([text]))
    tuning = FinetuneConfig(rank=2, steps=30, batch_size=32, lr=2e-2, ema=0.0, bf16=False)
    free = finetune_lora(bundle.load_base(), bundle.hypernetwork.sites, mine, tuning)
    losses = []
    for weights in ({}, free, made.weights):
        with torch.no_grad(), adapters(bundle.base.model, weights):
            losses.append(float(bundle.base.loss(mine)))
    base, best, private = losses
    assert base - private > 0.25 * (base - best) > 0.02


def test_the_hybrid_releases_and_trains_on_documents(bundle, tmp_path):
    made = fit_hybrid(
        lambda: documents(bundle, [*TEXTS, *TEXTS]),
        bundle=bundle,
        config=settings(method="prism"),
        fraction=0.4,
        budget=BUDGET,
        ledger=Ledger(tmp_path / "ledger.db"),
        out=tmp_path / "run",
        dataset="some mails",
        pace=Pace(microbatch=4),
    )
    assert 0.99 * BUDGET.epsilon < made.fit.certificate.total_epsilon <= BUDGET.epsilon
    for folder in ("release", "adapter"):
        verify(tmp_path / "run" / folder, ledger=tmp_path / "ledger.db")


def test_several_draws_of_a_loss_without_draws_are_refused_before_anything_is_spent(
    bundle, tmp_path
):
    with pytest.raises(UsageError, match="draws=1"):
        run(bundle, tmp_path, config=settings(draws=2))
    assert not (tmp_path / "ledger.db").exists()


def test_records_of_another_form_are_refused_without_a_value(bundle, tmp_path):
    wrong = np.full(LENGTH + 1, PAD, dtype=np.int64)
    with pytest.raises(DataError, match=f"every text .*{LENGTH}"):
        run(bundle, tmp_path, records=[TextRecord(tokens=wrong)])


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "--method", "ffa", "--steps", "2", "--microbatch", "4"],
        ["private", "--refine", "dpsgd", "--steps", "2", "--microbatch", "4"],
    ],
)
def test_the_commands_train_on_jsonl(command, bundle, tmp_path):
    data = tmp_path / "mails.jsonl"
    data.write_text("".join(json.dumps({"mail": text}) + "\n" for text in [*TEXTS, *TEXTS]))
    options = [
        "--bundle", str(bundle.path), "--epsilon", "1", "--delta", "1e-3", "--size", "12",
        "--batch", "4", "--text-column", "mail", "--ledger", str(tmp_path / "l.db"),
        "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, [command[0], str(data), *command[1:], *options])
    assert done.exit_code == 0, (done.output, done.exception)
    adapter = tmp_path / "out" / ("adapter" if command[0] == "private" else "")
    assert (adapter / "adapter_model.safetensors").is_file()
    assert "over the base model in" in done.output.replace("\n", " ")

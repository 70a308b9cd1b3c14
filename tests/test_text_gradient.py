"""φ out of the base's own gradients, and the ρ that reads it: exact, separate, and started well."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from typer.testing import CliRunner

from hyperdp.budget import PrivacyBudget
from hyperdp.cli.pretrain import app as cli
from hyperdp.errors import BundleError, UsageError
from hyperdp.eval.text_study import (
    nats,
    release_documents,
    released_weights,
    to_text_records,
    to_tokens,
)
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import adapters, describe_sites
from hyperdp.mechanism import MechanismSpec
from hyperdp.pretrain import text_forms, text_gradients
from hyperdp.pretrain.text_corpus import SAMPLE, open_text_sample, read_documents
from hyperdp.pretrain.text_forms import draw_form, in_forms
from hyperdp.pretrain.text_gradients import (
    embed_corpus,
    embed_documents,
    start_bases,
    start_scale,
    start_step,
)
from hyperdp.pretrain.text_styles import Made
from hyperdp.pretrain.text_tasks import TextTaskMix, TextTaskSampler, told_words
from hyperdp.private.aggregate import aggregate
from hyperdp.private.embed import BATCH_SIZE, check_independence, embed_batch, weights_hash
from hyperdp.private.workers import Workers
from hyperdp.text_bundle import TextBundle, TextBundleConfig, save_text_bundle
from hyperdp.text_encoder import PAD, GradientEncoder, GradientEncoderConfig
from tests.text_world import LENGTH, TEXTS, family

RANK, BASIS, ENDS = 2, 4, ("o_proj", "down_proj", "lm_head")


def parts(seed: int = 1) -> tuple[GradientEncoder, Hypernetwork]:
    """φ and ρ over the base of `tests.text_world`, untrained."""
    base = family()
    sites = [name for name in base.sites(outlet=True) if name.endswith(ENDS)]
    k = len(sites) * BASIS * RANK
    torch.manual_seed(seed)
    hyper = Hypernetwork(
        HypernetworkConfig(
            embed_dim=k, rank=RANK, basis=BASIS, width=16, depth=1, bottleneck=8, descent=6
        ),
        describe_sites(base.model, sites),
    )
    encoder = GradientEncoder(
        GradientEncoderConfig(vocab_size=base.tokenizer.vocab_size, text_length=LENGTH, embed_dim=k)
    )
    encoder.scale.copy_(torch.rand(k) + 0.5)
    encoder.attach(base.model, hyper)
    return encoder, hyper


def documents(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, family().tokenizer.vocab_size, (count, LENGTH))
    ends = rng.integers(2, LENGTH + 1, (count, 1))
    return np.where(np.arange(LENGTH) < ends, tokens, PAD)


def gradient_bundle(folder: Path) -> TextBundle:
    encoder, hyper = parts()
    base = family()
    return save_text_bundle(
        folder,
        TextBundleConfig(
            name="tiny-gradient",
            family=base.name,
            embed_dim=encoder.config.embed_dim,
            clip_norm=1.0,
            text_length=LENGTH,
            vocab_size=base.tokenizer.vocab_size,
            sites=[site.name for site in hyper.sites],
            encoder_kind="gradient",
            encoder=dataclasses.asdict(encoder.config),
            hypernetwork=dataclasses.asdict(hyper.config),
            public_mean=[0.0] * encoder.config.embed_dim,
            other_task_mean=[0.01] * encoder.config.embed_dim,
        ),
        encoder=encoder,
        hypernetwork=hyper,
        base=base,
        training={},
    )


def test_an_embedding_is_the_scaled_descent_of_each_core_by_another_way():
    # Another way: the weights themselves moved by U M A, one document at a time, in float64.
    encoder, hyper = parts()
    base = family()
    model = base.model.double()
    tied = model.model.embed_tokens.weight  # lm_head shares it, and only the head is adapted
    tokens = torch.from_numpy(documents(5))
    found = encoder(tokens).double()

    def loss(cores: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        changed = {"model.embed_tokens.weight": tied}
        for i, site in enumerate(hyper.sites):
            a, b = hyper.site_weights(i, cores[None].float())
            own = hyper.u[i].double() @ torch.split(cores, hyper.sizes)[i].view(-1, RANK)
            assert torch.allclose(own.float(), b[0], atol=1e-6)
            weight = dict(model.named_modules())[site.name].weight
            changed[f"{site.name}.weight"] = weight + own @ a[0].double()
        length = int((one >= 0).sum())
        logits = functional_call(
            model, changed, kwargs={"input_ids": one[None, : length - 1]}, tie_weights=False
        ).logits[0]
        return torch.nn.functional.cross_entropy(logits, one[1:length])

    for row, one in zip(found, tokens, strict=True):
        cores = torch.zeros(encoder.config.embed_dim, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(cores, one), cores)
        expected = -gradient * encoder.scale.double()
        assert float((row - expected).norm() / expected.norm()) < 1e-5
        # And by differences, along a direction of its own.
        along = torch.randn(len(cores), dtype=torch.float64) * 1e-4
        with torch.no_grad():
            rise = float(loss(along, one) - loss(-along, one)) / 2
        told = float(expected / -encoder.scale.double() @ along)
        assert rise == pytest.approx(told, rel=1e-4, abs=1e-5 * float(along.norm()))


def test_neither_order_companions_nor_threads_change_a_bit():
    encoder, _ = parts()
    tokens = documents(BATCH_SIZE)
    whole = embed_batch(encoder, tokens)
    order = np.random.default_rng(3).permutation(BATCH_SIZE)
    assert np.array_equal(embed_batch(encoder, tokens[order]), whole[order])
    assert np.array_equal(embed_batch(encoder, tokens[:7]), whole[:7])
    others = documents(BATCH_SIZE, 9)
    others[:7] = tokens[:7]
    assert np.array_equal(embed_batch(encoder, others)[:7], whole[:7])
    batches = [tokens, others] * 6  # both at once in one model: a thread sees its own cores alone
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for i, found in enumerate(pool.map(lambda batch: embed_batch(encoder, batch), batches)):
            assert np.array_equal(found[:7], whole[:7])
            assert np.array_equal(found, whole) == (i % 2 == 0)


def test_copies_have_hooks_of_their_own_and_workers_give_the_same_sum(tmp_path: Path):
    bundle = gradient_bundle(tmp_path)
    encoder, tokens = bundle.encoder, documents(5)
    whole = embed_batch(encoder, tokens)
    sent = pickle.loads(pickle.dumps(encoder))  # noqa: S301  # our own
    for made in (copy.deepcopy(encoder), sent):
        assert np.array_equal(embed_batch(made, tokens), whole)
        hooked = made._model.lm_head._forward_hooks.values()
        assert all(hook.asked is made._asked is not encoder._asked for hook in hooked)
    spec = MechanismSpec(embedding_dim=bundle.config.embed_dim, clip_norm=1.0)
    records = to_text_records(torch.from_numpy(documents(70)))
    given = {"bundle": bundle, "spec": spec, "unit": "record", "classes": []}
    here = aggregate(records, **given)
    with Workers(bundle, 2) as workers:
        there = workers.add_up(records, **given)
    assert np.array_equal(there._sums, here._sums) and np.any(here._sums)


def test_what_an_embedding_hangs_on_is_hashed():
    encoder, _ = parts()
    seen = {weights_hash(encoder)}
    encoder._model.model.embed_tokens.weight.data[3, 0] += 1
    seen.add(weights_hash(encoder))
    encoder._bases[0][1][0, 0] += 1
    seen.add(weights_hash(encoder))
    encoder.scale[0] += 1
    seen.add(weights_hash(encoder))
    assert len(seen) == 4


def test_no_place_in_a_batch_changes_a_bit_where_kernels_round_by_place():
    # An odd vocabulary, an even length and rank 2: in one batch, a kernel rounded every second
    # document otherwise, and the trial before a release passed.
    base = family(40)
    base.model.resize_token_embeddings(503, mean_resizing=False)
    hyper = Hypernetwork(
        HypernetworkConfig(
            embed_dim=8, rank=2, basis=4, width=16, depth=1, bottleneck=8, descent=2
        ),
        describe_sites(base.model, ["lm_head"]),
    )
    encoder = GradientEncoder(GradientEncoderConfig(vocab_size=503, text_length=40, embed_dim=8))
    encoder.attach(base.model, hyper)
    tokens = np.random.default_rng(0).integers(0, 503, (BATCH_SIZE, 40))
    whole = embed_batch(encoder, tokens)
    for places in (1, 2, 3, 7):
        moved = embed_batch(encoder, np.roll(tokens, places, 0))
        assert np.array_equal(moved, np.roll(whole, places, 0))


def test_a_damaged_scale_is_refused_before_anything_is_spent(tmp_path: Path):
    for value in (0.0, math.inf):
        bundle = gradient_bundle(tmp_path)
        bundle.encoder.scale.fill_(value)
        with pytest.raises(BundleError, match="finite"):
            check_independence(bundle)


def test_a_document_of_less_than_two_tokens_is_zero_and_needs_no_gradient_mode():
    encoder, _ = parts()
    tokens = documents(3)
    tokens[0], tokens[1, 1:] = PAD, PAD
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = encoder(torch.from_numpy(tokens))
        assert not found.requires_grad
    assert (found[:2] == 0).all() and float(found[2].norm()) > 0


def test_what_is_made_up_is_the_same_on_any_day(monkeypatch: pytest.MonkeyPatch):
    """A corpus of another day would be another corpus, and what was embedded of it worthless."""
    values = Made(3, each=40).values

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2099, 5, 6, tzinfo=tz)

    monkeypatch.setattr("faker.providers.date_time.datetime", Later)
    assert Made(3, each=40).values == values


def test_what_it_lacks_is_named():
    encoder, hyper = parts()
    bare = GradientEncoder(encoder.config)
    with pytest.raises(RuntimeError, match="attach"):
        bare(torch.from_numpy(documents(1)))
    wrong = GradientEncoder(dataclasses.replace(encoder.config, embed_dim=3))
    with pytest.raises(BundleError, match="as many as"):
        wrong.attach(family().model, hyper)
    with pytest.raises(UsageError, match="descent"):
        Hypernetwork(dataclasses.replace(hyper.config, embed_dim=3), hyper.sites)
    with pytest.raises(UsageError, match="direct"):
        Hypernetwork(dataclasses.replace(hyper.config, direct=True), hyper.sites)


def test_a_bundle_comes_back_whole_and_holds_its_base_once(tmp_path: Path):
    made = gradient_bundle(tmp_path)
    assert set(load_file(tmp_path / "encoder.safetensors")) == {"scale"}
    check_independence(made)
    # Rounded to half precision on the way, so not to the bit.
    tokens, (fresh, _) = documents(4), parts()
    before, after = embed_batch(fresh, tokens), embed_batch(made.encoder, tokens)
    assert np.linalg.norm(before - after) < 0.02 * np.linalg.norm(before)


def test_a_release_of_it_becomes_an_adapter_that_helps_its_documents(tmp_path: Path):
    bundle = gradient_bundle(tmp_path)
    tokens = to_tokens(bundle, [TEXTS[0], TEXTS[1]] * 500)
    # The untrained base's gradients are small: the longest step that helps, and C as they are.
    means = torch.from_numpy(embed_batch(bundle.encoder, tokens[:2].numpy()))
    bundle.config = dataclasses.replace(bundle.config, clip_norm=float(means.norm(dim=1).max()))
    start_step(bundle.base, bundle.encoder, bundle.hypernetwork, means, lambda _: tokens[:2, None])
    bundle.hypernetwork.log_std.fill_(3.0)  # this world knows no noise worth shrinking for
    made = release_documents(bundle, tokens, PrivacyBudget(epsilon=4.0, delta=1e-5))
    weights = released_weights(bundle, made)
    assert nats(bundle, weights, tokens[:2]) < nats(bundle, {}, tokens[:2]) - 0.005


def test_untrained_it_takes_one_step_and_noise_shortens_it():
    _, hyper = parts()
    with torch.no_grad():
        hyper.log_std.fill_(math.log(0.1))
        mean = torch.randn(2, hyper.config.embed_dim) * 0.1
        quiet, loud = (hyper(mean, torch.full((2,), level))["lm_head"][1] for level in (1e-6, 10.0))
        u, cores = hyper.u[-1], torch.split(mean, hyper.sizes, 1)[-1].view(2, -1, RANK)
    torch.testing.assert_close(quiet, u @ cores, rtol=1e-3, atol=1e-5)
    assert float(loud.norm()) < 1e-2 * float(quiet.norm())
    assert not any(p.requires_grad for p in (*hyper.a, *hyper.u))


def test_bases_hold_more_of_the_gradients_than_random_ones():
    encoder, hyper = parts()
    base, tokens = family(), documents(96)
    norm = embed_documents(encoder_over(base, hyper), tokens).norm(dim=1).mean()
    groups = [np.arange(i, i + 8) for i in range(0, 96, 8)]
    start_bases(base, hyper, tokens, groups)
    for u in hyper.u:
        torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1]), rtol=0, atol=1e-4)
    after = embed_documents(encoder_over(base, hyper), tokens).norm(dim=1).mean()
    assert float(after) > 1.2 * float(norm)
    start_scale(encoder, tokens, clip_norm=2.0)
    assert float(embed_documents(encoder, tokens).norm(dim=1).median()) == pytest.approx(2, rel=0.1)


def encoder_over(base: object, hyper: Hypernetwork) -> GradientEncoder:
    encoder, _ = parts()
    encoder.scale.fill_(1.0)
    encoder.attach(base.model, hyper)  # type: ignore[attr-defined]
    return encoder


def test_the_step_is_the_best_of_those_tried():
    encoder, hyper = parts()
    base = family()
    tokens = torch.from_numpy(documents(64)).view(8, 8, LENGTH)
    means = torch.stack([encoder(own).mean(0) for own in tokens]).detach()
    best = start_step(base, encoder, hyper, means, lambda part: tokens[part])
    ratio = hyper.log_step.detach().exp() / encoder.scale
    assert float(ratio.std()) < 1e-5
    for factor in (0.5, 2.0):
        with torch.no_grad():
            hyper.log_step.add_(math.log(factor))
            with adapters(base.model, hyper(means, torch.full((8,), 2e-3))):
                assert float(base.loss(tokens.flatten(0, 1)).mean()) >= best - 1e-6
            hyper.log_step.sub_(math.log(factor))


def test_the_corpus_is_embedded_once_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch):
    encoder, _ = parts()
    tokens = documents(70)
    monkeypatch.setattr("hyperdp.pretrain.text_gradients.PART", 32)
    asked = []
    real = embed_documents

    def counted(encoder, tokens):
        asked.append(len(tokens))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(encoder, tokens)

    monkeypatch.setattr("hyperdp.pretrain.text_gradients.embed_documents", counted)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(encoder, tokens, 1.0, tmp_path)
    table = embed_corpus(encoder, tokens, 1.0, tmp_path)
    assert asked == [32, 32, 32, 6]  # the first part was not done again
    found = real(encoder, tokens)
    clipped = found * (1 / found.norm(dim=1, keepdim=True).clamp(min=1))
    torch.testing.assert_close(table.float(), clipped, rtol=2e-3, atol=1e-3)
    embed_corpus(encoder, tokens, 1.0, tmp_path)
    assert len(asked) == 4
    encoder.scale.mul_(2)
    embed_corpus(encoder, tokens, 1.0, tmp_path)
    assert len(asked) == 7
    encoder._model.lm_head.weight.data.mul_(1.5)  # another base
    embed_corpus(encoder, tokens, 1.0, tmp_path)
    embed_corpus(encoder, tokens, 0.5, tmp_path)
    assert len(asked) == 13


def test_forms_are_drawn_once_and_kept_for_all_their_documents():
    plain = read_documents(SAMPLE)
    assert len(plain) == len(open_text_sample())
    made = in_forms(plain, count=12, each=6, seed=5)
    assert made == in_forms(plain, count=12, each=6, seed=5)
    assert len(made) == 72 and len({one.topic for one in made}) == 12
    assert {one.topic for one in made if one.held_out} == {"form/000", "form/006"}
    words = Made(0, each=20)
    form = draw_form(words, ["the", "of", "and"], np.random.default_rng(4))
    always = dataclasses.replace(form, heading=1.0, quoted=1.0, footed=1.0, instead={"a": "zzz"})
    text = always.write(["a b c d e f g h", "i j k l"], words, np.random.default_rng(0))
    assert text.endswith("\n".join(always.footer))
    assert all(key + always.join in text for key in always.keys)
    assert always.prefix in text and "zzz" in text.lower()


def test_tasks_to_tune_on_are_of_forms_and_passages_that_no_training_has(tmp_path, monkeypatch):
    plain = [
        dataclasses.replace(one, topic=f"fortunes/{one.topic}") for one in read_documents(SAMPLE)
    ]
    monkeypatch.setattr(text_forms, "wide_documents", lambda: plain)
    words = ["tasks", "--texts", "-n", "2", "--records", "5", "--forms", "3", "-o", str(tmp_path)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    written = {path.stem: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert {name: len(lines) for name, lines in written.items()} == {"forms-3-0": 5, "forms-3-1": 5}
    tasks = text_forms.unseen_forms(2, 5, forms=3)
    assert {n: [json.loads(line)["text"] for line in t] for n, t in written.items()} == tasks
    drawn = in_forms(plain, count=36, each=2, seed=text_forms.TASK_SEED)
    form_of = {one.text: one.topic for one in drawn if one.held_out}
    assert [form_of[text] for text in tasks["forms-3-1"]] == [
        f"form/{i:03d}" for i in (18, 24, 30, 18, 24)
    ]
    assert not form_of.keys() & {one.text for one in in_forms(plain, count=36, each=2)}
    others = text_forms.unseen_forms(2, 5, forms=3, seed=1)
    assert not others.keys() & tasks.keys()  # files of one seed do not take another's place
    assert not {*others["forms-3-seed1-0"]} & {*tasks["forms-3-0"]}


def test_a_start_is_taken_again_unless_rho_has_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, whole, begun = family(), open_text_sample(), []
    some = np.arange(0, len(whole), 12)
    parts_of = {name: getattr(whole, name)[some] for name in ("topic", "author", "split")}
    documents = [whole.documents[i] for i in some]
    corpus = dataclasses.replace(whole, documents=documents, **parts_of)
    tokens = base.tokenizer.encode_all(corpus.documents)
    sampler = TextTaskSampler(corpus, told_words(tokens), 0, TextTaskMix())
    monkeypatch.setattr(text_gradients, "TASKS", 4)
    monkeypatch.setattr(text_gradients, "MOST_DOUBLINGS", 1)
    real = text_gradients.start_bases
    monkeypatch.setattr(text_gradients, "start_bases", lambda *a: (begun.append(1), real(*a)))

    def start(descent: int) -> Hypernetwork:
        encoder, plain = parts()
        config = dataclasses.replace(plain.config, descent=descent)
        hyper = Hypernetwork(config, plain.sites)
        text_gradients.start_gradients(
            base, encoder, hyper, corpus, tokens,
            sampler=sampler, support=8, clip_norm=1.0, folder=tmp_path,
        )  # fmt: skip
        return hyper

    first, again = start(6).state_dict(), start(6).state_dict()
    assert len(begun) == 1
    kept = ("a.", "u.", "log_std", "log_step", "inward.")
    assert all(torch.equal(first[n], again[n]) for n in first if n.startswith(kept))
    assert start(5).inward.weight.shape[0] == 5 and len(begun) == 2

"""The public stage of text: corpus, tasks, and training that stops and goes on."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.errors import UsageError
from hyperdp.pretrain.recipe import open_recipe_texts, read_recipe
from hyperdp.pretrain.text_base import TextBaseConfig, tokenise, train_text_base
from hyperdp.pretrain.text_corpus import Document, gather, open_text_sample, to_corpus
from hyperdp.pretrain.text_hyper import TextHyperConfig, train_text_hyper
from hyperdp.pretrain.text_registers import changelogs, gather_registers, manuals
from hyperdp.pretrain.text_sources import (
    CHARACTERS,
    EACH,
    LEAST,
    MOST,
    gather_sources,
    passages,
)
from hyperdp.pretrain.text_start import MEDIAN_NORM, start_encoder, token_vectors
from hyperdp.pretrain.text_step import WordForetelling
from hyperdp.pretrain.text_styles import STYLES, in_styles
from hyperdp.pretrain.text_tasks import TextRowSampler, TextTaskMix, TextTaskSampler
from hyperdp.pretrain.values import build
from hyperdp.text_encoder import PAD, build_text_encoder
from tests.text_world import tokenizer

SAMPLE = open_text_sample()


def recipe(name: str, cls: type, kind: str, steps: int, **more):
    values = read_recipe(name, kind)
    open_recipe_texts(values)
    values["loop"] |= {"steps": steps, "warmup": 1, "validate_every": steps, "checkpoint_every": 2}
    return build(cls, values | more)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_text_base(recipe("text-toy-base", TextBaseConfig, "base", 24), folder, SAMPLE)
    return folder


def fake_packages(folder: Path) -> tuple[Path, Path]:
    fortunes, brown = folder / "fortunes", folder / "brown"
    fortunes.mkdir()
    brown.mkdir()
    for topic in ("science", "pets", "startrek", "ethnic"):
        (fortunes / topic).write_text(f"about {topic}\n%\nshared by science and pets\n%\n")
        (fortunes / f"{topic}.dat").write_bytes(b"\xff")
    for name in ("ca01", "cj01", "cp01"):
        (brown / name).write_text(f"\tWords/nn of/in {name}/nn ./.\n" * 20)
    return fortunes, brown


def test_private_topics_and_genres_never_enter_the_corpus(tmp_path: Path):
    corpus = to_corpus(gather(*fake_packages(tmp_path)))
    assert corpus.topics == ["brown/a", "fortunes/pets", "fortunes/startrek"]
    together = " ".join(corpus.documents)
    assert "shared by science" not in together and "cj01" not in together
    held_out = {corpus.topics[t] for t in corpus.topic[corpus.split == 1]}
    assert held_out == {"fortunes/startrek"}


def test_a_package_that_is_not_installed_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="make texts"):
        gather(tmp_path / "nothing", tmp_path)


def test_no_document_of_a_task_is_in_support_and_queries():
    tokens = tokenise(SAMPLE, tokenizer(32))
    numbered = tokens.copy()
    numbered[:, 0] = np.arange(len(tokens))  # so that every document can be told
    for mix in (TextTaskMix(), TextTaskMix(mixture=1.0), TextTaskMix(mixture=1.0, most=6)):
        sampler = TextTaskSampler(SAMPLE, numbered, 0, mix)
        rng = torch.Generator().manual_seed(0)
        support, queries = sampler.draw(40, 30, 8, rng)
        assert support.shape == (40, 30, 32) and queries.shape == (40, 8, 32)
        for s, q in zip(support[..., 0], queries[..., 0], strict=True):
            assert not set(s.tolist()) & set(q.tolist())
        assert (SAMPLE.split[support[..., 0].flatten()] == 0).all()


def test_tasks_are_of_one_topic_unless_they_are_mixed():
    tokens = tokenise(SAMPLE, tokenizer(16))
    tokens[:, 0] = np.arange(len(tokens))
    plain = TextTaskMix(topic=1, author=0, cluster=0, everything=0, mixture=0)
    for mix, most in ((plain, 1), (dataclasses.replace(plain, mixture=1.0), 2)):
        sampler = TextTaskSampler(SAMPLE, tokens, 0, mix)
        support, queries = sampler.draw(20, 20, 6, torch.Generator().manual_seed(1))
        rows = torch.cat([support, queries], 1)[..., 0].numpy()
        kinds = [len(np.unique(SAMPLE.topic[row])) for row in rows]
        assert max(kinds) == most


def test_a_mixture_has_as_many_kinds_as_the_recipe_lets_it():
    tokens = tokenise(SAMPLE, tokenizer(16))
    tokens[:, 0] = np.arange(len(tokens))
    mix = TextTaskMix(topic=1, author=0, cluster=0, everything=0, mixture=1.0, most=4)
    sampler = TextTaskSampler(SAMPLE, tokens, 0, mix)
    support, _ = sampler.draw(200, 40, 6, torch.Generator().manual_seed(2))
    kinds = [len(np.unique(SAMPLE.topic[row])) for row in support[..., 0].numpy()]
    assert max(kinds) >= 3 and max(kinds) <= 4 and min(kinds) <= 2


def test_unread_topics_are_a_kind_of_their_own():
    renamed = [f"form/{name}" if i % 2 else name for i, name in enumerate(SAMPLE.topics)]
    corpus = dataclasses.replace(SAMPLE, topics=renamed)
    tokens = tokenise(corpus, tokenizer(16))
    tokens[:, 0] = np.arange(len(tokens))
    mix = TextTaskMix(topic=0, author=0, cluster=0, unread=1, everything=0, mixture=0)
    sampler = TextTaskSampler(corpus, tokens, 0, mix)
    support, queries = sampler.draw(40, 20, 6, torch.Generator().manual_seed(3))
    rows = torch.cat([support, queries], 1)[..., 0].numpy()
    names = {renamed[topic] for topic in corpus.topic[rows].flatten()}
    assert names and all(name.startswith("form/") for name in names)
    # A corpus without any is drawn from as before, whatever the weight.
    plain = TextTaskSampler(SAMPLE, tokens, 0, dataclasses.replace(mix, topic=1))
    assert plain.draw(2, 20, 6, torch.Generator().manual_seed(3))[0].shape == (2, 20, 16)


def test_sources_are_passages_of_installed_files():
    documents = gather_sources()
    assert documents == gather_sources()
    by_topic = defaultdict(list)
    for one in documents:
        by_topic[one.topic].append(one)
    held_out = [topic for topic, own in sorted(by_topic.items()) if own[0].held_out]
    assert len(held_out) == -(-len(by_topic) // 6)
    for topic, own in by_topic.items():
        assert topic.startswith("source/") and LEAST <= len(own) <= EACH
        assert len({one.text for one in own}) == len(own)
        assert len({one.held_out for one in own}) == 1
        assert all(CHARACTERS // 4 <= len(one.text) <= CHARACTERS for one in own)
    endings = Counter(topic.rsplit(".", 1)[1] for topic in by_topic)
    assert max(endings.values()) <= MOST and len(endings) > 10
    # They stand so in the package's own files.
    topic = next(name for name in sorted(by_topic) if re.match(r"source/numpy/\w+\.py$", name))
    folder = Path(np.__file__).parent / topic.split("/")[2].removesuffix(".py")
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("**/*.py")]
    assert all(any(one.text in text for text in texts) for one in by_topic[topic])


def test_a_passage_is_neighbouring_lines():
    text = "\n".join(f"line {i} of a file that is long enough to be cut" for i in range(90))
    found = passages(text, 12, np.random.default_rng(0))
    assert 0 < len(found) <= 12 and all(one in text for one in found)
    assert passages("", 5, np.random.default_rng(0)) == []
    assert passages("x", 5, np.random.default_rng(0)) == []  # too short


def test_rows_are_half_uniform_over_topics():
    sampler = TextRowSampler(SAMPLE, 1)
    rows = sampler.draw(4000, torch.Generator().manual_seed(0))
    assert (SAMPLE.split[rows] == 1).all()
    share = np.bincount(SAMPLE.topic[rows], minlength=len(SAMPLE.topics)) / 4000
    size = np.bincount(SAMPLE.topic[SAMPLE.split == 1], minlength=len(SAMPLE.topics))
    expected = 0.5 * size / size.sum() + 0.5 * (size > 0) / (size > 0).sum()
    assert np.abs(share - expected).max() < 0.04  # five standard errors


def test_foretelling_words_is_a_mean_over_documents():
    words = WordForetelling(3, 5)
    tokens = torch.tensor([[[1, 1, 1, 1], [2, -1, -1, -1]]])
    with torch.no_grad():
        words.head.bias.copy_(torch.log(torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])))
        found = float(words(torch.randn(1, 3), tokens))
    assert found == pytest.approx(-(np.log(0.2) + np.log(0.4)) / 2, rel=1e-5)


def test_the_base_learns_and_stock_transformers_has_its_tokenizer(base_folder: Path):
    log = [json.loads(line) for line in (base_folder / "log.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in log if "validation_loss" in row]
    assert losses[-1] < np.log(512) - 0.2  # a uniform guess over 512 tokens
    assert (base_folder / "tokenizer.json").is_file()


def test_a_stopped_training_goes_on_to_the_same_bundle(base_folder: Path, tmp_path: Path):
    def config(steps: int) -> TextHyperConfig:
        # A schedule that does not depend on the number of steps, so that the two can be compared.
        made = recipe("text-toy", TextHyperConfig, "hyper", steps, base=str(base_folder))
        return dataclasses.replace(made, loop=dataclasses.replace(made.loop, lr_end=1.0))

    whole = train_text_hyper(config(4), tmp_path / "whole", SAMPLE)
    train_text_hyper(config(2), tmp_path / "parts", SAMPLE)
    parts = train_text_hyper(config(4), tmp_path / "parts", SAMPLE)
    for a, b in ((whole.encoder, parts.encoder), (whole.hypernetwork, parts.hypernetwork)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"val_base", "val_public_mean", "val_other_task", "val_hyper"} <= set(log[-1])


def test_a_frozen_start_is_kept_and_comes_back_after_a_stop(base_folder: Path, tmp_path: Path):
    def config(steps: int) -> TextHyperConfig:
        made = recipe("text-toy", TextHyperConfig, "hyper", steps, base=str(base_folder))
        loop = dataclasses.replace(made.loop, lr_end=1.0)
        return dataclasses.replace(
            made, loop=loop, start_documents=300, encoder_lr=0.0, trunk_lr=0.0, support_grad=0
        )

    made = [train_text_hyper(config(steps), tmp_path, SAMPLE) for steps in (2, 4)]
    first, then = (bundle.encoder.state_dict() for bundle in made)
    assert all(torch.equal(value, then[name]) for name, value in first.items())
    assert float(made[0].public_mean.norm()) < 0.3  # about centred; topics count alike in it
    rho = [bundle.hypernetwork for bundle in made]
    assert torch.equal(rho[0].inlet.weight, rho[1].inlet.weight)
    assert not torch.equal(rho[0].head.weight, rho[1].head.weight)


def test_sites_can_be_chosen_as_peft_names_them(base_folder: Path, tmp_path: Path):
    config = recipe(
        "text-toy", TextHyperConfig, "hyper", 1, base=str(base_folder), sites=["q_proj", "v_proj"]
    )
    bundle = train_text_hyper(config, tmp_path, SAMPLE)
    assert {site.rsplit(".", 1)[1] for site in bundle.config.sites} == {"q_proj", "v_proj"}


def test_a_started_encoder_is_centred_and_tells_topics_apart():
    own = tokenizer(64)
    tokens = tokenise(SAMPLE, own)[:600]
    topic = SAMPLE.topic[:600]
    values = {"vocab_size": own.vocab_size, "text_length": 64, "embed_dim": 8, "width": 16}
    apart = {}
    for started in (False, True):
        torch.manual_seed(0)
        encoder = build_text_encoder("tokens", values)
        if started:
            start_encoder(encoder, tokens)
        with torch.no_grad():
            z = encoder(torch.from_numpy(tokens))
        centre = z.mean(0)
        means = torch.stack([z[topic == t].mean(0) for t in np.unique(topic)])
        apart[started] = float((means - centre).norm(dim=1).mean() / centre.norm())
    assert float(z.norm(dim=1).median()) == pytest.approx(MEDIAN_NORM, rel=1e-3)
    assert float(centre.norm()) < 1e-3
    assert apart[True] > 10 * apart[False]
    assert (encoder(torch.full((1, 64), PAD)) == 0).all()


def test_token_vectors_are_the_best_of_their_rank():
    own = tokenizer(32)
    tokens = own.encode_all(
        [f"{a} {b}" for a in ("rain", "boat") for b in ("offer", "noise", "sum")]
    )
    vectors = token_vectors(tokens, own.vocab_size, 3).double().numpy()
    counts = np.stack([np.bincount(row[row >= 0], minlength=own.vocab_size) for row in tokens])
    rarity = np.log((1 + len(tokens)) / (1 + (counts > 0).sum(0)))
    weighted = np.log1p(counts * rarity)
    right = np.linalg.svd(weighted)[2][:3].T * rarity[:, None]  # the whole matrix, another routine
    expected = right @ right.T / (right**2).mean()
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-4)


def test_registers_are_whole_lines_of_long_texts_and_some_are_held_out(tmp_path: Path):
    line = "five words and number {} here"
    long = {
        f"changelog/{c}": "\n".join(line.format(f"{c}{i}") for i in range(400)) for c in "abcdefg"
    }
    found = gather_registers(
        {**long, "changelog/short": "a few words", "twice": long["changelog/a"]}
    )
    assert {one.topic for one in found} == set(long)
    assert {one.topic for one in found if one.held_out} == {"changelog/a", "changelog/g"}
    for topic, text in long.items():
        mine = [one.text for one in found if one.topic == topic]
        assert text.startswith("\n".join(mine)) and len(mine) == len(set(mine))
        assert all(45 <= len(one.split()) < 51 for one in mine)


def test_changelogs_are_read_from_debians_place(tmp_path: Path):
    (tmp_path / "long").mkdir()
    (tmp_path / "short").mkdir()
    text = "\n".join(f"  * Fix bug {i} of the tests, thanks to nobody" for i in range(300))
    (tmp_path / "long" / "changelog.Debian.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "short" / "changelog.Debian.gz").write_bytes(gzip.compress(b"  * One."))
    assert changelogs(tmp_path) == {"changelog/long": text}


def test_the_outlet_is_a_site_where_it_is_asked_for(base_folder: Path, tmp_path: Path):
    config = recipe("text-toy", TextHyperConfig, "hyper", 1, base=str(base_folder), outlet=True)
    bundle = train_text_hyper(config, tmp_path, SAMPLE)
    assert bundle.config.sites[-1] == "lm_head"


def test_manuals_are_long_files_and_short_ones_joined_by_kind(tmp_path: Path):
    folder = tmp_path / "mailer"
    (folder / "html").mkdir(parents=True)
    long = "\n".join(f"line {i} tells of an option, and what it is for" for i in range(300))
    (folder / "faq.txt").write_text(long)
    (folder / "NEWS.gz").write_bytes(gzip.compress(long.encode()))
    (folder / "changelog.gz").write_bytes(gzip.compress(long.encode()))
    (folder / "tool.pl").write_text(long)
    for i in range(3):
        (folder / "html" / f"{i}.html").write_text(f"<p>{i}</p>")
    found = manuals(tmp_path, ("mailer",))
    assert found["manual/mailer.faq.txt"] == found["manual/mailer.NEWS.gz"] == long
    assert found["manual/mailer.html"] == "<p>0</p>\n<p>1</p>\n<p>2</p>"
    assert len(found) == 3
    with pytest.raises(UsageError, match="make texts"):
        manuals(tmp_path, ("absent",))


def test_styles_make_topics_of_their_own_from_the_same_passages():
    plain = [
        Document(text=f"passage {i} of  {topic}\nhas words such as word{i}", topic=topic,
                 held_out=topic == "b")
        for topic, count in (("a", 30), ("b", 24), ("few", 23))
        for i in range(count)
    ]  # fmt: skip
    made = in_styles(plain, each=5)
    assert made == in_styles(plain, each=5) != in_styles(plain, each=5, seed=1)
    assert {one.topic for one in made} == {f"{s}/{t}" for s in STYLES for t in "ab"}
    assert len(made) == 5 * 4 * 2
    for one in made:
        assert one.held_out == one.topic.endswith("/b") and one not in plain
        assert sum(f"of {one.topic[-1]}" in part for part in one.text.split("passage")) >= 1
    of_style = {style: [m.text for m in made if m.topic.startswith(style)] for style in STYLES}
    assert all("\n> " in text or text.startswith("> ") for text in of_style["reply"])
    assert all("<font face=" in text for text in of_style["page"])
    assert all(text.splitlines()[0].isupper() for text in of_style["notice"])
    assert all(text.count("\n\n") >= 3 for text in of_style["items"])

"""Private sets of documents, the text bench and the demo of mail, on an untrained bundle."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdp.cli._app import run
from hyperdp.errors import DataError, UsageError
from hyperdp.eval import near_copies, text_bench, text_demo, text_sets
from hyperdp.eval.hybrids import hybrid_records
from hyperdp.eval.mails import mail_body
from hyperdp.eval.results import append_rows, read_rows
from hyperdp.eval.rivals import fit_records
from hyperdp.eval.text_recipe import RECIPES, read_text_recipe, text_recipe_path
from hyperdp.eval.text_sets import load_text_set
from hyperdp.eval.text_split import TextSet, split_documents
from hyperdp.eval.text_study import (
    best_lora_weights,
    lora_weights,
    nats,
    recovered,
    release_documents,
    to_tokens,
)
from hyperdp.private.finetune import FinetuneConfig
from hyperdp.private.learners.config import FitConfig
from hyperdp.text_bundle import TextBundle
from tests.text_world import TEXTS, text_bundle
from tests.worlds import tiny_bundle

DOCUMENTS = [f"{text} {i}" for i in range(20) for text in TEXTS]
RECIPE = """
kind = "text"
bench = "toy"
bundle = "{bundle}"
private_sets = ["toy"]
n = [40, 5000]
epsilon = [8.0]
delta = 1e-5
seeds = [0, 1]
{more}
[finetune]
rank = 2
steps = 4
batch_size = 4
bf16 = false
"""


def toy(edition: int = 1) -> TextSet:
    return split_documents("toy", "Toy sentences.", DOCUMENTS)


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setitem(text_sets.TEXT_SETS, "toy", toy)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TextBundle:
    return text_bundle(tmp_path_factory.mktemp("bench") / "b")


def recipe(folder: Path, bundle: TextBundle, more: str = "") -> Path:
    path = folder / "toy.toml"
    path.write_text(RECIPE.format(bundle=bundle.path, more=more))
    return path


def test_a_split_keeps_every_document_once_and_the_parts_apart():
    data = split_documents("x", "y", [*DOCUMENTS, DOCUMENTS[0], "  ", ""])
    assert sorted(data.pool + data.reference) == sorted(DOCUMENTS)
    assert data.documents(9, seed=3) == data.documents(20, seed=3)[:9]
    with pytest.raises(UsageError):
        data.documents(len(data.pool) + 1, seed=0)


def test_a_mail_is_its_body_as_a_reader_sees_it():
    plain = "From a@b Thu\nSubject: s\nX-Secret: header\n\nHello  there\n\n\n\nBob\n"
    assert mail_body(plain) == "Hello there\n\nBob"
    html = (
        "Content-Type: text/html; charset=nonsense\nContent-Transfer-Encoding: quoted-printable\n\n"
        "<html><style>p {color: red}</style><p>Caf=E9 &amp; more</p><!-- no --></html>"
    )
    assert mail_body(html) == "Café & more"
    both = (
        'MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary="x"\n\n'
        "--x\nContent-Type: text/html\n\n<b>marked</b>\n"
        "--x\nContent-Type: text/plain\n\nplain\n--x--\n"
    )
    assert mail_body(both) == "plain"
    assert mail_body("Content-Type: image/gif\nContent-Transfer-Encoding: base64\n\nR0lGOD==") == ""


def test_a_mail_keeps_the_characters_that_it_came_with():
    head = "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding:"
    for coding, text in (("8bit", "now\ufffds \u4e2d"), ("7bit", "na\u00efve"), ("", "\u2019s")):
        assert mail_body(f"{head} {coding}\n\n{text}\n") == text
    assert mail_body(f"{head} 8bit\n\nnow\u2019s\n", escaped=True) == r"now\u2019s"  # older rows
    assert mail_body(f"{head} quoted-printable\n\nF\ufffda=E7o\n") == "F?aço"  # lost before it came
    assert mail_body(f"{head} base64\n\nQ2Fm6Q==\n") == "Café"


UNLISTED = "unlisted-1"  # stands for every group of mails that is in no list, the reserved one too


def test_no_group_but_the_listed_ones_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "npm" / "node_modules" / "@stdlib" / "datasets-spam-assassin" / "data"
    for group in (*text_sets.MAIL_GROUPS, UNLISTED):
        (data / group).mkdir(parents=True)
        for i in range(5):
            raw = f"Subject: s\n\nbody {i} of {group}"
            (data / group / f"{i}.json").write_text(json.dumps({"text": raw}))
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path))
    found = load_text_set("spam-assassin")
    together = " ".join(found.pool + found.reference)
    assert "easy-ham-2" in together and UNLISTED not in together and "Subject" not in together
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path / "none"))
    with pytest.raises(DataError, match="make texts"):
        load_text_set("spam-assassin")
    with pytest.raises(UsageError, match="private set"):
        load_text_set(UNLISTED)


def test_nats_are_those_of_all_tokens_together(bundle: TextBundle):
    tokens = to_tokens(bundle, TEXTS[:3])
    total = count = 0.0
    for row in tokens:
        ids = row[row >= 0][None]
        with torch.no_grad():
            loss = bundle.base.model(input_ids=ids, labels=ids).loss  # transformers' own mean
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert nats(bundle, {}, tokens) == pytest.approx(total / count, rel=1e-5)
    assert recovered({"base": 4.0, "lora": 2.0, "hyper": 3.5}, "hyper") == 0.25


def test_the_reference_is_the_lora_that_unread_documents_speak_for(bundle: TextBundle):
    tokens = to_tokens(bundle, TEXTS * 4)
    idle, good, wild = (
        FinetuneConfig(rank=2, steps=8, batch_size=4, lr=lr, bf16=False)
        for lr in (1e-9, 3e-3, 50.0)
    )
    own = lora_weights(bundle, tokens, good, seed=3)
    for trials in ([idle, good, wild], [wild, good, idle], [good]):
        found = best_lora_weights(bundle, tokens, trials, seed=3)
        for site, pair in own.items():
            assert all(torch.equal(a, b) for a, b in zip(found[site], pair, strict=True))


def test_another_search_for_the_reference_is_another_reference(bundle: TextBundle, tmp_path: Path):
    config = read_text_recipe(recipe(tmp_path, bundle))
    more = replace(config, finetune_trials=[{"steps": 3}, {"lr": 1e-4}])
    assert [c.steps for c in more.references()] == [config.finetune.steps, 3, config.finetune.steps]
    names = [text_bench.row_name(bundle, "lora", c, 1) for c in (config, more)]
    assert len(set(names)) == 2
    bases = {text_bench.row_name(bundle, "base", c, 1) for c in (config, more)}
    assert len(bases) == 1


def test_rows_of_other_settings_or_of_another_split_are_other_rows(
    bundle: TextBundle, tmp_path: Path
):
    config = read_text_recipe(recipe(tmp_path, bundle, 'public = "a.jsonl"\n'))
    stepped = replace(config, fits={"dpsgd": FitConfig(size=8, expected_batch=8)})

    def name(method: str, config=stepped, edition: int = 1, **changes):
        return text_bench.row_name(bundle, method, replace(config, **changes), edition)

    faster = {"dpsgd": FitConfig(size=8, expected_batch=8, lr=9.0)}
    assert name("dpsgd") != name("dpsgd", fits=faster)
    assert name("hyper") == name("hyper", fits=faster) != name("hyper", delta=0.1)
    assert name("shared") == name("shared", delta=0.1) != name("shared", public="b.jsonl")
    assert name("reweighted") != name("reweighted", public="b.jsonl")
    for method in ("base", "lora", "public_mean", "hyper", "dpsgd"):
        assert name(method) != name(method, edition=2)
    secrets = {"canaries": 4, "repeats": 3}
    assert name("hyper", **secrets) != name("hyper", **{**secrets, "repeats": 1})
    assert name("lora", **secrets) == name(
        "lora", edition=2, **secrets
    )  # no reference is looked at


def test_a_gain_follows_its_reference_and_is_not_stored(bundle: TextBundle, tmp_path: Path):
    config = read_text_recipe(recipe(tmp_path, bundle))
    rows_at = tmp_path / "rows.jsonl"
    run_bench = lambda: text_bench.run_text_bench(  # noqa: E731
        config, rows_at, lambda *_: lambda *_: None
    )
    first = {(r.method, r.seed): r.value for r in run_bench() if r.metric == "recovered_gain"}
    rows = read_rows(rows_at)
    assert first and not [r for r in rows if r.metric == "recovered_gain"]
    base = next(r.value for r in rows if (r.method, r.metric) == ("base", "nats"))
    better = [
        replace(r, value=base - 2 * (base - r.value)) if (r.method, r.metric) == ("lora", "nats")
        else r for r in rows
    ]  # fmt: skip
    rows_at.unlink()
    append_rows(rows_at, [*better, replace(rows[0], method="hyper", metric="recovered_gain")])
    again = {(r.method, r.seed): r.value for r in run_bench() if r.metric == "recovered_gain"}
    assert again == pytest.approx({key: gain / 2 for key, gain in first.items()})


def test_the_bench_measures_every_cell_once_and_goes_on_where_it_was(
    bundle: TextBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, rows_at, page = recipe(tmp_path, bundle), tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text("<!-- table:toy -->\n<!-- /table:toy -->\n")
    words = ["bench", str(path), "-o", str(rows_at), "--into", str(page)]
    assert run(words) == 0
    config = read_text_recipe(path)
    rows = text_bench.stored_text_rows(config, rows_at, bundle)
    assert [r for r in rows if r.metric != "recovered_gain"] == read_rows(rows_at)
    cells = {(r.method, r.n, r.epsilon, r.seed) for r in rows}
    wanted = {(m, None, None, 0) for m in ("base", "lora", "public_mean")}
    assert cells == wanted | {(m, 40, 8.0, s) for m in ("hyper", "other_task") for s in (0, 1)}
    value = {(r.method, r.seed, r.metric): r.value for r in rows}
    assert value["base", 0, "perplexity"] == pytest.approx(math.exp(value["base", 0, "nats"]))
    gain = (value["base", 0, "nats"] - value["hyper", 1, "nats"]) / (
        value["base", 0, "nats"] - value["lora", 0, "nats"]
    )
    assert value["hyper", 1, "recovered_gain"] == pytest.approx(gain)
    # Base, LoRA with its trials, the public mean without a budget, and what has one.
    assert len({r.base for r in rows}) == 4
    before = rows_at.read_bytes()
    rows_at.write_bytes(b"".join(before.splitlines(keepends=True)[:-2]))  # the last cell is lost
    assert run(words) == 0
    assert len(read_rows(rows_at)) == len(before.splitlines())
    assert run([*words, "--table-only"]) == 0
    assert "| toy | hyper | 40 | 8 |" in page.read_text()
    capsys.readouterr()


def test_public_documents_give_two_more_methods_that_read_the_same_release(
    bundle: TextBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    public = tmp_path / "public.jsonl"
    public.write_text("".join(json.dumps({"text": f"{t} {i}"}) + "\n"
                              for i in range(20) for t in TEXTS))  # fmt: skip
    path = recipe(tmp_path, bundle, f'public = "{public}"')
    little = "steps = {}\nbatch_size = 4\n"
    path.write_text(
        path.read_text().replace("seeds = [0, 1]", "seeds = [0]")
        + f"[shared]\nrank = 2\n{little.format(3)}[reweight]\n{little.format(2)}lr = 1e-2\n"
    )
    made = []

    def spy(*args, **more):
        made.append(args)
        return release_documents(*args, **more)

    monkeypatch.setattr(text_bench, "release_documents", spy)
    assert run(["bench", str(path), "-o", str(tmp_path / "rows.jsonl")]) == 0
    value = {r.method: r.value for r in read_rows(tmp_path / "rows.jsonl") if r.metric == "nats"}
    assert len(made) == 1 and len({value[m] for m in ("base", "hyper", "reweighted", "shared")}) > 3
    assert value["reweighted"] != value["hyper"] and value["shared"] != value["lora"]


def test_there_is_no_gain_without_its_marks(bundle: TextBundle, tmp_path: Path):
    config, rows_at = read_text_recipe(recipe(tmp_path, bundle)), tmp_path / "r.jsonl"
    for methods, gains in ((["hyper"], 0), (["base", "lora"], 2)):
        rows = text_bench.run_text_bench(config, rows_at, lambda *_: lambda *_: None, methods)
        assert len([r for r in rows if r.metric == "recovered_gain"]) == gains


def test_rivals_are_measured_beside_at_the_size_of_their_cell(
    bundle: TextBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def spy(own, records, config, budget, **more):
        asked.append((config.method, config.lr, config.size, len(records), budget.epsilon))
        return fit_records(own, records, config, budget, **more)

    monkeypatch.setattr(text_bench, "fit_records", spy)
    path = recipe(tmp_path, bundle)
    settings = "steps = 2\nexpected_batch = 8\nlr ="
    path.write_text(
        path.read_text().replace("seeds = [0, 1]", "seeds = [0]")
        + f'[fits.dpsgd]\n{settings} 1e-3\n[fits."dpsgd/fast"]\n{settings} 1e-2\n'
    )
    assert run(["bench", str(path), "-o", str(tmp_path / "rows.jsonl")]) == 0
    assert asked == [("dpsgd", lr, 40, 40, 8.0) for lr in (1e-3, 1e-2)]
    stored = text_bench.stored_text_rows(read_text_recipe(path), tmp_path / "rows.jsonl", bundle)
    gains = {r.method: r.value for r in stored if r.metric == "recovered_gain"}
    assert {"dpsgd", "dpsgd/fast"} <= set(gains)
    assert gains["dpsgd"] != gains["dpsgd/fast"]
    path.write_text(path.read_text().replace("[fits.dpsgd]", "[fits.magic]"))
    with pytest.raises(UsageError, match="magic"):
        read_text_recipe(path)


def test_hybrids_are_measured_beside_under_one_budget(
    bundle: TextBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def spy(own, records, config, budget, **more):
        asked.append((config.method, config.fraction, config.size, len(records), budget.epsilon))
        return hybrid_records(own, records, config, budget, **more)

    monkeypatch.setattr(text_bench, "hybrid_records", spy)
    path = recipe(tmp_path, bundle)
    settings = "steps = 2\nexpected_batch = 8\nlr = 1e-2\nfraction ="
    path.write_text(
        path.read_text().replace("seeds = [0, 1]", "seeds = [0]")
        + f'[hybrids.hybrid_dpsgd]\n{settings} 0.5\n[hybrids."hybrid_prism/most"]\n{settings} 0.9\n'
    )
    assert run(["bench", str(path), "-o", str(tmp_path / "rows.jsonl")]) == 0
    assert asked == [("dpsgd", 0.5, 40, 40, 8.0), ("prism", 0.9, 40, 40, 8.0)]
    value = {r.method: r.value for r in read_rows(tmp_path / "rows.jsonl") if r.metric == "nats"}
    assert len({value[m] for m in ("base", "hyper", "hybrid_dpsgd", "hybrid_prism/most")}) == 4
    path.write_text(path.read_text().replace("[hybrids.hybrid_dpsgd]", "[hybrids.dpsgd]"))
    with pytest.raises(UsageError, match="hybrid_dpsgd"):
        read_text_recipe(path)


def test_a_public_task_is_a_set_by_its_file(tmp_path: Path):
    path = tmp_path / "task.jsonl"
    with pytest.raises(DataError, match="--texts"):
        load_text_set(str(path))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    found = load_text_set(str(path))
    assert found.name == str(path) and sorted(found.pool + found.reference) == sorted(DOCUMENTS)
    for name in ("brown-tasks/a.jsonl", str(path)):  # a file, whatever its path begins with
        assert text_sets.edition_of(name, {name: 3}) == found.edition == 1
    path.write_text("".join(json.dumps({"text": f"{i}\u2028b"}, ensure_ascii=False) + "\n"
                            for i in range(40)), encoding="utf-8")  # fmt: skip
    found = load_text_set(str(path))
    assert len(found.pool + found.reference) == 40  # a line ends at a line feed, and nowhere else
    path.write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(DataError, match="KeyError in line 2"):
        load_text_set(str(path))
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="enough for a pool and a reference"):
        load_text_set(str(path))


def test_a_page_keeps_the_sets_that_are_not_asked_for(
    bundle: TextBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(
        text_sets.TEXT_SETS, "other", lambda edition: split_documents("other", "", DOCUMENTS)
    )
    path = recipe(tmp_path, bundle)
    path.write_text(path.read_text().replace('["toy"]', '["toy", "other"]'))
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text("<!-- table:toy -->\n<!-- /table:toy -->\n")
    words = ["bench", str(path), "-o", str(rows), "--into", str(page), "--method", "base"]
    assert run(words) == 0
    both = page.read_text()
    assert "| toy | base" in both and "| other | base" in both
    for more in ([], ["--table-only"]):
        assert run([*words, "--private-set", "toy", *more]) == 0
        assert page.read_text() == both


def test_secrets_are_planted_among_the_documents(bundle: TextBundle, tmp_path: Path):
    path = recipe(tmp_path, bundle, "canaries = 4\ncandidates = 60\nrepeats = 2")
    assert run(["bench", str(path), "-o", str(tmp_path / "rows.jsonl")]) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {r.method for r in rows} == {"base", "lora", "hyper"}
    assert {r.metric for r in rows} == set(text_bench.SECRETS)
    assert all(r.value <= math.log2(61) for r in rows if r.metric == "exposure_max")


def test_a_recipe_says_what_is_wrong_with_it(bundle: TextBundle, tmp_path: Path):
    path = recipe(tmp_path, bundle)
    with pytest.raises(UsageError, match="private sets"):
        read_text_recipe(path, ["other"])
    assert run(["bench", str(path), "--method", "hypr", "-o", str(tmp_path / "no.jsonl")]) == 2
    assert not (tmp_path / "no.jsonl").exists()
    whole = path.read_text()
    path.write_text(whole.replace("seeds = [0, 1]", "seeds = []"))
    with pytest.raises(UsageError, match="one or more of seeds"):
        read_text_recipe(path)
    path.write_text(whole.replace("seeds", "sead"))
    with pytest.raises(UsageError, match="sead"):
        read_text_recipe(path)
    assert text_recipe_path("glyphs-gain") is None
    tiny_bundle(tmp_path / "images")
    with pytest.raises(UsageError, match="of images"):
        text_bench.open_text_bundle(tmp_path / "images")


def test_no_private_reference_opens_as_a_document_of_its_pool():
    same = [f"{' '.join(['The same mail to many'] * 8)} number {i}" for i in range(40)]
    own = [f"{i} words of one's own, and {i} more" for i in range(60)]
    documents = [text for pair in zip(same, own, strict=False) for text in pair] + own[40:]
    plain = split_documents("toy", "", documents)
    apart = split_documents("toy", "", documents, edition=2)
    assert apart.pool == plain.pool and apart.edition == 2 != plain.edition
    assert set(plain.reference) & set(same)  # what a split by document alone lets through
    assert apart.reference == [text for text in plain.reference if text not in same]
    assert near_copies.opening("A, b:  C!") == near_copies.opening("a B c") == ("a", "b", "c")
    for name in text_sets.TEXT_SETS:
        for asked in (1, 2, 3, 4):
            try:
                data = load_text_set(name, asked)
            except DataError:  # without `make texts`
                continue
            assert data.edition == text_sets.edition_of(name, {name: asked})
            if name in text_sets.LABELLED_SETS:
                assert text_sets.load_labelled_set(name, asked).edition == asked
            if data.edition >= 2:
                pool = {near_copies.opening(text) for text in data.pool}
                assert not any(near_copies.opening(text) in pool for text in data.reference)


def test_no_mail_is_held_out_that_half_stands_in_one_of_the_pool():
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 10**6, count))

    own, quoted, others = words(60), words(60), words(30)
    half = f"{quoted[:240]} {own[:140]}"
    third = f"{own} {others} {quoted[:140]}"
    few = "one two three"
    documents = [own, half, third, few, f"On Monday, A wrote: {quoted}"]
    pool = [quoted, others, few, words(60)]
    assert near_copies.without_near_copies(documents, pool) == [own, third, few]
    # By hand: the largest share of a document's runs that one document of the pool has.
    shares = []
    for text in documents:
        runs = {tuple(text.lower().split()[:64][i : i + 5]) for i in range(60)}
        runs = {run for run in runs if len(run) == 5}
        held = [
            sum(" ".join(run) in f" {one.lower()} " for run in runs) / max(len(runs), 1)
            for one in pool
        ]
        shares.append(max(held))
    assert [share < 0.5 for share in shares] == [True, False, True, True, False]
    # In a set: the pool stays as it is, and what is held out of edition 3 is of edition 2.
    mails = [f"{words(40)} {i}" for i in range(300)]
    replies = [f"Somebody wrote on day {i}: {mail}" for i, mail in enumerate(mails)]
    both = [text for pair in zip(mails, replies, strict=True) for text in pair]
    second, third_edition = (split_documents("toy", "", both, edition=e) for e in (2, 3))
    assert third_edition.pool == second.pool and third_edition.edition == 3
    assert {*third_edition.reference} < {*second.reference}
    alone = [t for t in second.reference if not any(t in p or p in t for p in second.pool)]
    assert third_edition.reference == alone


def test_what_half_stands_in_a_public_document_is_in_neither_part():
    rng = np.random.default_rng(1)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 10**6, 12)) for _ in range(200)]
    copied = texts[::5]
    public = [text.replace(" ", "\n\t").upper() for text in copied[:20]]  # other breaks and letters
    public += [f"Somebody said: {' '.join(text.split()[:9])}, and left." for text in copied[20:]]
    before, after = (
        split_documents("toy", "", texts, edition=edition, public=public) for edition in (3, 4)
    )
    assert {*copied} & {*before.pool} and {*copied} & {*before.reference}
    assert {*copied} <= {*before.pool, *before.reference}
    assert after.pool == [text for text in before.pool if text not in copied]
    assert after.reference == [text for text in before.reference if text not in copied]
    assert after.edition == 4


def test_shipped_recipes_name_sets_that_there_are():
    for name in ("text-gain", "text-canaries", "text-tune-rivals", "text-rivals"):
        config = read_text_recipe(RECIPES / f"{name}.toml")
        named = {one for one in config.private_sets if not one.endswith(".jsonl")}
        assert named <= set(text_sets.TEXT_SETS)


def test_the_demo_leads_from_mail_to_messages_and_a_page(
    bundle: TextBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(text_demo, "PRIVATE_SET", "toy")
    monkeypatch.setattr(text_demo.TextDemoConfig, "__init__", _smaller(text_demo.TextDemoConfig))
    out = tmp_path / "demo"
    assert run(["demo", "--text", "--out", str(out), "--epsilon", "0"]) == 2
    assert not out.exists()  # nothing private lies there, and the name is free
    typed = ["demo", "--text", "--bundle", "a bundle", "--epsilon", "8"]
    monkeypatch.setattr(sys, "argv", ["hyperdp", *typed])  # what the page says was typed
    words = ["demo", "--text", "--out", str(out), "--bundle", str(bundle.path)]
    assert run([*words, "--epsilon", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["perplexity"]) == set(text_demo.LABELS)
    page = (out / "report.html").read_text()
    assert "hyperdp demo --text --bundle &#39;a bundle&#39; --epsilon 8" in page
    assert "ε = 8" in page and "do not publish" in page and "http" not in page
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert (out / "messages-hyper.txt").read_text().count("-----") == 9
    assert not any(text in page for text in toy().documents(60, seed=0))
    assert run(words) == 2  # what is there is not overwritten


def _smaller(cls):
    usual = cls.__init__

    def init(self, **values):
        usual(self, **{"n": 60, **values})

    return init

"""From documents to a release and a PEFT adapter, also where hyperdp is not importable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hyperdp.budget import PrivacyBudget
from hyperdp.cli._app import app
from hyperdp.errors import DataError
from hyperdp.ledger import Ledger
from hyperdp.lora import adapters, attach_peft, load_peft
from hyperdp.mechanism import MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.embed import check_independence
from hyperdp.private.emit import emit_adapter
from hyperdp.private.records import Record, TextRecord
from hyperdp.private.release import release
from hyperdp.text_bundle import MODEL, TextBundle
from tests.text_world import DIM, LENGTH, TEXTS, text_bundle
from tests.worlds import tiny_bundle

STOCK = """
import sys
sys.modules["hyperdp"] = None  # an import of it would fail
import numpy as np, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, tokens, out = sys.argv[1:5]
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    np.save(out, model(input_ids=torch.from_numpy(np.load(tokens))).logits.numpy())
"""
SPEC = MechanismSpec(embedding_dim=DIM, clip_norm=1.0, num_classes=1, adjacency="add-remove")


@pytest.fixture(autouse=True)
def own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))


def summed(bundle: TextBundle, texts: list[str]) -> np.ndarray:
    records = [TextRecord(tokens=bundle.base.tokenizer.encode(text)) for text in texts]
    total = aggregate(records, bundle=bundle, spec=SPEC, unit="record", classes=[])
    return np.append(total._sums, total._counts)


def test_a_blank_document_counts_with_a_zero_vector(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    without, beside = summed(bundle, TEXTS), summed(bundle, [*TEXTS, "  "])
    assert np.array_equal(without[:-1], beside[:-1])
    assert beside[-1] - without[-1] == SPEC.count_bound
    assert not np.array_equal(without[:-1], summed(bundle, TEXTS[:-1])[:-1])


def test_the_order_of_documents_changes_nothing(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    many = [f"{text} {i}" for i in range(30) for text in TEXTS]
    assert np.array_equal(summed(bundle, many), summed(bundle, many[::-1]))


def test_records_of_another_form_are_refused(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    wrong = [
        TextRecord(tokens=np.zeros(LENGTH + 1, dtype=np.int64)),
        TextRecord(tokens=np.full(LENGTH, bundle.config.vocab_size, dtype=np.int64)),
        Record(image=np.zeros((1, 28, 28), dtype=np.float32)),
    ]
    for record in wrong:
        with pytest.raises(DataError, match="every text"):
            aggregate([record], bundle=bundle, spec=SPEC, unit="record", classes=[])


def test_an_encoder_that_looks_at_its_batch_is_refused(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    check_independence(bundle)

    class Centred(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            found = self.inner(tokens)
            return found - found.mean(0)

    bundle.encoder = Centred(bundle.encoder)
    with pytest.raises(Exception, match="its own record alone"):
        check_independence(bundle)


def test_the_adapter_is_the_same_to_the_bit_without_hyperdp(tmp_path: Path):
    bundle = text_bundle(tmp_path / "b")
    tokens = np.maximum(bundle.base.tokenizer.encode_all(TEXTS), 0)
    made = release(
        (TextRecord(tokens=bundle.base.tokenizer.encode(f"{t} {i}")) for i in range(40)
         for t in TEXTS),
        bundle=bundle,
        budget=PrivacyBudget(epsilon=4.0, delta=1e-5),
        ledger=Ledger(tmp_path / "ledger.db"),
        out=tmp_path / "release",
        dataset="mails",
    )  # fmt: skip
    (folder,) = emit_adapter(made, bundle, tmp_path / "adapter")
    np.save(tmp_path / "tokens.npy", tokens)
    out = tmp_path / "logits.npy"
    subprocess.run(
        [sys.executable, "-c", STOCK, tmp_path / "b" / MODEL, folder, tmp_path / "tokens.npy", out],
        check=True,
    )
    torch.set_num_threads(1)
    with torch.no_grad():
        ids = torch.from_numpy(tokens)
        plain = bundle.base.model(input_ids=ids).logits
        with adapters(bundle.base.model, load_peft(folder)):
            hooked = bundle.base.model(input_ids=ids).logits
        own = attach_peft(bundle.load_base().model, folder)(input_ids=ids).logits
    stock = torch.from_numpy(np.load(out, allow_pickle=False))
    assert torch.equal(own, stock)
    torch.testing.assert_close(hooked, stock, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, stock, atol=1e-2)


def test_the_commands_lead_from_jsonl_to_an_adapter(tmp_path: Path):
    text_bundle(tmp_path / "b")
    data = tmp_path / "mails.jsonl"
    rows = [{"text": f"{t} {i}", "kind": "ham" if i % 2 else "spam"} for i in range(30)
            for t in TEXTS]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "", "kind": "ham"}]))
    bundle, ledger = ["--bundle", str(tmp_path / "b")], ["--ledger", str(tmp_path / "l.db")]
    budget = ["--epsilon", "1", "--delta", "1e-5"]
    run = CliRunner().invoke
    made = run(app, ["release", str(data), *bundle, *budget, *ledger, "-o", str(tmp_path / "r"),
                     "--label-column", "kind", "--classes", "ham,spam"])  # fmt: skip
    assert made.exit_code == 0, made.output
    told = run(app, ["emit", str(tmp_path / "r"), *bundle, "-o", str(tmp_path / "a"), "--json"])
    assert told.exit_code == 0, told.output
    folders = json.loads(told.stdout)["adapters"]
    assert [Path(f).name for f in folders] == ["ham", "spam"]
    assert all((Path(f) / "adapter_model.safetensors").is_file() for f in folders)
    assert run(app, ["verify", str(tmp_path / "r")]).exit_code == 0
    public = tmp_path / "public.jsonl"
    public.write_text("".join(json.dumps({"text": f"{t} of {i}"}) + "\n" for i in range(20)
                              for t in TEXTS))  # fmt: skip
    more = ["--public", str(public), "--public-steps", "2", "-o", str(tmp_path / "on")]
    told = run(app, ["emit", str(tmp_path / "r"), *bundle, *more])
    assert told.exit_code == 0, told.output
    assert "raised the perplexity" in told.output
    plain, trained = (load_peft(tmp_path / name / "ham") for name in ("a", "on"))
    assert not any(torch.equal(plain[name][1], trained[name][1]) for name in plain)


def test_options_of_the_other_kind_are_refused(tmp_path: Path):
    text_bundle(tmp_path / "text")
    tiny_bundle(tmp_path / "image")
    data = tmp_path / "mails.jsonl"
    data.write_text('{"text": "a"}\n')
    for name, option in (("text", "--invert"), ("image", "--text-column=text")):
        arguments = ["release", str(data), "--epsilon", "1", "--delta", "1e-5", option,
                     "-o", str(tmp_path / "r"), "--bundle", str(tmp_path / name)]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        assert "options of a bundle of" in str(result.exception) + result.output
    assert not (tmp_path / "r").exists()

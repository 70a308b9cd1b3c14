"""The language-model family: per-document loss, LoRA hooks against peft, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hyperdp.errors import UsageError
from hyperdp.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdp.lora import adapters, attach_peft, describe_sites, pick, save_peft
from hyperdp.text_encoder import PAD
from hyperdp.text_family import CausalText
from tests.text_world import TEXTS, family


def documents(own: CausalText) -> torch.Tensor:
    return torch.from_numpy(own.tokenizer.encode_all(TEXTS))


def random_adapters(own: CausalText, groups: int, *, outlet: bool = False):
    torch.manual_seed(3)
    config = HypernetworkConfig(embed_dim=4, rank=2, basis=4, width=8, depth=1, bottleneck=4)
    hyper = Hypernetwork(config, describe_sites(own.model, own.sites(outlet=outlet)))
    torch.nn.init.normal_(hyper.head.weight, std=0.5)
    with torch.no_grad():
        return hyper(torch.randn(groups, 4), torch.full((groups,), 0.01))


@torch.no_grad()
def test_a_documents_loss_is_the_mean_over_its_own_tokens():
    own = family(48)
    tokens = documents(own)
    losses = own.loss(tokens)
    for row, loss in zip(tokens, losses, strict=True):
        ids = row[row >= 0][None]  # without any padding, by transformers' own loss
        expected = own.model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    longer = losses.mean() - own.loss(tokens[:1]).mean()
    assert abs(float(longer)) > 1e-4  # so that a mean over the batch would show


@torch.no_grad()
def test_a_documents_loss_does_not_depend_on_its_companions():
    own = family()
    tokens = documents(own)
    other = tokens.flip(0).clone()
    other[0] = tokens[0]
    assert own.loss(tokens)[0] == own.loss(other)[0]
    assert own.loss(torch.full((2, own.length), PAD)).tolist() == [0.0, 0.0]


@torch.no_grad()
@pytest.mark.parametrize("outlet", [False, True])  # the outlet shares its weight with the inlet
def test_grouped_hooks_are_what_peft_computes(outlet: bool, tmp_path: Path):
    own = family()
    tokens = documents(own).clamp(min=0)
    weights = random_adapters(own, 3, outlet=outlet)
    assert ("lm_head" in weights) == outlet
    with adapters(own.model, weights):
        grouped = own.model(input_ids=tokens).logits.view(3, 2, own.length, -1)
    plain = own.model(input_ids=tokens).logits
    for group in range(3):
        save_peft(pick(weights, group), tmp_path / str(group), base_name="base")
        stock = attach_peft(family().model, tmp_path / str(group))
        found = stock(input_ids=tokens[2 * group : 2 * group + 2]).logits
        torch.testing.assert_close(grouped[group], found, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, plain[2 * group : 2 * group + 2], atol=1e-2)


def test_the_sites_are_the_projections_of_attention_and_mlp_and_not_the_outlet():
    names = {name.rsplit(".", 1)[1] for name in family().sites()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_gpt2s_transposed_projections_are_refused():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=300))
    with pytest.raises(UsageError, match="Conv1D"):
        CausalText(model, family().tokenizer).sites()


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"config\.json"):
        CausalText.load(tmp_path, 16)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_model(tmp_path: Path):
    own = family()
    own.save(tmp_path)
    again = CausalText.load(tmp_path, own.length)
    tokens = documents(own)
    assert torch.equal(again.loss(tokens), own.loss(tokens))
    assert (again.tokenizer.encode_all(TEXTS) == own.tokenizer.encode_all(TEXTS)).all()


def test_samples_are_texts_that_the_seed_decides():
    own = family()
    first, again = own.sample(5, seed=1, batch_size=2), own.sample(5, seed=1, batch_size=2)
    assert len(first) == 5 and first == again != own.sample(5, seed=2, batch_size=2)

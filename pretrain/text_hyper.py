"""Trains text encoder and hypernetwork end to end on meta-tasks, through the base's own loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperdp.encoder import clip
from hyperdp.hypernetwork import TRUNK, Hypernetwork, HypernetworkConfig
from hyperdp.lora import describe_sites
from hyperdp.pretrain import text_corpus as corpus_module
from hyperdp.pretrain.loop import Loop
from hyperdp.pretrain.loop_config import LoopConfig
from hyperdp.pretrain.provenance import is_bundle_of, training_record
from hyperdp.pretrain.text_base import tokenise
from hyperdp.pretrain.text_corpus import TextCorpus
from hyperdp.pretrain.text_gradients import start_gradients
from hyperdp.pretrain.text_start import start_encoder
from hyperdp.pretrain.text_step import TextStep, WordForetelling
from hyperdp.pretrain.text_tasks import TextTaskMix, TextTaskSampler, Tokens, told_words
from hyperdp.pretrain.text_validation import TextValidation
from hyperdp.processes import processes
from hyperdp.text_bundle import TextBundle, TextBundleConfig, load_text_bundle, save_text_bundle
from hyperdp.text_encoder import GradientEncoder, TokenEncoder, build_text_encoder
from hyperdp.text_family import CausalText


@dataclass(frozen=True, kw_only=True)
class TextHyperConfig:
    """Recipe of text encoder and hypernetwork.

    Attributes:
        name: of the bundle.
        base: folder of a transformers causal language model (`hyperdp pretrain base`, or any).
        family: `causal-lm`.
        length: L, tokens of a record.
        tasks, queries: G and b of a step.
        support: documents whose mean embedding conditions the task.
        support_grad: how many of them carry gradients.
        noise_low, noise_high: range of the noise std of the mean, log-uniform.
        words_weight: weight of foretelling the words of the queries from the code.
        clip_norm: C.
        start_documents: public documents behind the encoder's start (`pretrain.text_start`); 0 for
            a random one.
        encoder_lr: the encoder's learning rate over that of the rest; 0 keeps it as it starts.
        trunk_lr: that of what lies before ρ's heads, which alone are at the full rate.
        encoder_kind, encoder: see `hyperdp.text_encoder.TEXT_ENCODERS`.
        sites: ends of the names of LoRA sites, as PEFT's `target_modules`; all sites when empty.
        outlet: whether the projection to the vocabulary is one of them.
    """

    name: str
    base: str
    loop: LoopConfig
    family: str = CausalText.name
    length: int = 96
    tasks: int = 8
    queries: int = 4
    support: int = 48
    support_grad: int = 24
    noise_low: float = 5e-4
    noise_high: float = 0.2
    words_weight: float = 0.1
    clip_norm: float = 1.0
    start_documents: int = 0
    encoder_lr: float = 1.0
    trunk_lr: float = 1.0
    encoder_kind: str = "tokens"
    encoder: dict[str, Any] = field(default_factory=dict)
    hypernetwork: dict[str, Any] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)
    outlet: bool = False
    mix: TextTaskMix = field(default_factory=TextTaskMix)


@torch.no_grad()
def embed_all(encoder: nn.Module, tokens: Tokens, clip_norm: float) -> Tensor:
    """Clipped embeddings of all documents.

    Args:
        encoder: φ.
        tokens: int64 [N, L].
        clip_norm: C.

    Returns:
        float32 [N, k].
    """
    parts = torch.split(torch.from_numpy(tokens), 512)
    return torch.cat([clip(encoder(part).float(), clip_norm) for part in parts])


@contextmanager
def on_cpu(*networks: nn.Module, home: torch.device) -> Iterator[None]:
    """Brings networks to the CPU, where validation draws its noise, and back."""
    for network in networks:
        network.to("cpu")
    yield
    for network in networks:
        network.to(home)


def _open_base(config: TextHyperConfig, device: torch.device) -> CausalText:
    """The recipe's base model, frozen, where the networks compute."""
    base = CausalText.load(Path(config.base), config.length)
    model: Any = base.model
    model.requires_grad_(False).to(device)
    if config.loop.bf16 and device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused one is slow in it on a CPU
    return base


def _start(config: TextHyperConfig, values: dict[str, Any], tokens: Tokens) -> nn.Module:
    """φ as training begins with it; `tokens` are the training split's documents."""
    encoder = build_text_encoder(config.encoder_kind, values)
    if config.start_documents and isinstance(encoder, TokenEncoder):
        start_encoder(
            encoder, tokens[torch.randperm(len(tokens))[: config.start_documents].numpy()]
        )
    return encoder.requires_grad_(config.encoder_lr > 0)


def _embedded(
    config: TextHyperConfig,
    base: CausalText,
    encoder: nn.Module,
    hyper: Hypernetwork,
    corpus: TextCorpus,
    tokens: Tokens,
    sampler: TextTaskSampler,
    folder: Path,
) -> Tensor | None:
    """Clipped embeddings of all documents [N, k], where the encoder stays as it is; else None."""
    if isinstance(encoder, GradientEncoder):
        with processes().main_process_first():  # the others find what it has made
            return start_gradients(
                base, encoder, hyper, corpus, tokens, sampler=sampler, support=config.support,
                clip_norm=config.clip_norm, folder=folder,
            )  # fmt: skip
    return embed_all(encoder, tokens, config.clip_norm) if config.encoder_lr == 0 else None


def train_text_hyper(
    config: TextHyperConfig, folder: Path, corpus: TextCorpus | None = None, command: str = ""
) -> TextBundle:
    """Trains (or goes on training) encoder and hypernetwork; the bundle goes to `folder/bundle`.

    Args:
        config: the recipe.
        folder: checkpoint and `log.jsonl` go here.
        corpus: the public corpus; from the cache when None.
        command: what was typed, for the record.

    Returns:
        The bundle.
    """
    corpus = corpus_module.open_text_corpus() if corpus is None else corpus
    device = processes().device
    base = _open_base(config, device)
    tokens = tokenise(corpus, base.tokenizer)
    torch.manual_seed(config.loop.seed)
    ends = tuple(config.sites) or ("",)
    sites = [name for name in base.sites(outlet=config.outlet) if name.endswith(ends)]
    vocab = base.tokenizer.vocab_size
    values = {"vocab_size": vocab, "text_length": config.length, **config.encoder}
    encoder = _start(config, values, tokens[corpus.split == 0])
    k = int(values["embed_dim"])
    hyper = Hypernetwork(
        HypernetworkConfig(embed_dim=k, **config.hypernetwork), describe_sites(base.model, sites)
    )
    words = WordForetelling(hyper.config.code_size, vocab)
    module = nn.ModuleDict({"encoder": encoder, "hypernetwork": hyper, "words": words})
    sampler = TextTaskSampler(corpus, told_words(tokens), 0, config.mix)  # it draws rows alone

    table = _embedded(config, base, encoder, hyper, corpus, tokens, sampler, folder)
    step = TextStep(config, base, encoder, hyper, words, tokens, sampler, table)
    validation = TextValidation(
        corpus,
        tokens,
        base,
        encoder,
        hyper,
        mix=config.mix,
        support=config.support,
        clip_norm=config.clip_norm,
        lowest_noise=config.noise_low,
    )

    def validate() -> dict[str, float]:
        with on_cpu(base.model, module, home=device):
            return validation()

    scales = {f"hypernetwork.{part}": config.trunk_lr for part in TRUNK}
    scales |= {"hypernetwork.log_": 3.0, "hypernetwork.slope": 3.0} if hyper.config.descent else {}
    scales["encoder."] = config.encoder_lr
    loop = Loop(config.loop, module, step, folder, validate, lr_scales=scales)
    loop.run("hypernetwork")
    recipe = dataclasses.asdict(config)
    made = loop.resumed == loop.done and is_bundle_of(folder / "bundle", recipe)
    processes().wait_for_everyone()  # all of them have looked
    if made:
        return load_text_bundle(folder / "bundle")
    module.eval().cpu()
    base.model.cpu()
    bundle_config = TextBundleConfig(
        name=config.name,
        family=base.name,
        embed_dim=k,
        clip_norm=config.clip_norm,
        text_length=config.length,
        vocab_size=vocab,
        sites=sites,
        encoder_kind=config.encoder_kind,
        encoder=values,
        hypernetwork=dataclasses.asdict(hyper.config),
        public_mean=validation.public_mean().tolist(),
        other_task_mean=validation.task_means()[0].tolist(),
    )
    if processes().is_main_process:
        save_text_bundle(
            folder / "bundle",
            bundle_config,
            encoder=encoder,
            hypernetwork=hyper,
            base=base,
            training=training_record(recipe, command, loop.seconds, folder, corpus=corpus.digest),
        )
    processes().wait_for_everyone()
    return load_text_bundle(folder / "bundle")

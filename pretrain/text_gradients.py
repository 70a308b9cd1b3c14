"""The start of ρ over `GradientEncoder`: bases, scale and step size out of public gradients.

Tucker's bases (De Lathauwer et al. 2000, doi 10.1137/S0895479896305696): of each site, A and U span
where the losses of public topics pull its weights most, so that few numbers say most of a gradient.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hyperdp import keys
from hyperdp.encoder import clip
from hyperdp.hypernetwork import Hypernetwork
from hyperdp.lora import adapters
from hyperdp.pretrain.text_corpus import TextCorpus
from hyperdp.pretrain.text_tasks import TextTaskSampler, Tokens
from hyperdp.text_encoder import GradientEncoder
from hyperdp.text_family import CausalText

OF_A_TOPIC = 16  # documents behind a topic's gradient
SCALED_ON = 1000  # documents behind the scale
FLOOR = 0.1  # of the mean root mean square, added to each: quiet numbers are not blown up
TASKS = 192  # behind means and step size
FIRST_STEP, MOST_DOUBLINGS = 1 / 16, 24  # in units of the scale; as long as it helps
BATCH, PART = 64, 2048


def topic_rows(corpus: TextCorpus, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Some documents of each topic of the training split, at most `OF_A_TOPIC`."""
    rows = rng.permutation(np.nonzero(corpus.split == 0)[0])
    ordered = rows[np.argsort(corpus.topic[rows], kind="stable")]
    starts = np.unique(corpus.topic[ordered], return_index=True)[1]
    return [part[:OF_A_TOPIC] for part in np.split(ordered, starts[1:])]


@torch.no_grad()
def start_bases(
    base: CausalText, hyper: Hypernetwork, tokens: Tokens, groups: list[NDArray[np.int64]]
) -> None:
    """Sets A and U of each site to the leading directions of topics' gradients, in place.

    Args:
        base: the base model.
        hyper: ρ, with `descent`.
        tokens: int64 [N, L].
        groups: rows of each topic.
    """
    model: Any = copy.deepcopy(base.model)
    modules = dict(model.named_modules())
    model.requires_grad_(False)
    weights: list[Tensor] = []
    for site in hyper.sites:  # a copy each: a projection may share its weights with the embedding
        modules[site.name].weight = nn.Parameter(modules[site.name].weight.detach().clone())
        weights.append(modules[site.name].weight)
    asked = CausalText(model, base.tokenizer)
    left = [torch.zeros(len(w), len(w)) for w in weights]
    right = [torch.zeros(w.shape[1], w.shape[1]) for w in weights]
    for rows in track(groups, "topics' gradients"):
        with torch.enable_grad():
            loss = asked.loss(torch.from_numpy(tokens[rows])).mean()
        gradients = torch.autograd.grad(loss, weights)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for i, gradient in enumerate(gradients):
            own = gradient / max(norm, 1e-12)
            left[i] += own @ own.T
            right[i] += own.T @ own
    for i, (shared, own_u) in enumerate(zip(hyper.a, hyper.u, strict=True)):
        u, a = (torch.linalg.eigh(part[i])[1].flip(1) for part in (left, right))
        own_u.copy_(u[:, : own_u.shape[1]])
        shared.copy_(a[:, : hyper.config.rank].T)


@torch.no_grad()
def start_scale(encoder: GradientEncoder, tokens: Tokens, clip_norm: float) -> None:
    """Sets the encoder's scale, in place: loud numbers are quietened, half of all documents clip.

    Each number is divided by the root of its root mean square, half of the way to whitening: noise
    then drowns the many quiet ones less, and the loud ones still count more.

    Args:
        encoder: attached to its base model.
        tokens: int64 [N, L], public documents.
        clip_norm: C.
    """
    encoder.scale.fill_(1.0)
    found = embed_documents(encoder, tokens)
    level = found.square().mean(0).sqrt()  # [k]
    encoder.scale.copy_((level + FLOOR * level.mean()).rsqrt())
    norms = (found * encoder.scale).norm(dim=1)
    encoder.scale.mul_(clip_norm / norms[norms > 0].median())


def embed_documents(encoder: nn.Module, tokens: Tokens) -> Tensor:
    """φ before clipping, float32 [N, k], on as many threads as torch may use."""
    count = torch.get_num_threads()
    parts = [torch.from_numpy(tokens[i : i + BATCH]) for i in range(0, len(tokens), BATCH)]
    encoder.eval()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(lambda part: _embed(encoder, part), parts)))
    finally:
        torch.set_num_threads(count)


@torch.no_grad()
def _embed(encoder: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = encoder(tokens).float()
    return found


def embed_corpus(
    encoder: GradientEncoder, tokens: Tokens, clip_norm: float, folder: Path
) -> Tensor:
    """Clipped embeddings of all documents; killed, it goes on where it stopped.

    Args:
        encoder: φ, which stays as it is.
        tokens: int64 [N, L].
        clip_norm: C.
        folder: `embeddings.npy` and `embeddings.json` go here.

    Returns:
        float16 [N, k], on the disk.
    """
    digest = hashlib.sha256(tokens.tobytes() + str(clip_norm).encode())
    for name, value in sorted({**encoder.state_dict(), **encoder.relied_on()}.items()):
        digest.update(name.encode() + value.detach().numpy().tobytes())
    path, note = folder / "embeddings.npy", folder / "embeddings.json"
    folder.mkdir(parents=True, exist_ok=True)
    known = _noted(note) if path.is_file() else {}
    done = int(known["done"]) if known.get("of") == digest.hexdigest() else 0
    shape = (len(tokens), encoder.config.embed_dim)
    table = np.lib.format.open_memmap(
        path, mode="r+" if done else "w+", dtype=np.float16, shape=None if done else shape
    )
    for start in track(range(done, len(tokens), PART), "embedding public documents"):
        part = slice(start, start + PART)
        table[part] = clip(embed_documents(encoder, tokens[part]), clip_norm).half().numpy()
        table.flush()
        done = min(start + PART, len(tokens))
        said = json.dumps({"of": digest.hexdigest(), "done": done}).encode()
        keys.write_durably(note, said, mode=keys.PUBLIC)
    return torch.from_numpy(table)


def _noted(path: Path) -> dict[str, Any]:
    """What a note of ours says; {} where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _known_start(path: Path, of: str) -> dict[str, Tensor]:
    """The start that was made of the same; {} where there is none, or none that can be read."""
    try:
        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get("of") == of
        return load_file(path) if same else {}
    except (OSError, SafetensorError):
        return {}


@torch.no_grad()
def start_step(
    base: CausalText,
    encoder: GradientEncoder,
    hyper: Hypernetwork,
    means: Tensor,
    queries: Callable[[slice], Tensor],
) -> float:
    """Sets ρ's prior, its map's inward half and its step from public tasks, in place.

    Args:
        base: the base model.
        encoder: with its scale.
        hyper: ρ, with `descent`.
        means: float32 [T, k], mean clipped embeddings of training tasks.
        queries: a slice of the tasks → other documents of each, int64 [t, b, L].

    Returns:
        The mean loss at the step chosen, nats a token.
    """
    spread = means - means.mean(0)
    std = spread.square().mean(0).sqrt() * math.sqrt(means.shape[1])
    hyper.log_std.copy_(std.clamp(min=1e-4).log())
    _, _, right = torch.linalg.svd(spread, full_matrices=False)
    hyper.inward.weight.zero_()
    rank = min(hyper.config.descent, len(right))
    hyper.inward.weight[:rank] = right[:rank]
    level = torch.full((len(means),), 2e-3)

    def loss_at(step: float) -> float:
        hyper.log_step.copy_((encoder.scale * step).log())
        losses = []
        for start in range(0, len(means), 8):
            part = slice(start, start + 8)
            with adapters(base.model, hyper(means[part], level[part])):
                losses.append(base.loss(queries(part).flatten(0, 1)))
        return float(torch.cat(losses).mean())

    step = FIRST_STEP
    best = loss_at(step)
    for _ in range(MOST_DOUBLINGS):
        if (further := loss_at(2 * step)) >= best:
            break
        step, best = 2 * step, further
    hyper.log_step.copy_((encoder.scale * step).log())
    return best


def start_gradients(
    base: CausalText,
    encoder: GradientEncoder,
    hyper: Hypernetwork,
    corpus: TextCorpus,
    tokens: Tokens,
    *,
    sampler: TextTaskSampler,
    support: int,
    clip_norm: float,
    folder: Path,
) -> Tensor:
    """Everything that training over gradients begins with; what was made before is taken again.

    Args:
        base: the base model.
        encoder: φ, freshly initialised.
        hyper: ρ, likewise.
        corpus: public.
        tokens: int64 [N, L], its documents.
        sampler: of training tasks.
        support: documents of a task's mean.
        clip_norm: C.
        folder: of the run.

    Returns:
        Clipped embeddings of all documents, float16 [N, k].
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept, both = (
        folder / "start.safetensors",
        nn.ModuleDict({"encoder": encoder, "hypernetwork": hyper}),
    )
    rng = np.random.default_rng(0)
    places = [site.name for site in hyper.sites]
    settings = str((clip_norm, support, hyper.config, places, sampler.mix, corpus.digest))
    of = hashlib.sha256(tokens.tobytes() + settings.encode())  # of another, another start
    for name, value in sorted(base.model.state_dict().items()):
        of.update(name.encode() + value.cpu().numpy().tobytes())
    if known := _known_start(kept, of.hexdigest()):
        both.load_state_dict(known)
        encoder.attach(base.model, hyper)
        return embed_corpus(encoder, tokens, clip_norm, folder)
    start_bases(base, hyper, tokens, topic_rows(corpus, rng))
    encoder.attach(base.model, hyper)
    rows = rng.permutation(np.nonzero(corpus.split == 0)[0])
    start_scale(encoder, tokens[rows[:SCALED_ON]], clip_norm)
    table = embed_corpus(encoder, tokens, clip_norm, folder)
    asked, answered = sampler.draw_rows(TASKS, support, 2, torch.Generator().manual_seed(0))
    means = torch.stack([table[torch.from_numpy(own)].float().mean(0) for own in asked])
    start_step(base, encoder, hyper, means, lambda part: torch.from_numpy(tokens[answered[part]]))
    state = {name: value.detach().cpu().contiguous() for name, value in both.state_dict().items()}
    keys.write_durably(kept, save(state, metadata={"of": of.hexdigest()}), mode=keys.PUBLIC)
    return table

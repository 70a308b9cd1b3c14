"""What `hyperdp sample` does with an adapter of a language model: `texts.jsonl`, line by line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hyperdp.cli._bars import advance, counting_bar
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.text_bundle import TextBundle

FILE = "texts.jsonl"


def check_selection(release: Path | None, candidates: int, sources: dict[str, Path]) -> None:
    """Refuses `--candidates` without what it chooses by, before anything is drawn.

    Raises:
        UsageError: one of the two options alone, or an adapter without classes.
    """
    if (release is None) != (candidates == 1):
        raise UsageError(
            expected="--release and --candidates together",
            found="--candidates alone" if release is None else "--release alone",
            todo="Name the labelled release that the adapters were emitted from, and how many "
            "times as many documents to choose from (3 is usual).",
        )
    if release is not None and len(sources) < 2:
        raise UsageError(
            expected="the adapters of a labelled release, one for each class",
            found=", ".join(str(path) for path in sources.values()),
            todo="Leave --candidates out: without classes there is nothing to choose by.",
        )


def write_texts(
    bundle: TextBundle,
    sources: dict[str, Path],
    out: Path,
    *,
    count: int,
    seed: int,
    temperature: float,
    release: Path | None,
    candidates: int,
    labels: Mapping[str, str],
) -> dict[str, int]:
    """Writes documents and, of a labelled release, what class each is of.

    Args:
        bundle: whose adapters they are.
        sources: class, or "", → PEFT directory.
        out: a new folder.
        count: documents of each class.
        seed: of the first class's draws; each has its own.
        temperature: of the softmax.
        release: a labelled release to choose by; None without candidates.
        candidates: times `count` documents to choose from.
        labels: folder of an adapter → its class, where that is another word.

    Returns:
        Folder, or ".", → how many were written.
    """
    from hyperdp.lora import attach_peft

    out.mkdir(parents=True, exist_ok=True)  # refused now rather than after the drawing
    groups: list[list[str]] = []
    with counting_bar() as bar:
        for number, (name, source) in enumerate(sources.items()):
            task = bar.add_task(f"writing {name}".strip(), total=candidates * count)
            base = bundle.load_base()
            groups.append(
                base.sample(
                    candidates * count,
                    seed=seed * len(sources) + number,
                    temperature=temperature,
                    model=attach_peft(base.model, source),
                    progress=partial(advance, bar, task),
                )
            )
    if release is not None:
        groups = _selected(bundle, release, list(sources), groups, count)
    with (out / FILE).open("w", encoding="utf-8") as file:
        for name, group in zip(sources, groups, strict=True):
            for text in group:
                label = {"label": labels.get(name, name)} if name else {}
                line = {"text": text, **label}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {name or ".": len(group) for name, group in zip(sources, groups, strict=True)}


def _selected(
    bundle: TextBundle, release: Path, names: list[str], groups: list[list[str]], count: int
) -> list[list[str]]:
    import torch

    from hyperdp.encoder import clip
    from hyperdp.private.embed import BATCH_SIZE, embed_batch
    from hyperdp.private.emit import check_bundle, class_folders
    from hyperdp.private.release import Release
    from hyperdp.private.selection import select_by_class

    loaded = Release.load(release)
    check_bundle(loaded, bundle)
    place = {name: i for i, name in enumerate(class_folders(loaded.classes or []))}
    if sorted(place) != sorted(names):
        raise UsageError(
            expected=f"the adapters of this release's classes: {', '.join(place)}",
            found=", ".join(names),
            todo="Name the folder that `hyperdp emit` wrote for it.",
        )
    texts = [text for group in groups for text in group]
    tokens = torch.from_numpy(bundle.base.tokenizer.encode_all(texts))
    parts = []
    with counting_bar() as bar:
        task = bar.add_task("reading what was written", total=len(tokens))
        for part in torch.split(tokens, BATCH_SIZE):
            parts.append(torch.from_numpy(embed_batch(bundle.encoder, part.numpy())))
            bar.advance(task, len(part))
    embedded = clip(torch.cat(parts).float(), bundle.config.clip_norm)
    means = loaded.mean().float()[[place[name] for name in names]]
    return [[texts[row] for row in rows] for rows in select_by_class(embedded, means, count)]

"""Public tasks for a forecast that are like one kind of data, held-out ones all of them.

`print`: the characters of one script in its typefaces, in the fonts' own ink. A script of several
faces is one task and no more, the one with the most glyphs first: two tasks of one script would
tell the same twice, and with one face queries could not show other glyphs than records do without
being other characters. The corpus has four such scripts held out; the rest are in fonts that no
training has seen (`hyperdp.pretrain.printed`).
`hand`: the digits, the capitals or the small letters, over many faces, drawn by a pen or bent, each
task in a style of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.pretrain.printed import printed_scripts
from hyperdp.pretrain.style import draw_style
from hyperdp.pretrain.tasks import UNSEEN_SHARE, Rows, TaskSampler
from hyperdp.pretrain.world import GlyphWorld, Tasks, World

PEN = 0.6  # of the tasks of hands; the others bend the font's ink


def kind_sampler(world: World, like: str, mix: Mapping[str, float]) -> Tasks:
    """What the tasks of a kind are drawn from, held-out data all of it.

    Args:
        world: the public data of a bundle.
        like: a kind, `any` among them.
        mix: how often each kind of task is drawn, of those that are like any.

    Raises:
        DataError: the fonts of further scripts are not installed.
    """
    if like != "print" or not isinstance(world, GlyphWorld):
        return world.tasks(1, mix)
    further = world.further_scripts() if world.further_scripts is not None else None
    return TaskSampler(printed_scripts(world.corpus, further), 1, world.mix(mix))


def draw_like(
    sampler: Tasks,
    like: str,
    index: int,
    *,
    records: int,
    queries: int,
    rng: torch.Generator,
) -> Tensor:
    """One task of a kind.

    Args:
        sampler: what `kind_sampler` gives.
        like: `print` or `hand`.
        index: the task's number.
        records: N, of the task.
        queries: Q, held-out ones, of other glyphs than the records.
        rng: CPU generator.

    Returns:
        float32 [N + Q, 1, 28, 28] in [-1, 1], the records first.

    Raises:
        UsageError: there are fewer such tasks, or these are no glyphs.
    """
    if not isinstance(sampler, TaskSampler):
        raise UsageError(
            expected="public glyphs, whose tasks can be like print or hand",
            found="images of another kind",
            todo="Leave --like out.",
        )
    if like == "print":
        pool = _script(sampler, index)
        style = draw_style(1, rng, plain=1.0, pen=0.0)
    else:
        pool = _characters(sampler, index)
        style = draw_style(1, rng, plain=0.0, pen=PEN)
    numpy_rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
    seen, unseen = _split(numpy_rng.permutation(pool))
    rows = np.concatenate([numpy_rng.choice(seen, records), numpy_rng.choice(unseen, queries)])
    one = style.row(torch.zeros(len(rows), dtype=torch.int64))
    return sampler.render(rows[None], one, rng)[0]


def _script(sampler: TaskSampler, index: int) -> Rows:
    """The glyphs of the script that is `index` places behind the largest."""
    several = [p for p in sampler.scripts.values() if len(np.unique(sampler.corpus.face[p])) > 1]
    scripts = sorted(several, key=len, reverse=True)
    if index >= len(scripts):
        raise UsageError(
            expected=f"at most {len(scripts)} tasks of printed scripts, one for each held-out one "
            "of several faces",
            found=f"{index + 1}",
            todo="Give fewer --tasks.",
        )
    return scripts[index]


def _characters(sampler: TaskSampler, index: int) -> Rows:
    """Digits, capitals or small letters in turn, those that can be read."""
    groups = [group for group in (sampler.digits, *sampler.cases) if group]
    if not groups:
        raise UsageError(
            expected="a corpus with digits or Latin letters in eight held-out faces",
            found="none",
            todo="Take the corpus `glyphs`.",
        )
    chars = groups[index % len(groups)]
    return np.concatenate([sampler.readable.get(c, sampler.chars[c]) for c in chars])


def _split(pool: Rows) -> tuple[Rows, Rows]:
    """The glyphs for records and those for queries, of a pool in random order."""
    held = max(1, round(len(pool) * UNSEEN_SHARE))
    return pool[held:], pool[:held]

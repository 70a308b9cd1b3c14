"""Pictures of what to worry about: images beside the records they are nearest to, and failures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperdp.errors import UsageError
from hyperdp.eval.features import Features
from hyperdp.eval.flags import Findings
from hyperdp.eval.metrics.neighbours import nearest
from hyperdp.eval.report import GRID_COLUMNS, GRID_IMAGES, GridPanel


def pairs_panel(
    findings: Findings, generated: Tensor, train: Tensor, held_out: Tensor
) -> GridPanel:
    """The closest pairs, one a column: image, nearest private record, nearest held-out record.

    Args:
        findings: with its memorisation figures.
        generated: float32 [G, C, H, W], the images that were tested.
        train: float32 [n, C, H, W], the private records.
        held_out: float32 [M, C, H, W].

    Raises:
        UsageError: memorisation was not tested.
    """
    memory = findings.memorisation
    if memory is None:
        raise UsageError(
            expected="findings with memorisation tested",
            found="none",
            todo="Give private and held-out records to `flags`.",
        )
    pairs = memory.pairs[:GRID_COLUMNS]
    rows = [
        generated[[pair.generated for pair in pairs]],
        train[[pair.train for pair in pairs]],
        held_out[[pair.held_out for pair in pairs]],
    ]
    blank = torch.ones(GRID_COLUMNS - len(pairs), *generated.shape[1:])
    return GridPanel(
        title="Closest to private records",
        caption="Above the generated image, in the middle the private record that is nearest to "
        "it, below the nearest record that was held out. Where the middle looks no more alike than "
        f"the lower row, nothing is repeated. Distance ratios {pairs[0].ratio:.2f} to "
        f"{pairs[-1].ratio:.2f}, where 0 is a copy ({memory.extractor} features).",
        images=torch.cat([part for row in rows for part in (row, blank)]),
        private=True,
    )


def failures_panel(generated: Features, reference: Features, images: Tensor) -> GridPanel:
    """The images that are farthest from every real one, worst first.

    Args:
        generated: features of the images.
        reference: of real images.
        images: float32 [G, C, H, W].
    """
    distances = nearest(generated, reference, 1)[0][:, 0]
    worst = torch.from_numpy(distances.argsort()[::-1][: GRID_IMAGES // 2].copy())
    return GridPanel(
        title="The worst images",
        caption=f"Of {len(images):,} images those farthest from any real one "
        f"({generated.extractor} features), worst first. This is what goes wrong when it goes "
        "wrong.",
        images=images[worst],
    )


def side_by_side(panels: Sequence[Tensor]) -> Tensor:
    """Panels of 8 × 8 images in one picture, with a blank column between.

    Args:
        panels: each float32 [64, C, H, W]; none of it private records where it is to be shown.

    Returns:
        float32 [8 · (9 P - 1), C, H, W], row by row.
    """
    blank = torch.ones(8, 1, *panels[0].shape[1:])
    columns = [part for p in panels for part in (blank, p.view(8, 8, *p.shape[1:]))][1:]
    return torch.cat(columns, 1).flatten(0, 1)

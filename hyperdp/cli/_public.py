"""`--public` and what belongs to it: records that a release is read with, without privacy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdp.cli._opening import check_public
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from hyperdp.bundle import Bundle
    from hyperdp.text_bundle import TextBundle

PublicRecords = Annotated[
    str | None,
    typer.Option(
        "--public",
        help="Public records (never private ones: they are read without privacy). The adapter "
        "is trained on, on those of them that the release points at. Minutes instead of a "
        "second; clearly better for a labelled release of images, worse for texts.",
        show_default=False,
    ),
]
PublicSteps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Steps of that training; 150 of images, 400 of texts.", show_default=False
    ),
]
PublicLabels = Annotated[
    str | None,
    typer.Option(
        "--public-label-column",
        help="Labels of the public records, named as the release's classes are (`folder`: the "
        "sub-folder): each class is then trained on its own public records alone. Others are left "
        "out.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Public:
    """Public records.

    Attributes:
        records: images float32 [N, C, H, W] in [-1, 1], or documents int64 [N, L].
        labels: of each; None where they are not known.
    """

    records: Tensor
    labels: list[str | None] | None

    def classes(self, names: Sequence[str] | None) -> Tensor | None:
        """The class of each record by its number in a release, int64 [N], -1 for none.

        Args:
            names: the release's classes; None for an unlabelled one.

        Returns:
            None where the labels are not known.

        Raises:
            UsageError: the release has no classes, or one has fewer than 100 public records.
        """
        import torch

        from hyperdp.private.reweight import FEWEST_RECORDS

        if self.labels is None:
            return None
        if names is None:
            raise UsageError(
                expected="a labelled release with --public-label-column",
                found="an unlabelled one",
                todo="Leave --public-label-column out.",
            )
        there = Counter(self.labels)
        few = [f"{name} ({there[name]})" for name in names if there[name] < FEWEST_RECORDS]
        if few:
            raise UsageError(
                expected=f"at least {FEWEST_RECORDS} public records of each class of the release",
                found=f"fewer of {', '.join(few)}",
                todo="Name the right column, give more, or leave --public-label-column out.",
            )
        number = {name: row for row, name in enumerate(names)}
        return torch.tensor([number.get(label or "", -1) for label in self.labels])


def read_public(
    source: str | None, bundle: Bundle | TextBundle, *, label_column: str | None
) -> Public | None:
    """The public records behind `--public`, before anything is spent or written.

    Args:
        source: what `open_dataset` reads; None for none.
        bundle: whose image shape they are brought to, or whose tokens.
        label_column: of their labels.

    Raises:
        UsageError: no such path, labels without records, fewer than 100 records, or records that
            this account has made a private release of.
        DataError: a record cannot be read, or has no such column.
    """
    if source is None:
        if label_column is not None:
            raise UsageError(
                expected="--public RECORDS with --public-label-column",
                found="the column alone",
                todo="Name the public records.",
            )
        return None
    import torch

    from hyperdp.private.readers import open_dataset, open_text_dataset
    from hyperdp.private.readers.hints import without_options
    from hyperdp.private.reweight import FEWEST_RECORDS
    from hyperdp.text_bundle import TextBundle

    check_public(
        Path(source), todo="Name public records, such as those of `hyperdp pretrain public`."
    )
    with without_options("--public", label="--public-label-column"):
        if isinstance(bundle, TextBundle):
            typer.echo(
                "warning: of documents, steps on public ones raised the perplexity of mail and "
                "songs alike, as the few that a release points at are learnt by heart (text-rivals "
                "in docs/benchmarks.md). Compare with an adapter without --public.",
                err=True,
            )
            encode = bundle.base.tokenizer.encode
            texts = list(
                open_text_dataset(source, encode=encode, label_column=label_column).records()
            )
            records = [torch.from_numpy(text.tokens) for text in texts]
            labels = [text.label for text in texts]
        else:
            shape = bundle.config.image_shape
            images = list(
                open_dataset(source, image_shape=shape, label_column=label_column).records()
            )
            records = [torch.from_numpy(image.image) for image in images]
            labels = [image.label for image in images]
    if len(records) < FEWEST_RECORDS:
        raise UsageError(
            expected=f"at least {FEWEST_RECORDS} public records",
            found=str(len(records)),
            todo="Give more; thousands are good. Nothing has been spent.",
        )
    return Public(records=torch.stack(records), labels=None if label_column is None else labels)

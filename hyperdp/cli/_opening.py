"""What every command that reads private data shares: from its options to an opened dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hyperdp.cli._options import split_classes
from hyperdp.errors import UsageError

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.private.readers import Dataset, TextDataset
    from hyperdp.text_bundle import TextBundle


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options that say how data is read; see `hyperdp release --help` for each."""

    data: Path
    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    unit_column: str | None = None
    classes: str | None = None
    skip_unreadable: bool = False
    invert: bool = False


def open_checked(reading: Reading, bundle: Bundle | TextBundle) -> Dataset | TextDataset:
    """The dataset of a command line, tried by its reader before anything is spent.

    Raises:
        DataError: it cannot be read as asked. UsageError: an option of the other kind of bundle.
    """
    from hyperdp.text_bundle import TextBundle

    is_text = isinstance(bundle, TextBundle)
    for option, given, fits in (
        ("--image-column", reading.image_column is not None, not is_text),
        ("--invert", reading.invert, not is_text),
        ("--text-column", reading.text_column is not None, is_text),
    ):
        if given and not fits:
            raise UsageError(
                expected=f"options of a bundle of {'texts' if is_text else 'images'}",
                found=option,
                todo="Leave it out, or name another bundle with --bundle.",
            )
    dataset = _open(reading, bundle)
    read_once(dataset)
    return dataset


def read_once(dataset: Dataset | TextDataset) -> None:
    """Tries a dataset, with a bar on a terminal only: how long it takes tells of the records.

    Raises:
        DataError, UsageError: as `Dataset.check` does.
    """
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        dataset.check()
        return
    from hyperdp.cli._bars import counting_bar

    with counting_bar() as bar:
        bar.live.transient = True  # it would go on showing how many are left out
        task = bar.add_task("reading", total=dataset.listed())
        dataset.check(lambda done: bar.update(task, completed=done))


def charged_to(opened: Dataset | TextDataset, dataset: str | None) -> str:
    """The name that a dataset's budget is charged to; where it lies is noted for this account.

    Args:
        opened: the dataset.
        dataset: `--dataset`; its path is its name where that is None.
    """
    from hyperdp import keys, sources

    name = str(opened.path) if dataset is None else dataset
    own = keys.dataset_fingerprint(name)
    if os.environ.get("RANK", "0") == "0":
        for path, other in sources.spent_sources():
            if dataset is not None and other != own and sources.overlap(opened.path, path):
                known = keys.known_name(other) or str(path)
                typer.echo(
                    f"warning: data at {path} has spent the budget of {known!r}. Where it is the "
                    f"same data, charge it to that name: {name!r} is another dataset.",
                    err=True,
                )
                break
        if any(sources.overlap(opened.path, path) for path in sources.public_sources()):
            typer.echo(
                f"warning: data at {opened.path} was gathered as public by `hyperdp pretrain "
                "images`. What a bundle that was trained on it knows of these records is in no "
                "certificate: take a bundle that never saw them.",
                err=True,
            )
    sources.remember_source(own, opened.path)
    return name


def check_out(out: Path, data: Path, *, option: str = "--out", new: bool = False) -> None:
    """Refuse, before data is read, an output among the records or on top of something.

    Args:
        out: to be written.
        data: what is read.
        option: that named `out`.
        new: whether it must not exist, or be an empty folder.

    Raises:
        UsageError: it lies in the data, or holds something.
    """
    place, source = out.expanduser().resolve(), data.expanduser().resolve()
    if place == source or source in place.parents:
        raise UsageError(
            expected=f"{option} outside of the data",
            found=f"'{out}' in '{data}', whose next reading would find it among the records",
            todo=f"Choose another {option}; nothing has been spent.",
        )
    if new and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(
            expected=f"an empty or new folder for {option}",
            found=f"'{out}', which holds something",
            todo=f"Choose another {option}; nothing has been spent.",
        )


def check_public(source: Path, *, todo: str, apart: Sequence[str] = ()) -> None:
    """Refuse to read as public what this account has made a private release of, or a part of it.

    Args:
        source: what is about to be read without privacy; links in it are followed.
        todo: what to do instead.
        apart: folders in it that are not read.

    Raises:
        UsageError: it is, lies in, or holds such data, or leads to it.
    """
    from hyperdp import sources

    place = source.expanduser().resolve()
    never, spent = [place / name for name in apart], [path for path, _ in sources.spent_sources()]
    read = [
        path
        for path in spent
        if sources.overlap(place, path) and not {*never} & {path, *path.parents}
    ]
    if spent and not read:
        links = sources.linked(place, never)
        read = [path for path in spent for link in links if sources.overlap(link, path)]
    if read:
        raise UsageError(
            expected="public records",
            found=f"'{source}', of which a private release was made: it would be read without "
            "privacy, and no certificate would hold for what comes of it",
            todo=todo,
        )


def check_one_process(command: str) -> None:
    """Refuse a launcher's several processes where a command is for one.

    Raises:
        UsageError: there are several.
    """
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UsageError(
            expected=f"one process for `hyperdp {command}`",
            found=f"{count}, as a launcher started them",
            todo="Start it by itself; `hyperdp release` is what several processes share.",
        )


def _open(reading: Reading, bundle: Bundle | TextBundle) -> Dataset | TextDataset:
    from hyperdp.private.readers import open_dataset, open_text_dataset
    from hyperdp.text_bundle import TextBundle

    if isinstance(bundle, TextBundle):
        return open_text_dataset(
            reading.data,
            encode=bundle.base.tokenizer.encode,
            text_column=reading.text_column,
            label_column=reading.label_column,
            unit_column=reading.unit_column,
            classes=split_classes(reading.classes),
            skip_unreadable=reading.skip_unreadable,
        )
    return open_dataset(
        reading.data,
        image_shape=bundle.config.image_shape,
        image_column=reading.image_column,
        label_column=reading.label_column,
        unit_column=reading.unit_column,
        classes=split_classes(reading.classes),
        skip_unreadable=reading.skip_unreadable,
        invert=reading.invert,
    )

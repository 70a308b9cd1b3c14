"""Arguments and options that several commands share, so that one word means one thing."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated, Literal

import typer

_SPEED_PANEL = "Speed; changes no bit of the sums"
_DATA_PANEL = "Reading the data"

Data = Annotated[
    Path,
    typer.Argument(
        help="The private dataset: a folder of images, .npz, .parquet, .csv, .tsv or .jsonl with a "
        "column of paths, or a Hugging Face dataset on disk. For a text bundle: .jsonl, .csv, "
        ".tsv, .parquet, a folder of .txt files, or a Hugging Face dataset.",
        show_default=False,
    ),
]
ImageData = Annotated[
    Path,
    typer.Argument(
        help="The private dataset of images: a folder of them, .npz, .parquet, .csv, .tsv or "
        ".jsonl with a column of paths, or a Hugging Face dataset on disk.",
        show_default=False,
    ),
]
DEFAULT_BUNDLE = "glyphs"
BundleName = Annotated[
    str, typer.Option("--bundle", "-b", help="A shipped bundle's name, or a bundle's folder.")
]
Epsilon = Annotated[
    float, typer.Option("--epsilon", "-e", help="How much is spent: ε of this run.")
]
Delta = Annotated[
    float, typer.Option("--delta", "-d", help="δ of this run; well below 1 / number of units.")
]
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        "-l",
        help="The ledger that the budget is taken from; by default this account's own.",
        show_default=False,
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="What the ledger knows the dataset by: a name without /, or an absolute path; by "
        "default its own. Give it the same name wherever it lies, or a moved copy is a new dataset "
        "with a new budget.",
        show_default=False,
    ),
]
AdjacencyName = Annotated[
    Literal["add-remove", "replace-one"],
    typer.Option(
        "--adjacency",
        help="Which datasets count as neighbours: one unit more or less (their number is private), "
        "or one exchanged (it is public).",
    ),
]
AllowWeakDelta = Annotated[
    bool,
    typer.Option(
        "--allow-weak-delta",
        help="Keep what comes out where δ is not below 1 / number of units: a weak promise.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        help="Column (array of .npz) of the images; by default image, images, img, x, file_name, "
        "path or file, whichever is there.",
        show_default=False,
        rich_help_panel=_DATA_PANEL,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the documents, for a text bundle; by default text, body, content, document "
        "or message, whichever is there.",
        show_default=False,
        rich_help_panel=_DATA_PANEL,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the labels, for one adapter a class; `folder` for sub-folders. "
        "Needs --classes.",
        show_default=False,
        rich_help_panel=_DATA_PANEL,
    ),
]
UnitColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the user a record belongs to: then users are protected, not records.",
        show_default=False,
        rich_help_panel=_DATA_PANEL,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="The legal labels, separated by commas. They are public: name them from what "
        "everybody knows, not from the data.",
        show_default=False,
        rich_help_panel=_DATA_PANEL,
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out records that cannot be read, instead of stopping at the first. How many "
        "is not told.",
        rich_help_panel=_DATA_PANEL,
    ),
]
Invert = Annotated[
    bool,
    typer.Option(
        "--invert",
        help="Make dark light in every record, for dark ink on white paper: the shipped bundles "
        "know light ink on black. The certificate says so; samples come out light on black.",
        rich_help_panel=_DATA_PANEL,
    ),
]


def split_classes(classes: str | None) -> tuple[str, ...] | None:
    """The labels that `--classes` names.

    Args:
        classes: labels separated by commas, or None.

    Returns:
        The labels without blanks around them, spelt as readers spell those of records, or None.
    """
    if classes is None:
        return None
    composed = unicodedata.normalize("NFC", classes)
    return tuple(label.strip() for label in composed.split(",") if label.strip())


def default_ledger() -> Path:
    """The one ledger of this account, wherever a command is called from."""
    from hyperdp.keys import config_dir

    return config_dir() / "ledger.db"


Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that embed. More machines: `accelerate launch … -m hyperdp release …`.",
        rich_help_panel=_SPEED_PANEL,
    ),
]

"""`hyperdp private`: release and emit in one go, and steps after it where asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperdp.cli import _options as o
from hyperdp.cli._device import OnDevice, on_device
from hyperdp.cli._emitting import emit
from hyperdp.cli._public import PublicLabels, PublicRecords, PublicSteps, read_public
from hyperdp.cli._refine import refine
from hyperdp.cli._refining import RefineRequest, settle
from hyperdp.cli._releasing import ReleaseRequest, describe, make_release, tell
from hyperdp.cli._words import command
from hyperdp.errors import UsageError

_REFINE_PANEL = "Steps after the release, out of the same budget"


def private_command(
    data: o.Data,
    epsilon: o.Epsilon,
    delta: o.Delta,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to be made: release/ and adapter/ in it.")
    ],
    bundle: o.BundleName = "glyphs",
    ledger: o.LedgerFile = None,
    dataset: o.DatasetName = None,
    adjacency: o.AdjacencyName = "add-remove",
    image_column: o.ImageColumn = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    unit_column: o.UnitColumn = None,
    classes: o.Classes = None,
    skip_unreadable: o.SkipUnreadable = False,
    invert: o.Invert = False,
    allow_weak_delta: o.AllowWeakDelta = False,
    refine_by: Annotated[
        Literal["prism", "dpsgd"] | None,
        typer.Option(
            "--refine",
            help="Spend a part of the budget on private steps from the released adapter.",
            show_default=False,
            rich_help_panel=_REFINE_PANEL,
        ),
    ] = None,
    refine_fraction: Annotated[
        float | None,
        typer.Option(
            help="f, the share of the budget that the steps get (of 1/τ², as it composes); 0 for "
            "one release alone. By default what the bundle's table says.",
            show_default=False,
            rich_help_panel=_REFINE_PANEL,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Number of units as far as it is public: what everybody knows, or a guess. A "
            "wrong one costs accuracy, never privacy. Needed with --refine.",
            show_default=False,
            rich_help_panel=_REFINE_PANEL,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="By default the bundle's table's, or 200.",
            show_default=False,
            rich_help_panel=_REFINE_PANEL,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Expected batch.", show_default=False, rich_help_panel=_REFINE_PANEL),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(
            help="C, in the norm of the method.", show_default=False, rich_help_panel=_REFINE_PANEL
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(show_default=False, rich_help_panel=_REFINE_PANEL)
    ] = None,
    microbatch: Annotated[
        int, typer.Option(min=1, help="Records in memory at once.", rich_help_panel=_REFINE_PANEL)
    ] = 32,
    device: OnDevice = "cpu",
    public: PublicRecords = None,
    public_label_column: PublicLabels = None,
    public_steps: PublicSteps = None,
    as_json: o.AsJson = False,
) -> None:
    """Release and emit in one go: a private dataset becomes a LoRA adapter.

    The same as `hyperdp release` and then `hyperdp emit`; only the first spends anything. With
    --refine a part of the budget is kept back for private steps from that adapter; killed and
    started again with the same words, such a run goes on and spends nothing twice. The noise of
    these steps is floating-point, a weaker promise than the release's (docs/privacy.md).

    With --public the adapter is trained on, on public records, as by `hyperdp emit --public`.

    Example: hyperdp private scans/ --epsilon 1 --delta 1e-5 -o out/scans

    Example: hyperdp private scans/ -e 8 -d 1e-5 -o out/scans --refine prism --size 2000
    """
    from hyperdp import sources
    from hyperdp.guard import load_guard
    from hyperdp.text_bundle import open_bundle

    request = ReleaseRequest(
        data=data,
        epsilon=epsilon,
        delta=delta,
        out=out / "release",
        ledger=ledger,
        dataset=dataset,
        adjacency=adjacency,
        image_column=image_column,
        text_column=text_column,
        label_column=label_column,
        unit_column=unit_column,
        classes=classes,
        skip_unreadable=skip_unreadable,
        invert=invert,
        allow_weak_delta=allow_weak_delta,
    )
    settings = (refine_fraction, size, steps, batch, clip_norm, lr)
    if refine_by is None and any(value is not None for value in settings):
        raise UsageError(
            expected="--refine prism or --refine dpsgd with settings of the steps",
            found="such settings alone",
            todo="Name the method, or leave them out.",
        )
    if refine_by is not None and public is not None:
        raise UsageError(
            expected="one way to go on from the released adapter",
            found="--refine and --public",
            todo="Leave one of them out; nothing has been spent.",
        )
    begun = refine_by is not None and (out / ".adapter.run").is_dir()
    if not begun:
        _check_new(out, bundle)
    places = [Path(place).expanduser().resolve() for place in (public or "", data)]
    if public is not None and sources.overlap(*places):
        raise UsageError(
            expected="--public records that are public",
            found="the private dataset itself, or a part of it: read without privacy",
            todo="Name public records, such as those of `hyperdp pretrain public`.",
        )
    loaded = on_device(open_bundle(bundle), device)
    # What cannot be read or used is refused before anything is spent.
    records = read_public(public, loaded, label_column=public_label_column)
    if records is not None:
        records.classes(o.split_classes(classes))
    load_guard(loaded.path, loaded.hash)
    if refine_by is not None:
        steps_asked = RefineRequest(
            method=refine_by,
            fraction=refine_fraction,
            size=size,
            steps=steps,
            batch=batch,
            clip_norm=clip_norm,
            lr=lr,
        )
        request.budget()  # refuses an ε that is none, which the table knows nothing of
        settled = settle(steps_asked, loaded, epsilon)
        typer.echo(settled.told, err=True)
        if settled.config is not None:
            refine(request, settled, loaded, microbatch=microbatch, as_json=as_json)
            return
    facts = describe(make_release(request, loaded), request.out)
    made = emit(request.out, loaded, out / "adapter", public=records, steps=public_steps)
    if as_json:
        typer.echo(json.dumps(facts | made.facts()))
        return
    tell(facts)
    made.tell()


def _check_new(out: Path, bundle: str) -> None:
    """Refuse a folder that holds something, and say what it is that is there.

    Raises:
        UsageError: it does.
    """
    release, adapter = out / "release", out / "adapter"
    found, todo = "which holds something", "Choose another --out; nothing has been spent."
    if (adapter / "certificate.json").is_file():
        found = "which holds what this command makes: the adapter is there"
        todo = f"Use {adapter}, or choose another --out. Nothing more has been spent."
    elif (release / "certificate.json").is_file():
        of = [] if bundle == o.DEFAULT_BUNDLE else ["--bundle", bundle]
        found = "which holds a release that was paid for"
        todo = (
            f"Go on from it: `{command('emit', release, *of, '-o', adapter)}`, with what you said "
            "of public records. Nothing more has been spent."
        )
    elif out.is_dir() and any(out.glob(".release.*")):
        found = "in which an earlier run was killed before its release was on disk"
        todo = (
            "What that run had reserved stays spent, see `hyperdp ledger show`. Choose another "
            "--out, or delete this one; nothing more has been spent."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected="an empty or new folder to write to", found=f"'{out}', {found}", todo=todo
        )

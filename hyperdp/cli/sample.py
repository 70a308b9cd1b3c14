"""`hyperdp sample`: images or documents from an adapter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdp.cli._bars import advance, counting_bar
from hyperdp.cli._device import OnDevice, on_device

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.text_bundle import TextBundle


def sample_command(
    adapter: Annotated[
        Path, typer.Argument(help="A PEFT directory, or a folder with one for each class.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for images and `grid.png`, or `texts.jsonl`."),
    ],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Images or documents of each adapter.")
    ] = 100,
    bundle: Annotated[
        str, typer.Option("--bundle", "-b", help="Name or folder of the bundle.")
    ] = "glyphs",
    seed: Annotated[int, typer.Option(help="Of the draws; it protects nothing.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps; the bundle's own by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 50,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Of a language model; 1 draws as it has learned.")
    ] = 1.0,
    candidates: Annotated[
        int,
        typer.Option(
            min=1,
            help="Documents: write so many times as many, and keep those that lie furthest on "
            "their class's side of --release.",
        ),
    ] = 1,
    release: Annotated[
        Path | None, typer.Option(help="The labelled release that the adapters are of.")
    ] = None,
    device: OnDevice = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Draw images or documents from an adapter; of a labelled release, of each class.

    Examples: hyperdp sample out/adapter -n 1000 -o out/samples;
    hyperdp sample out/adapters -b text-tiny --release out/release --candidates 3 -o out/mails
    """
    from hyperdp.cli._texts import check_selection, write_texts
    from hyperdp.errors import UsageError
    from hyperdp.images import save_grid, save_images
    from hyperdp.lora import attach_peft, load_peft
    from hyperdp.text_bundle import TextBundle, open_bundle

    loaded = on_device(open_bundle(bundle), device)
    if (adapter / "adapter_config.json").is_file():
        sources = {"": adapter}
    else:
        sources = {p.parent.name: p.parent for p in sorted(adapter.glob("*/adapter_config.json"))}
    if not sources:
        raise UsageError(
            expected="a PEFT directory (adapter_config.json), or a folder of them",
            found=str(adapter),
            todo="Make one with `hyperdp emit`.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            expected="an empty or new folder for what is drawn",
            found=str(out),
            todo="Choose another --out; samples are never overwritten.",
        )
    for folder in {adapter, *sources.values()}:
        _check_made_with(folder, loaded)
    known = {name for name, _ in loaded.base.model.named_modules()}
    for source in sources.values():
        if foreign := sorted(set(load_peft(source)) - known):
            raise UsageError(
                expected=f"an adapter of the bundle {loaded.name!r}",
                found=f"{source}, which is of another model: {foreign[0]} is no part of this one",
                todo="Name the adapter's bundle with --bundle.",
            )
    if isinstance(loaded, TextBundle):
        check_selection(release, candidates, sources)
        wrote = write_texts(
            loaded, sources, out, count=count, seed=seed, temperature=temperature,
            release=release, candidates=candidates, labels=_classes(adapter),
        )  # fmt: skip
        found = {"out": str(out), "texts": wrote}
        typer.echo(json.dumps(found) if as_json else f"{sum(wrote.values())} texts in {out}")
        return
    if release is not None or candidates > 1:
        raise UsageError(
            expected="--release and --candidates with a bundle of texts",
            found=f"the bundle {loaded.name!r}, which is of images",
            todo="Leave both out.",
        )
    out.mkdir(parents=True, exist_ok=True)  # refused now rather than after the drawing
    written = {}
    with counting_bar() as bar:
        for name, source in sources.items():
            task = bar.add_task(f"sampling {name}".strip(), total=count)
            base = loaded.load_base()
            images = base.sample(
                count,
                seed=seed,
                steps=steps or loaded.config.sampling_steps,
                batch_size=batch_size,
                model=attach_peft(base.model, source),
                progress=partial(advance, bar, task),
            )
            save_images(images, out / name)
            save_grid(images[:100], (out / f"{name or 'grid'}.png") if name else out / "grid.png")
            written[name or "."] = count
    if as_json:
        typer.echo(json.dumps({"out": str(out), "images": written}))
    else:
        typer.echo(f"{sum(written.values())} images in {out}")


def _classes(folder: Path) -> dict[str, str]:
    """Folder → class, of the adapters of a labelled release; {} where no certificate tells."""
    from hyperdp.certificate import CERTIFICATE_FILE
    from hyperdp.private.emit import class_folders

    file = folder / CERTIFICATE_FILE
    names = json.loads(file.read_bytes()).get("classes") if file.is_file() else None
    return dict(zip(class_folders(names), names, strict=True)) if names else {}


def _check_made_with(folder: Path, bundle: Bundle | TextBundle) -> None:
    """Refuse another bundle than the certificate beside an adapter names.

    A base model of the same layout takes any adapter, and draws something else with it.

    Raises:
        BundleError: it is another one. UsageError: the certificate is none.
    """
    from hyperdp.certificate import CERTIFICATE_FILE
    from hyperdp.errors import BundleError, UsageError

    file = folder / CERTIFICATE_FILE
    if not file.is_file():  # an adapter that was passed on by itself
        return
    try:
        made_with = json.loads(file.read_bytes())["bundle_hash"]
        name = json.loads(file.read_bytes())["bundle_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            expected=f"the certificate of an adapter in {file}",
            found=type(error).__name__,
            todo="Emit the adapter again, or check it with `hyperdp verify`.",
        ) from error
    if made_with != bundle.hash:
        raise BundleError(
            expected=f"the bundle that {folder} was made with, {name!r}, {str(made_with)[:12]}",
            found=f"{bundle.name!r}, {bundle.hash[:12]}",
            todo="Give that bundle with --bundle; another one draws something else.",
        )

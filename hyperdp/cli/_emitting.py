"""What `hyperdp emit` and `hyperdp private` share: from a release to adapters, and what to say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hyperdp.cli._words import bundle_words, command

if TYPE_CHECKING:
    from hyperdp.bundle import Bundle
    from hyperdp.cli._public import Public
    from hyperdp.guard import Finding
    from hyperdp.text_bundle import TextBundle

NOT_JUDGED = (
    "Whether the data is like the public data was not judged: the bundle has no calibration data."
)
MAKE_IT = "`hyperdp pretrain forecast BUNDLE` makes it (--corpus for images of your own)."

UNLABELLED = (
    "warning: training on public records helped labelled releases of images alone; after others, "
    "compare with the adapter that `hyperdp emit` makes without --public."
)

POLARITY = {
    False: "If the records are dark ink on white paper: the bundle knows light on dark, and they "
    "want `hyperdp release --invert`, which spends anew.",
    True: "They were released with --invert, which is right for dark ink on white paper alone. "
    "Other causes: another kind of picture, or another size or place of the ink in it.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emitted:
    """What came of a release.

    Attributes:
        folders: the PEFT directories.
        finding: the guard's; None where the bundle has no calibration data.
        next_step: what to do with them, in a sentence.
        inverted: whether dark was made light in the records; None for texts.
    """

    folders: list[Path]
    finding: Finding | None
    next_step: str
    inverted: bool | None

    def facts(self) -> dict[str, Any]:
        """Values for `--json`."""
        judged = None if self.finding is None else dataclasses.asdict(self.finding)
        return {"adapters": [str(folder) for folder in self.folders], "guard": judged}

    def tell(self) -> None:
        """Print it in words."""
        for folder in self.folders:
            typer.echo(f"adapter in {folder}")
        if self.finding is not None:
            typer.echo(self.finding.sentence())
        else:  # a language model's has none yet, and no command makes it
            typer.echo(NOT_JUDGED if self.inverted is None else f"{NOT_JUDGED} {MAKE_IT}")
        if self.finding is not None and self.finding.flagged and self.inverted is not None:
            typer.echo(POLARITY[self.inverted])
        typer.echo(self.next_step)


def next_step(bundle: Bundle | TextBundle, adapter: Path) -> str:
    """What to do with an adapter of a bundle, in a sentence."""
    from hyperdp.text_bundle import MODEL, TextBundle

    if isinstance(bundle, TextBundle):
        words = command("sample", adapter, *bundle_words(bundle), "-o", "DOCUMENTS")
        return f"Next: {words}, or load it with peft over the base model in {bundle.path / MODEL}."
    words = command("sample", adapter, *bundle_words(bundle), "-o", "IMAGES")
    return f"Next: {words}, or load it with peft and diffusers."


def emit(
    release: Path,
    bundle: Bundle | TextBundle,
    out: Path,
    *,
    public: Public | None,
    steps: int | None,
) -> Emitted:
    """Judge a release and write its adapters; post-processing, which costs no privacy.

    Args:
        release: its folder.
        bundle: that it was made with.
        out: folder of the adapters.
        public: of `read_public`; None for what ρ emits as it is.
        steps: of the training on them; as many as are usual when None.
    """
    from hyperdp.cli._bars import counting_bar
    from hyperdp.private.emit import emit_adapter, judge_release
    from hyperdp.private.release import Release
    from hyperdp.private.reweight import adapt_on_public, usual_config
    from hyperdp.text_bundle import TextBundle

    loaded = Release.load(release)
    classes = None if public is None else public.classes(loaded.classes)
    finding, told = judge_release(loaded, bundle), next_step(bundle, out)
    inverted = None if isinstance(bundle, TextBundle) else loaded.certificate.inverted
    if public is None:
        folders = emit_adapter(loaded, bundle, out)
        return Emitted(folders=folders, finding=finding, next_step=told, inverted=inverted)
    if loaded.certificate.num_classes == 1:
        typer.echo(UNLABELLED, err=True)
    config = usual_config(bundle)
    config = dataclasses.replace(config, steps=config.steps if steps is None else steps)
    with counting_bar() as bar:
        task = bar.add_task("training on public records", total=config.steps)
        folders = emit_adapter(
            loaded,
            bundle,
            out,
            read=lambda own, mean, noise_std: adapt_on_public(
                own,
                mean,
                noise_std,
                public.records,
                config,
                classes=classes,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            ),
        )
    return Emitted(folders=folders, finding=finding, next_step=told, inverted=inverted)

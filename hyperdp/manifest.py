"""A bundle's manifest: its configuration and the SHA-256 of every file, known by one hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hyperdp.errors import BundleError

FORMAT = 1
LARGEST_SIZE, MOST_LAYERS = 2**16, 64
_LAYERS = {"depth", "layers_per_block", "num_layers", "num_hidden_layers"}


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """Reads `bundle.json` and checks every file that it names.

    Args:
        folder: the bundle's.

    Returns:
        The configuration, and the SHA-256 of the manifest, which is the bundle's hash.

    Raises:
        BundleError: damaged, or of a later format.
    """
    raw = (folder / "bundle.json").read_bytes()
    try:
        manifest = json.loads(raw)
        files, config, version = manifest["files"], manifest["config"], manifest["format"]
        if not isinstance(files, dict) or not isinstance(config, dict):
            raise TypeError("files and config must be objects")
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(expected=f"a manifest in {folder / 'bundle.json'}", found=f"{error!r}",
                          todo="Take a fresh copy of the bundle.") from error  # fmt: skip
    if version != FORMAT:
        raise BundleError(
            expected=f"bundle format {FORMAT}",
            found=str(version),
            todo="Use a fitting hyperdp version.",
        )
    for name, digest in files.items():
        path = folder / name
        found = (
            _sha256(path)
            if path.is_file() and path.resolve().is_relative_to(folder.resolve())
            else "no such file"
        )
        if found != digest:
            raise BundleError(
                expected=f"{name} with SHA-256 {digest}",
                found=found,
                todo="The bundle was changed or cut short: take a fresh copy.",
            )
    return config, hashlib.sha256(raw).hexdigest()


def write_manifest(folder: Path, config: dict[str, Any]) -> None:
    """Writes `bundle.json` over all files that lie in `folder`, hidden ones left out."""
    names = sorted(
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and p.name != "bundle.json" and not p.name.startswith(".")
    )
    manifest = {
        "format": FORMAT,
        "config": config,
        "files": {name: _sha256(folder / name) for name in names},
    }
    (folder / "bundle.json").write_text(json.dumps(manifest, indent=1) + "\n")


def check_sizes(value: object, name: str = "", *, largest: int = LARGEST_SIZE) -> None:
    """Refuses sizes that no model has, before they are allocated or counted up to.

    Raises:
        ValueError: there is one.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            check_sizes(part, str(key), largest=largest)
    elif isinstance(value, list):
        if len(value) > largest:
            raise ValueError(f"{name} has {len(value)} parts")
        for part in value:
            check_sizes(part, name, largest=largest)
    elif isinstance(value, int | float):
        most = MOST_LAYERS if name in _LAYERS else largest
        if not -largest <= value <= most:
            raise ValueError(f"{name} is {value}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""A bundle's manifest: its configuration and the SHA-256 of every file, known by one hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hyperdp.errors import BundleError

FORMAT = 1
# Measured on a finished bundle and laid beside it: they name its hash, so it cannot hold theirs.
MANIFEST = "bundle.json"
MEASURED = ("forecast.json", "guard.safetensors", "hybrid.json")
NETWORKS = ("encoder.safetensors", "hypernetwork.safetensors")
LARGEST_SIZE, MOST_LAYERS = 2**16, 64
_LAYERS = {"depth", "layers_per_block", "num_layers", "num_hidden_layers"}


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """Reads `bundle.json`, checks every file that it names, and that no other lies there.

    A library that loads a folder takes more of what lies in it than is asked for, such as an
    adapter beside a model: what the hash does not cover must not be there. Only what was measured
    on the bundle later, and hidden files, which nothing reads, may be.

    Args:
        folder: the bundle's.

    Returns:
        The configuration, and the SHA-256 of the manifest, which is the bundle's hash.

    Raises:
        BundleError: damaged, with files added or without a network, or of a later format.
    """
    raw = (folder / MANIFEST).read_bytes()
    try:
        manifest = json.loads(raw)
        files, config, version = manifest["files"], manifest["config"], manifest["format"]
        if not isinstance(files, dict) or not isinstance(config, dict):
            raise TypeError("files and config must be objects")
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(expected=f"a manifest in {folder / MANIFEST}", found=f"{error!r}",
                          todo="Take a fresh copy of the bundle.") from error  # fmt: skip
    if version != FORMAT:
        raise BundleError(
            expected=f"bundle format {FORMAT}",
            found=str(version),
            todo="Use a fitting hyperdp version.",
        )
    _check_names(folder, set(files))
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
    names = sorted(_present(folder))
    manifest = {
        "format": FORMAT,
        "config": config,
        "files": {name: _sha256(folder / name) for name in names},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _present(folder: Path) -> set[str]:
    """The files of a bundle, links to anything among them; `bundle.json` and hidden ones not."""
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if (p.is_file() or p.is_symlink()) and p.name != "bundle.json" and p.name[0] != "."
    }


def _check_names(folder: Path, listed: set[str]) -> None:
    model = any(name.endswith("/config.json") for name in listed)
    missing = sorted({*NETWORKS} - listed) or ([] if model else ["a model's config.json"])
    if missing:
        raise BundleError(
            expected=f"a manifest that names {', '.join(NETWORKS)} and the files of a model",
            found=f"none of {', '.join(missing)} in it",
            todo="Take a fresh copy of the bundle.",
        )
    added = sorted(_present(folder) - listed - {*MEASURED})
    if added:
        raise BundleError(
            expected=f"no file in {folder} but those that its manifest names",
            found=", ".join(added[:5]),
            todo="Take them away, or take a fresh copy of the bundle.",
        )


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

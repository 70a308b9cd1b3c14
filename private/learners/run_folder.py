"""The hidden folder of a run: its settings, and the released state a killed run goes on from.

It holds nothing un-noised. It lies beside the output as `.NAME.run`, is readable by its owner
alone, and is taken away once the adapter is in its place. The state is sealed with the operator's
key, and the config folder notes its step: one that was changed, or put back from a copy, would be
gone on from with steps that were shown already, and is refused.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from hyperdp import keys
from hyperdp.errors import BudgetRefusedError, UsageError
from hyperdp.lora import Weights

_SETTINGS, _STATE = "run.json", "state.sealed"
_SEAL = 64  # hex digits, before the safetensors
_STEP = "step"


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
        """Keep the state after a step, in one step that a kill cannot halve.

        Raises:
            BudgetRefusedError: as many steps were taken elsewhere, by a copy of this folder.
        """
        if 0 < step <= (last := keys.noted_step(self.run_id)):
            raise self._refusal(f"one of step {last}, which another process took for this run")
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        data = tensors_to_bytes({**whole, _STEP: torch.tensor(step)})
        keys.write_durably(self.path / _STATE, self._seal(data) + data)
        keys.note_step(self.run_id, step)  # after it: a kill between the two costs nothing

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The last state kept and its step, or None at the start of a run.

        Raises:
            BudgetRefusedError: this run did not write it, or has written a later one.
        """
        if not self.begun:
            return None
        sealed = (self.path / _STATE).read_bytes()
        seal, data = sealed[:_SEAL], sealed[_SEAL:]
        if not hmac.compare_digest(seal, self._seal(data)):
            raise self._refusal("one that was changed, or is another run's")
        tensors = tensors_from_bytes(data)
        step = int(tensors.pop(_STEP))
        if step < (last := keys.noted_step(self.run_id)):
            raise self._refusal(f"one of step {step}, though {last} were taken and may be known")
        return step, tensors

    def _seal(self, data: bytes) -> bytes:
        return keys.seal(b"hyperdp run\0" + self.run_id.encode() + b"\0" + data).encode()

    def _refusal(self, found: str) -> BudgetRefusedError:
        return BudgetRefusedError(
            expected=f"the last state that the run wrote in {self.path}",
            found=found,
            todo="Put that state back, or begin a new run in another folder; what this one "
            "reserved stays spent.",
        )

    def remove(self) -> None:
        """Take the folder away; the run is over.

        In an order that leaves, wherever it is killed, a run that is known and has no state.
        """
        (self.path / _STATE).unlink(missing_ok=True)
        (self.path / _SETTINGS).unlink()
        shutil.rmtree(self.path)
        keys.forget_run(self.run_id)


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
            raise _busy(out) from None
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
        with keys.alone(body["run_id"], wait=False) as own:  # whatever was copied or removed here
            if not own:
                raise _busy(out)
            yield RunFolder(path=path, run_id=body["run_id"])


def _busy(out: Path) -> UsageError:
    return UsageError(
        expected=f"one process at a time for {out}",
        found="another that is running",
        todo="Wait for it, or choose another folder.",
    )


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

"""What each launched process of a shared release runs: python tests/together.py FOLDER UNIT CASE.

The noise is replaced by none, so that the release shows the exact sums.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hyperdp.budget import PrivacyBudget
from hyperdp.errors import HyperdpError
from hyperdp.ledger import Ledger
from hyperdp.private import release as release_module
from hyperdp.private.readers import decoding
from hyperdp.private.records import Record
from hyperdp.private.together import release_together
from hyperdp.processes import joined_processes
from tests.private_world import SHAPE, TinyBundle, TinyConfig, records

CLASSES = ["0", "1", "2"]


def main(folder: Path, unit: str, case: str, state: PartialState) -> int:
    drawn: list[int] = []
    read: list[int] = []

    def exact(total, budget):
        drawn.append(1)
        return total._sums.copy(), total._counts.copy()

    release_module.add_noise = exact
    bundle = TinyBundle(config=TinyConfig(clip_norm=0.1))
    if case == "unlike" and not state.is_main_process:
        torch.nn.init.ones_(bundle.encoder[-1].bias)
    if case == "other decoder" and not state.is_main_process:
        honest = decoding.to_pixels
        decoding.to_pixels = lambda *given: np.nextafter(honest(*given), np.float32(2))
    data = records(203, classes=3, users=17)
    if case == "failing":
        data.append(
            Record(image=np.zeros(SHAPE, np.float32), label="a secret of seven", unit="user-1")
        )
    order = np.random.default_rng(state.process_index).permutation(len(data))

    def reader():
        for i in order:
            read.append(1)
            yield data[i]

    ledger = Ledger(folder / "ledger.db")
    budget = PrivacyBudget(epsilon=8.0, delta=1e-5, unit=unit)
    if state.is_main_process and case == "refused":
        ledger.set_cap("test", PrivacyBudget(epsilon=1.0, delta=1e-5))
    status = "done"
    try:
        made = release_together(
            reader(), bundle=bundle, budget=budget, classes=CLASSES, state=state, ledger=ledger,
            out=folder / "release", dataset="test",
        )  # fmt: skip
        assert (made is not None) == state.is_main_process
        if made is not None:
            np.savez(folder / "sums.npz", sums=made.sums, counts=made.counts)
    except HyperdpError as error:
        status = f"{type(error).__name__}: {error}"
    said = f"{status}|{sum(drawn)}|{sum(read)}"
    (folder / f"said-{state.process_index}").write_text(said)
    return 0


if __name__ == "__main__":
    with joined_processes() as joined:
        ended = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], joined)
    sys.exit(ended)

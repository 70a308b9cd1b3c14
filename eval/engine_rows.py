"""Rows of the engine's benches: no data, no budget, but the machine with its operator threads."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance

Figure = tuple[str, str, int | None, float]  # metric, method, records, value


def write_engine_rows(
    path: Path,
    figures: list[Figure],
    *,
    bench: str,
    base: str,
    begin: float,
    private_set: str = "synthetic",
    device: torch.device | None = None,
) -> list[Row]:
    """Makes rows of figures and appends them.

    Args:
        path: JSONL.
        figures: metric, method, records or None, value.
        bench: as in `Row`.
        base: as in `Row`.
        private_set: as in `Row`.
        begin: `time.monotonic()` when the measuring began.
        device: where it was measured; a GPU is named beside the processor.

    Returns:
        The rows.
    """
    source = provenance()
    source["hardware"] += f", {torch.get_num_threads()} operator threads"
    if device is not None and device.type == "cuda":
        source["hardware"] += f", {torch.cuda.get_device_name(device)}"
    rows = [
        Row(
            bench=bench, base=base, private_set=private_set, method=method, n=n, epsilon=None,
            delta=None, seed=0, metric=metric, value=value,
            seconds=round(time.monotonic() - begin, 1), peak_rss_mb=peak_rss_mb(), **source,
        )
        for metric, method, n, value in figures
    ]  # fmt: skip
    append_rows(path, rows)
    return rows

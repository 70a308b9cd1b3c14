"""`hyperdp bench release`: the private stage beside the bare encoder, in time and memory.

All records are synthetic. Throughput is measured with the bundle's encoder; memory with an encoder
of toy size on 8×8 images, so that a million records pass in minutes: what must stay flat is what
the private stage itself holds, and that does not depend on the encoder.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from hyperdp.bundle import Bundle
from hyperdp.compute import one_thread
from hyperdp.encoder import Encoder, EncoderConfig
from hyperdp.eval.engine_rows import Figure, write_engine_rows
from hyperdp.eval.results import Row
from hyperdp.mechanism import MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.embed import BATCH_SIZE
from hyperdp.private.records import Record
from hyperdp.private.workers import Workers

BENCH = "release"
_SMALL = (1, 8, 8)


@dataclass(frozen=True, kw_only=True)
class ReleaseBenchConfig:
    """What is measured.

    Attributes:
        records: of the throughput.
        repeats: turns of encoder and private stage; one more goes first.
        sizes: n of the memory, the first one being the measure.
        workers: layouts whose integer sums must agree.
    """

    records: int = 2048
    repeats: int = 5
    sizes: tuple[int, ...] = (10_000, 1_000_000)
    workers: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    embed_dim: int
    clip_norm: float
    image_shape: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """What a release needs of a bundle, and no more."""

    name: str
    hash: str
    encoder: Encoder
    config: _Shape


def throughputs(bundle: Bundle, config: ReleaseBenchConfig) -> tuple[list[float], list[float]]:
    """Records a second of CPU: of the bare encoder, and of `aggregate`, in turn.

    The encoder is given batches of the same shape, made beforehand, and is asked for nothing else.
    """
    rng = np.random.default_rng(0)
    shape = bundle.config.image_shape
    pixels = rng.uniform(-1, 1, (config.records, *shape)).astype(np.float32)
    records = [Record(image=image) for image in pixels]
    batches = list(torch.split(torch.from_numpy(pixels), BATCH_SIZE))
    spec = _spec(bundle.config.embed_dim, bundle.config.clip_norm)
    encoder = bundle.encoder.eval()
    bare, private = [], []
    # Both on one thread: operator threads spend CPU time on waiting, and two that share a core slow
    # each other down, so that another number for either would measure that.
    with one_thread(), torch.no_grad():
        for turn in range(config.repeats + 1):
            begin = time.process_time()
            for batch in batches:
                encoder(batch)
            middle = time.process_time()
            aggregate(records, bundle=bundle, spec=spec, unit="record", classes=[])
            end = time.process_time()
            if turn:
                bare.append(config.records / (middle - begin))
                private.append(config.records / (end - middle))
    return bare, private


def peak_memory(count: int) -> float:
    """Largest resident set, in MiB, of a fresh process that adds up `count` synthetic records."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_add_up_stream, count).result()


def _add_up_stream(count: int) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(image_shape=_SMALL, embed_dim=8, widths=(8,), hidden=8))
    bundle = _Plain(
        name="toy",
        hash="",
        encoder=encoder.eval(),
        config=_Shape(embed_dim=8, clip_norm=1.0, image_shape=_SMALL),
    )

    def stream() -> Iterator[Record]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield Record(image=rng.random(_SMALL, dtype=np.float32))

    aggregate(stream(), bundle=bundle, spec=_spec(8, 1.0), unit="record", classes=[])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def layout_sums(bundle: Bundle, workers: int, count: int) -> np.ndarray:
    """The exact sums of synthetic records by so many workers, int64 [k + 1]."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (count, *bundle.config.image_shape))
    records = [Record(image=image) for image in pixels.astype(np.float32)]
    spec = _spec(bundle.config.embed_dim, bundle.config.clip_norm)
    with Workers(bundle, workers) as pool:
        total = pool.add_up(records, bundle=bundle, spec=spec, unit="record", classes=[])
    return total.to_vector()


def _spec(embed_dim: int, clip_norm: float) -> MechanismSpec:
    return MechanismSpec(embedding_dim=embed_dim, clip_norm=float(clip_norm))


def run_release_bench(bundle: Bundle, config: ReleaseBenchConfig, path: Path) -> list[Row]:
    """Measures and appends the rows.

    Returns:
        Rows of `records_per_second`; `throughput`, the private stage's over the encoder's (median
        of the ratios within a turn); `peak_rss_mb` of each n; `growth` of it from the first n to
        the last; `same_sums`, 1 where workers give the integers of this process.
    """
    begin = time.monotonic()
    bare, private = throughputs(bundle, config)
    ratios = [p / b for p, b in zip(private, bare, strict=True)]
    figures: list[Figure] = [
        ("records_per_second", "encoder", config.records, statistics.median(bare)),
        ("records_per_second", "private stage", config.records, statistics.median(private)),
        ("throughput", "private stage", config.records, statistics.median(ratios)),
    ]
    peaks = [peak_memory(n) for n in config.sizes]
    figures += [
        ("peak_rss_mb", "private stage, toy encoder", n, peak)
        for n, peak in zip(config.sizes, peaks, strict=True)
    ]
    figures.append(("growth", "private stage, toy encoder", config.sizes[-1], peaks[-1] / peaks[0]))
    pixels = np.random.default_rng(0).uniform(-1, 1, (config.records, *bundle.config.image_shape))
    alone = aggregate(
        [Record(image=image) for image in pixels.astype(np.float32)],
        bundle=bundle,
        spec=_spec(bundle.config.embed_dim, bundle.config.clip_norm),
        unit="record",
        classes=[],
    ).to_vector()
    for count in config.workers:
        same = np.array_equal(alone, layout_sums(bundle, count, config.records))
        figures.append(("same_sums", f"{count} workers", config.records, float(same)))
    return write_engine_rows(path, figures, bench=BENCH, base=bundle.name, begin=begin)

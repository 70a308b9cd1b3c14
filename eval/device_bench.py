"""`hyperdp bench device`: what this machine makes of training, sampling and embedding.

On a GPU, in bfloat16 where training has it, with the GPU's name in every row; without one the same
on CPU, small. A figure that the file has of this hardware already is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hyperdp.bundle import Bundle
from hyperdp.eval.results import Row, append_rows, peak_rss_mb, provenance, read_rows
from hyperdp.eval.train_step_bench import Steps, TrainStepConfig
from hyperdp.graph import GraphedShare
from hyperdp.narrow_norms import narrow_norms
from hyperdp.private.embed import BATCH_SIZE, embed_batch

BENCH = "device"
# Dense bfloat16, from the makers' data sheets, in FLOP/s: what utilisation is a share of.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


@dataclass(frozen=True, kw_only=True)
class DeviceBenchConfig:
    """What is measured.

    Attributes:
        tasks, queries: of the training step; None for 64 × 16 on a GPU, 8 × 4 without.
        images: sampled and embedded; None for 4096 on a GPU, 128 without.
        seconds: how long a training step is repeated.
        device: where; None for the GPU if there is one.
    """

    tasks: int | None = None
    queries: int | None = None
    images: int | None = None
    seconds: float = 5.0
    device: str | None = None

    @property
    def place(self) -> torch.device:
        """The device."""
        return TrainStepConfig(device=self.device).place


class Measurements:
    """The figures, each by a method of its own."""

    def __init__(self, bundle: Bundle, config: DeviceBenchConfig) -> None:
        self.bundle, self.config, self.device = bundle, config, config.place
        self.gpu = self.device.type == "cuda"
        self.images = config.images or (4096 if self.gpu else 128)

    def training(self) -> dict[str, float]:
        """FLOP/s of the hypernetwork step and, on a GPU whose peak is known, its share of that.

        The operations are those of the step's own matrix products and convolutions, forward and
        backward, as torch counts them.
        """
        config = TrainStepConfig(
            tasks=self.config.tasks or (64 if self.gpu else 8),
            queries=self.config.queries or (16 if self.gpu else 4),
            device=str(self.device),
        )
        steps = Steps(self.bundle, config)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu):
            return self._utilisation(steps, steps.batched)

    def training_graph(self) -> dict[str, float]:
        """The same step as the training loop takes it on a GPU: one graph, and narrow norms."""
        config = TrainStepConfig(
            tasks=self.config.tasks or 64, queries=self.config.queries or 16, device="cuda"
        )
        steps = Steps(self.bundle, config)
        narrow_norms(steps.base.model)
        steps.base.model.requires_grad_(False)

        def share() -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return steps.losses().mean()

        graphed = GraphedShare(share, steps.hyper.parameters())

        def step() -> None:
            graphed()
            torch.cuda.synchronize(self.device)

        step()
        with torch.autocast("cuda", torch.bfloat16):
            return self._utilisation(steps, step)

    def _utilisation(self, steps: Steps, step: Callable[[], object]) -> dict[str, float]:
        """FLOP/s of a step that does what `steps.batched` does, and its share of the peak."""
        with FlopCounterMode(display=False) as counter:
            steps.batched()
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < self.config.seconds:
            step()
            done += 1
        rate = counter.get_total_flops() * done / (time.perf_counter() - begin)
        figures = {"flop_per_second": rate}
        peak = self._peak()
        return figures if peak is None else {**figures, "mfu": rate / peak}

    def sampling(self) -> dict[str, float]:
        """Images a second, of the base model in float32."""
        base = self.bundle.load_base()
        base.to(self.device)
        steps, size = self.bundle.config.sampling_steps, 512 if self.gpu else 64
        base.sample(size, seed=0, steps=2, batch_size=size)
        return self._rate(
            lambda: base.sample(self.images, seed=0, steps=steps, batch_size=size), self.images
        )

    def embedding(self) -> dict[str, float]:
        """Records a second through the private stage's own batches."""
        encoder = self.bundle.encoder.to(self.device)
        images = torch.rand(BATCH_SIZE, *self.bundle.config.image_shape).numpy()
        batches = max(1, 16 * self.images // BATCH_SIZE)
        embed_batch(encoder, images)

        def embed() -> None:
            for _ in range(batches):
                embed_batch(encoder, images)

        try:
            return self._rate(embed, batches * BATCH_SIZE)
        finally:
            encoder.cpu()

    def _rate(self, work: Callable[[], object], count: int) -> dict[str, float]:
        begin = time.perf_counter()
        work()
        if self.gpu:
            torch.cuda.synchronize(self.device)
        return {"per_second": count / (time.perf_counter() - begin)}

    def _peak(self) -> float | None:
        if not self.gpu:
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peak for key, peak in PEAKS.items() if key in name), None)


def run_device_bench(bundle: Bundle, config: DeviceBenchConfig, path: Path) -> list[Row]:
    """Measures what the file does not have of this hardware, a row at a time.

    Returns:
        The rows of this hardware in the file.
    """
    measure = Measurements(bundle, config)
    source = provenance()
    source["hardware"] += f", {torch.get_num_threads()} operator threads"
    if measure.gpu:
        source["hardware"] += f", {torch.cuda.get_device_name(measure.device)}"

    def rows() -> list[Row]:
        mine = (BENCH, bundle.name, source["hardware"])
        return [r for r in read_rows(path) if (r.bench, r.base, r.hardware) == mine]

    graph = ("training_graph",) if measure.gpu else ()
    for method in ("training", *graph, "sampling", "embedding"):
        if any(row.method == method for row in rows()):
            continue
        begin = time.monotonic()
        figures = getattr(measure, method)()
        append_rows(
            path,
            [
                Row(
                    bench=BENCH, base=bundle.name, private_set="synthetic", method=method,
                    n=None, epsilon=None, delta=None, seed=0, metric=metric, value=value,
                    seconds=round(time.monotonic() - begin, 1), peak_rss_mb=peak_rss_mb(), **source,
                )
                for metric, value in figures.items()
            ],
        )  # fmt: skip
    return rows()

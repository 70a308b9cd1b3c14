"""A share of a training step as a CUDA graph: its thousands of small kernels start as one.

Launched one by one, the kernels of a step with adapters take the processor longer than the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

WARM_UP = 3  # runs before the capture: libraries choose their kernels in them


class GraphedShare:
    """Captures forward and backward pass at the first call and replays them from then on.

    The gradients stay where the capture put them, so they must not be set to None afterwards; a
    replay overwrites them.

    Args:
        share: takes the forward pass and gives a scalar loss; all that it reads is on the GPU, in
            tensors that stay, and so is its source of random numbers.
        params: what is trained.
    """

    def __init__(self, share: Callable[[], Tensor], params: Iterable[Tensor]) -> None:
        self.share, self.params = share, list(params)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Leaves the gradients of one share in the parameters."""
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        drawn = torch.cuda.get_rng_state()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        for p in self.params:
            p.grad = None  # so that the captured pass writes them and adds to nothing
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run()
        torch.cuda.set_rng_state(drawn)  # so that the first replay draws what an eager step would
        return graph

    def _run(self) -> None:
        self.share().backward()  # type: ignore[no-untyped-call]

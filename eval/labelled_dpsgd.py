"""The `dpsgd` methods of the labelled benchmark: classifiers trained on private images."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hyperdp.budget import PrivacyBudget
from hyperdp.compute import one_thread
from hyperdp.eval.cells import Cell
from hyperdp.eval.labelled_recipe import FROM_PUBLIC, LabelledConfig
from hyperdp.eval.study import Progress, to_records
from hyperdp.ledger import Ledger
from hyperdp.private.classifier.config import ClassifierConfig
from hyperdp.private.classifier.fit import PrivateClassifier, fit_classifier
from hyperdp.private.classifier.network import NetworkConfig, WideResNet
from hyperdp.private.classifier.training import Speed

START_STEPS = 600  # of the public weights that `dpsgd_from_public` begins with
START_BATCH = 64


class PrivateClassifiers:
    """Fits the `dpsgd` cells of one private set."""

    def __init__(
        self,
        config: LabelledConfig,
        classes: list[str],
        public: Callable[[], tuple[Tensor, Tensor]],
        speed: Speed,
    ) -> None:
        """Trains nothing yet.

        Args:
            config: the recipe.
            classes: their names, in the order of the labels.
            public: reads the public images, float32 [N, C, H, W], and their labels, int64 [N];
                called where a method starts from public weights.
            speed: of the training.
        """
        self.config, self.classes, self.public, self.speed = config, classes, public, speed
        self._starts: dict[NetworkConfig, dict[str, Tensor]] = {}

    def fit(
        self, cell: Cell, images: Tensor, labels: Tensor, budget: PrivacyBudget, progress: Progress
    ) -> PrivateClassifier:
        """A classifier for one cell.

        Args:
            cell: whose method names the settings.
            images: float32 [N, C, H, W], private.
            labels: int64 [N].
            budget: spent whole.
            progress: called with (steps done, steps in all).

        Returns:
            The classifier; its ledger is thrown away, for nothing of it leaves the benchmark.
        """
        shape = (images.shape[1], images.shape[2], images.shape[3])
        config = self.config.classifier(
            cell.method,
            n=len(images),
            epsilon=budget.epsilon,
            image_shape=shape,
            classes=len(self.classes),
        )
        start = None
        if cell.method.partition("/")[0] == FROM_PUBLIC:
            start = self._public_start(config)
        with tempfile.TemporaryDirectory() as scratch, one_thread():
            return fit_classifier(
                to_records(images, labels, self.classes),
                classes=self.classes,
                config=config,
                expected_units=len(images),
                budget=budget,
                ledger=Ledger(Path(scratch) / "ledger.db"),
                dataset=f"labelled {secrets.token_hex(16)}",  # one ledger a dataset: this is new
                out=Path(scratch) / "classifier",
                start=start,
                speed=self.speed,
                progress=progress,
            )

    def _public_start(self, config: ClassifierConfig) -> dict[str, Tensor]:
        """Weights trained on the public images without privacy; made once for each network."""
        if config.network not in self._starts:
            self._starts[config.network] = train_start(config, *self.public())
        return self._starts[config.network]


def train_start(config: ClassifierConfig, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The network of a DP-SGD run, trained on public images.

    Args:
        config: its network.
        images: float32 [N, C, H, W], public.
        labels: int64 [N].

    Returns:
        Its weights.
    """
    rng = torch.Generator().manual_seed(0)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WideResNet(config.network)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=START_STEPS)
        for _ in range(START_STEPS):
            part = torch.randint(len(images), (START_BATCH,), generator=rng)
            loss = functional.cross_entropy(model(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return {name: p.detach() for name, p in model.state_dict().items()}

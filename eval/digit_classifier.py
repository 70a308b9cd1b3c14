"""A small classifier of real labelled images, to ask what a generated image is read as."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperdp.compute import device_of, one_thread

SHIFT = 2  # pixels of random shift in training


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers over 28×28 grey images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 49, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits: float32 [B, 1, 28, 28] in [-1, 1] → [B, classes]."""
        logits: Tensor = self.net(images)
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Classes int64 [N], on the CPU, of images float32 [N, 1, 28, 28]."""
        self.eval()
        device = device_of(self)
        parts = torch.split(images, 500)
        return torch.cat([self(part.to(device)).argmax(1).cpu() for part in parts])

    def share_read_as(self, images: Tensor, label: int) -> float:
        """The share of the images that are read as the class `label`, in [0, 1]."""
        return float((self.predict(images) == label).float().mean())


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 12,
    seed: int = 0,
    device: torch.device | None = None,
) -> DigitClassifier:
    """Trains on real images; nothing is chosen on any other set.

    Args:
        images: float32 [N, 1, 28, 28] in [-1, 1].
        labels: int64 [N].
        epochs: passes over the images, each image shifted by up to two pixels.
        seed: of weights, order and shifts.
        device: where it trains, and stays; the CPU when None.

    Returns:
        The classifier, in eval mode.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier(int(labels.max()) + 1).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
        steps = epochs * (len(images) // 50)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
        for _ in range(epochs):
            for part in torch.split(torch.randperm(len(images)), 50):
                if len(part) < 50:
                    continue
                batch = functional.pad(images[part].to(device), (SHIFT,) * 4, value=-1.0)
                top, left = (int(torch.randint(2 * SHIFT + 1, ())) for _ in range(2))
                batch = batch[:, :, top : top + 28, left : left + 28]
                loss = functional.cross_entropy(model(batch), labels[part].to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return model.eval()

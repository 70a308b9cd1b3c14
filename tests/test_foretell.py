"""Foretelling: its cross entropies by hand, and that the code can learn from it."""

from __future__ import annotations

import torch
from torch.nn import functional

from hyperdp.pretrain.foretell import Foretell


def _foretell(cells: int = 6, content: int = 4) -> tuple[Foretell, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 28, 28) * 2 - 1
    return Foretell(embed_dim=5, bottleneck=7, cells=cells, content=content, images=images), images


def test_set_loss_is_the_mean_cross_entropy_of_every_unseen_record():
    foretell, images = _foretell()
    code = torch.randn(2, 7)
    unseen, content = images[:6].view(2, 3, 1, 28, 28), torch.tensor([[0, 1, 2], [3, 3, 0]])
    of_cells, of_content = foretell.set_loss(code, unseen, content)
    by_hand_cells, by_hand_content = [], []
    for g in range(2):
        for n in range(3):
            pixels = functional.avg_pool2d(unseen[g, n], 2).flatten()
            nearest = min(range(6), key=lambda c: float((foretell.centroids[c] - pixels).norm()))
            by_hand_cells.append(-foretell.cells(code[g]).softmax(0)[nearest].log())
            by_hand_content.append(-foretell.content(code[g]).softmax(0)[content[g, n]].log())
    torch.testing.assert_close(of_cells, torch.stack(by_hand_cells).mean())
    torch.testing.assert_close(of_content, torch.stack(by_hand_content).mean())


def test_record_loss_can_be_learned_to_zero():
    foretell, _ = _foretell()
    embeddings, content = torch.eye(5)[:4].repeat(3, 1), torch.arange(4).repeat(3)
    optimizer = torch.optim.Adam(foretell.record.parameters(), lr=0.1)
    first = float(foretell.record_loss(embeddings, content))
    for _ in range(100):
        loss = foretell.record_loss(embeddings, content)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 1.0
    assert float(loss) < 0.05

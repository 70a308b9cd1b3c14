"""A full-rank start for PRISM: the base weights' own leading singular vectors, moved into LoRA.

The released code of PRISM (arXiv 2606.00944; osu-srml/PRISM-DP-LoRA) takes the top r singular
triples of each W0 out of the base and into the adapter, trains, and subtracts the start again, so
that what is saved is an adapter of rank 2r for the untouched base. The base is public, so all of
this is too. A start that carries W0 trains other directions of W than one that carries nothing:
where methods are compared, give it to all of them or say that PRISM alone had it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hyperdp.errors import UsageError
from hyperdp.lora import LoraSite, Weights, describe_sites


def spectral_start(model: nn.Module, names: list[str], rank: int) -> Weights:
    """Adapters that hold the top `rank` singular triples of their site's weight, √S in each factor.

    Args:
        model: the base model; it is not changed.
        names: the sites.
        rank: r.

    Returns:
        One adapter, A [1, r, in, …] and B [1, out, r], in the dtype of the weights, on the CPU.

    Raises:
        UsageError: a site whose weight has rank below r, or is no LoRA site.
    """
    modules = dict(model.named_modules())
    start: Weights = {}
    for site in describe_sites(model, names):
        weight = _weight(modules[site.name])
        u, s, v = torch.linalg.svd(weight.detach().flatten(1).double(), full_matrices=False)
        if rank > len(s) or not float(s[rank - 1]) > 1e-6 * float(s[0]):
            raise UsageError(
                expected=f"a weight of rank at least {rank} at {site.name!r}",
                found=f"rank {int((s > 1e-6 * s[0]).sum())}",
                todo="Choose a smaller rank, leave the site out, or start from an emitted adapter.",
            )
        root = s[:rank].sqrt()
        start[site.name] = _shaped(root[:, None] * v[:rank], u[:, :rank] * root, site, weight.dtype)
    return start


@contextmanager
def residual_base(model: nn.Module, start: Weights) -> Iterator[None]:
    """Takes `start` out of the base weights for the time of the context.

    Inside, base + start is the base as it was, to rounding; afterwards the weights are put back bit
    by bit.

    Args:
        model: the base model.
        start: as `spectral_start` gives it.
    """
    modules = dict(model.named_modules())
    before = {name: _weight(modules[name]).detach().clone() for name in start}
    try:
        with torch.no_grad():
            for name, (a, b) in start.items():
                weight = _weight(modules[name])
                delta = (b[0].double() @ a[0].flatten(1).double()).to(weight.device)
                weight.copy_(weight.double() - delta.reshape(weight.shape))
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                _weight(modules[name]).copy_(weight)


def rebase(weights: Weights, start: Weights) -> Weights:
    """The trained adapter as one for the untouched base: Z - Z0, of rank 2r.

    Where training moved little the two are nearly equal and far larger than their difference; so
    it is worked out in float64 and split anew, by its own singular values.

    Args:
        weights: what training ended with, r.
        start: what it began with, r, and what was taken out of the base.

    Returns:
        A [1, 2r, in, …] and B [1, out, 2r], √S in each; zeros beyond what a small site can hold.
    """
    return {name: _difference(weights[name], start[name]) for name in weights}


def _difference(end: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    (a, b), (a_0, b_0) = end, start
    rows = torch.cat([a[0].flatten(1), a_0[0].flatten(1)]).double()  # [2r, in]
    columns = torch.cat([b[0], -b_0[0]], 1).double()  # [out, 2r]
    q_in, r_in = torch.linalg.qr(rows.T)
    q_out, r_out = torch.linalg.qr(columns)
    u, s, v = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
    root = s.sqrt()
    new_a, new_b = rows.new_zeros(rows.shape), columns.new_zeros(columns.shape)
    new_a[: len(s)] = root[:, None] * (v @ q_in.T)
    new_b[:, : len(s)] = (q_out @ u) * root
    shape = (1, len(rows), *a.shape[2:])
    return new_a.reshape(shape).to(a.dtype), new_b[None].to(b.dtype)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)  # noqa: S101 - `describe_sites` let nothing else pass
    return weight


def _shaped(
    lora_a: Tensor, lora_b: Tensor, site: LoraSite, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    shaped = lora_a.reshape(1, -1, *site.a_shape), lora_b[None]
    return shaped[0].to("cpu", dtype), shaped[1].to("cpu", dtype)

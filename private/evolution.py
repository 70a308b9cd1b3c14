"""Private Evolution: noisy votes of private records steer what the base model generates.

Lin, Gopi, Kulkarni, Nori & Yekhanin 2024 (arXiv 2305.15560, algorithms 1 and 2; code:
microsoft/DPSDA). The base model draws candidates; every unit votes for the one nearest to it in
the bundle's embedding space; the noisy histogram decides which survive; the base model varies
these; and so on. The result is images. docs/learners.md says where this departs from the paper.

Reserve → read → spend → T noisy histograms → publish → commit, as in a release. A run that is
killed has spent its budget.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from numpy.typing import NDArray
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.certificate import CERTIFICATE_FILE
from hyperdp.errors import BundleError, UsageError
from hyperdp.families import need_flow
from hyperdp.family import UNetFlow
from hyperdp.images import to_uint8
from hyperdp.ledger import Ledger
from hyperdp.mechanism import FRACTIONAL_BITS, STEPS_PER_UNIT, Calibration
from hyperdp.private.embed import check_independence, weights_hash
from hyperdp.private.evolution_config import EvolutionConfig
from hyperdp.private.records import Record
from hyperdp.private.released import SignalWarning, check_public_delta, new_folder
from hyperdp.private.variation import vary
from hyperdp.private.voters import Voters, embed_all, on_lattice
from hyperdp.vote_certificate import IMAGES_FILE, VoteCertificate
from hyperdp.votes import VoteSpec, noisy_votes

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evolved:
    """Generated images, the noisy votes behind them, and their certificate; may be published.

    Attributes:
        certificate: what was promised, and how.
        images: float32 [count, C, H, W] in [-1, 1], of 256 levels.
        votes: int64 [T, N], noisy, in lattice steps.
    """

    certificate: VoteCertificate
    images: Tensor
    votes: NDArray[np.int64]


def evolve(
    records: Iterable[Record],
    *,
    bundle: Bundle,
    config: EvolutionConfig,
    budget: PrivacyBudget,
    ledger: Ledger,
    out: str | Path,
    dataset: str,
    allow_weak_delta: bool = False,
    inverted: bool = False,
    progress: Progress | None = None,
) -> Evolved:
    """Generate images that private records have voted for, and write them into a new folder.

    Args:
        records: private; read once, after the reservation. Labels are not used.
        bundle: public encoder and base model.
        config: public; must not be chosen in view of releases of this dataset.
        budget: ε, δ, adjacency and unit, for all iterations together.
        ledger: where it is spent.
        out: folder to be made; it must not exist.
        dataset: the operator's name for the dataset, or its absolute path; always the same one.
        allow_weak_delta: keep images whose δ is not below 1 / n̂.
        inverted: whether the reader made dark light in every record; noted in the certificate.
        progress: called with (iterations done, iterations).

    Returns:
        What lies in `out`.

    Raises:
        BudgetRefusedError: the ledger refuses.
        UsageError: bad settings, a folder that cannot be written, or δ >= 1 / n̂.
        DataError: the records cannot be read.
        BundleError: an embedding depends on other records, or the encoder's weights changed.
    """
    spec = VoteSpec(
        candidates=config.candidates, iterations=config.iterations, adjacency=budget.adjacency
    )
    calibration = spec.calibrate(budget)
    check_public_delta(budget.delta, allow=allow_weak_delta)
    check_independence(bundle)
    _flow_base(bundle)  # refused before anything is spent
    encoder_hash = weights_hash(bundle.encoder)
    with new_folder(Path(out)) as folder:
        reservation = ledger.reserve(
            dataset,
            budget=budget,
            event=SelfComposedDpEvent(
                GaussianDpEvent(calibration.noise_multiplier), config.iterations
            ),
            bundle_hash=bundle.hash,
            delta_discretisation=calibration.delta_discretisation,
            purpose="evolution",
        )
        folder.paid = True
        voters = Voters.read(records, bundle=bundle, budget=budget)
        reservation.spend()

        def ask(candidates: Tensor) -> NDArray[np.int64]:
            return noisy_votes(voters.vote(_stand(bundle, candidates, config), spec), budget)

        images, votes = _evolve(bundle, config, calibration, ask, progress)
        if weights_hash(bundle.encoder) != encoder_hash:
            raise BundleError(
                expected="an encoder whose weights stay as they are while records are embedded",
                found="other weights than before the first record",
                todo="Use an encoder without running statistics. The budget reserved is spent.",
            )
        _judge(votes, budget, allow_weak_delta=allow_weak_delta)
        pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous()
        data = tensors_to_bytes({"images": pixels, "votes": torch.from_numpy(votes)})
        entry = reservation.entry
        certificate = VoteCertificate(
            created=entry.time,
            code_version=version("hyperdp"),
            adjacency=budget.adjacency,
            unit=budget.unit,
            epsilon=float(budget.epsilon),
            delta=float(budget.delta),
            delta_gaussian=calibration.delta_gaussian,
            delta_discretisation=calibration.delta_discretisation,
            noise_multiplier=calibration.noise_multiplier,
            sensitivity=spec.sensitivity,
            sigma_lattice=calibration.sigma,
            lattice_bits=FRACTIONAL_BITS,
            candidates=config.candidates,
            iterations=config.iterations,
            config=dataclasses.asdict(config),
            inverted=inverted,
            bundle_name=bundle.name,
            bundle_hash=bundle.hash,
            encoder_hash=encoder_hash,
            event=entry.body["event"],
            ledger_id=entry.body["ledger_id"],
            ledger_seq=entry.seq,
            ledger_seal=entry.seal,
            dataset=entry.dataset,
            images_sha256=hashlib.sha256(data).hexdigest(),
        ).signed()
        folder.publish({IMAGES_FILE: data, CERTIFICATE_FILE: certificate.to_bytes()})
        reservation.commit(
            certificate_sha256=hashlib.sha256(certificate.to_bytes()).hexdigest(),
            bundle_hash=bundle.hash,
        )
    return Evolved(certificate=certificate, images=pixels.float() / 127.5 - 1, votes=votes)


def survival(votes: NDArray[np.int64], calibration: Calibration, threshold: float) -> Tensor:
    """Probability of each candidate to be drawn: its noisy count less H, where that is positive.

    Args:
        votes: int64 [N], noisy, in lattice steps.
        calibration: of the votes, for the noise's std.
        threshold: H, in std of the noise.

    Returns:
        float64 [N], sum 1; uniform where no candidate has more than H.
    """
    kept = np.maximum(votes / STEPS_PER_UNIT - threshold * calibration.sigma / STEPS_PER_UNIT, 0.0)
    if not kept.sum() > 0:
        kept = np.ones(len(votes))
    return torch.from_numpy(kept / kept.sum())


def _judge(votes: NDArray[np.int64], budget: PrivacyBudget, *, allow_weak_delta: bool) -> None:
    """Refuse a δ that promises little for as many units as the noisy votes add up to."""
    units = max(float(votes.sum(axis=1).mean()) / STEPS_PER_UNIT, 1.0)
    if budget.delta * units < 1:
        return
    if not allow_weak_delta:
        raise UsageError(
            expected=f"delta < 1 / (noisy number of votes) = {1 / units:.1e}",
            found=f"delta={budget.delta:g}, which allows one unit to be published outright",
            todo="The budget is spent and the images were dropped. Use a smaller delta the next "
            "time, or --allow-weak-delta.",
        )
    warnings.warn(
        f"delta={budget.delta:g} is not below 1/n = {1 / units:.1e}: a weak promise",
        SignalWarning,
        stacklevel=3,
    )


def _evolve(
    bundle: Bundle,
    config: EvolutionConfig,
    calibration: Calibration,
    ask: Callable[[Tensor], NDArray[np.int64]],
    progress: Progress | None,
) -> tuple[Tensor, NDArray[np.int64]]:
    """The loop: everything in it but `ask` sees generated images and noisy votes alone."""
    family = _flow_base(bundle)
    rng = torch.Generator().manual_seed(config.seed)
    population = family.sample(
        config.candidates, seed=config.seed, steps=config.steps, batch_size=config.batch_size
    )
    votes = []
    for iteration in range(config.iterations):
        votes.append(ask(population))
        last = iteration == config.iterations - 1
        drawn = torch.multinomial(
            survival(votes[-1], calibration, config.threshold),
            config.count if last else config.candidates,
            replacement=True,
            generator=rng,
        )
        population = vary(
            family,
            population[drawn],
            strength=config.strength_at(iteration),
            steps=config.steps,
            batch_size=config.batch_size,
            rng=rng,
        )
        if progress is not None:
            progress(iteration + 1, config.iterations)
    return population, np.stack(votes)


def _flow_base(bundle: Bundle) -> UNetFlow:
    return need_flow(bundle.base, "Private Evolution")


def _stand(bundle: Bundle, candidates: Tensor, config: EvolutionConfig) -> NDArray[np.float64]:
    """What stands for the candidates in the vote: their embeddings, or their variations' mean."""
    if not config.lookahead:
        return on_lattice(embed_all(bundle, candidates), bundle)
    rng = torch.Generator().manual_seed(config.seed + 1)
    varied = [
        vary(
            _flow_base(bundle), candidates, strength=config.last_strength, steps=config.steps,
            batch_size=config.batch_size, rng=rng,
        )
        for _ in range(config.lookahead)
    ]  # fmt: skip
    mean = np.mean([embed_all(bundle, images) for images in varied], axis=0)
    return on_lattice(mean.astype(np.float32), bundle)

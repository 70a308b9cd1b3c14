"""The steps of a fit, from its last kept state to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperdp import accounting
from hyperdp.budget import PrivacyBudget
from hyperdp.bundle import Bundle
from hyperdp.compute import exact
from hyperdp.errors import BudgetRefusedError, UsageError
from hyperdp.family import Family
from hyperdp.lora import Weights
from hyperdp.private.forms import Form
from hyperdp.private.learners.calibrate import training_event
from hyperdp.private.learners.config import FitConfig, Pace
from hyperdp.private.learners.methods import make_rule
from hyperdp.private.learners.run_folder import RunFolder, flatten, part
from hyperdp.private.learners.spectral import rebase, residual_base
from hyperdp.private.learners.starting import check_separate, start_weights
from hyperdp.private.learners.step import PrivateStep
from hyperdp.private.learners.step_rule import StepRule
from hyperdp.private.learners.units import Units
from hyperdp.private.released import Release
from hyperdp.text_bundle import TextBundle
from hyperdp.text_family import CausalText
from hyperdp.training_verification import MOST_DELTA

Progress = Callable[[int, int, float], None]
"""Called with steps done, steps, and the ε spent so far: all of it public."""

_TOLD = 20  # times that ε so far is computed in a run


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a fit promises and what it is made with; public, and settled before it is reserved.

    Attributes:
        bundle: public base model and hypernetwork.
        config: see `FitConfig`.
        budget: of the steps alone.
        noise_multiplier: σ, noise std over the clip norm.
        dataset: the operator's name for the dataset.
        out: the PEFT directory to be made.
        pace: see `Pace`.
        total: of the steps and of what is beside them; the steps' own where there is nothing.
        beside: events of the same run, before the steps.
        lattice: the δ that the lattices of those cost.
    """

    bundle: Bundle | TextBundle
    config: FitConfig
    budget: PrivacyBudget
    noise_multiplier: float
    dataset: str
    out: Path
    pace: Pace
    total: PrivacyBudget
    beside: tuple[accounting.Event, ...] = ()
    lattice: float = 0.0

    @property
    def event(self) -> accounting.Event:
        """The steps as the ledger accounts for them."""
        return self.event_after(self.config.steps)

    def event_after(self, steps: int) -> accounting.Event:
        """The first `steps` of them."""
        return training_event(self.noise_multiplier, self.config.probability, steps)

    def epsilon_after(self, steps: int) -> float:
        """ε of what is beside the steps and of the first `steps` of them, at the total δ."""
        events = [*self.beside, self.event_after(steps)]
        found = accounting.pld_epsilon(events, self.total.delta - self.lattice, interval=1e-3)
        return min(found, self.total.epsilon)


def check_delta(size: int, budget: PrivacyBudget, *, allow: bool) -> None:
    """Refuse a δ that promises little, by the public size, or that `verify` does not take.

    Raises:
        UsageError: δ >= 1 / size, and it is not allowed; or δ > 1/2.
    """
    if budget.delta > MOST_DELTA:
        raise UsageError(
            expected=f"delta of at most {MOST_DELTA:g}",
            found=f"delta={budget.delta:g}, which promises nothing",
            todo="Lower delta. Nothing has been spent.",
        )
    if budget.delta * size >= 1 and not allow:
        raise UsageError(
            expected=f"delta below 1 / size = {1 / size:.3g}",
            found=f"delta={budget.delta:g}: publishing one unit outright would satisfy it",
            todo="Lower delta, or accept it with --allow-weak-delta. Nothing has been spent.",
        )


class Training:
    """A base model, a rule and the adapter that they begin with: tried, and ready for its steps.

    Args:
        terms: see `Terms`.
        start: a release whose adapter to begin with, or None.

    Raises:
        UsageError: the rule cannot begin there; an unknown method or site; several draws of a loss
            that has nothing to draw.
        BundleError: the release is another bundle's, or the base model mixes records.
    """

    def __init__(self, terms: Terms, start: Release | None) -> None:
        self.terms = terms
        self.rule: StepRule = make_rule(terms.config, terms.bundle)
        self.family: Family | CausalText = terms.bundle.load_base()
        if isinstance(self.family, CausalText) and terms.config.draws > 1:
            raise UsageError(
                expected="draws=1 for documents, whose loss has no times and no noise",
                found=f"{terms.config.draws}",
                todo="Leave it out; nothing has been spent.",
            )
        self.family.prepare_training()
        self.family.model.requires_grad_(False)
        self.begin = self.rule.start(start_weights(terms.config, terms.bundle, start))
        self._spectral = start is None and terms.config.start == "spectral"
        with exact(), residual_base(self.family.model, self._held(self.begin)):
            form = Form.of(terms.bundle.config)
            check_separate(self.family, self.begin, form, microbatch=terms.pace.microbatch)

    def keep_start(self, folder: RunFolder) -> None:
        """Keep what the run begins with, unless it has begun: public, or released already."""
        if not folder.begun:
            begin = self.begin
            state = self.rule.state_dict()
            folder.save(0, flatten(begin=begin, weights=begin, average=begin, rule=state))

    def run(
        self, units: Units, folder: RunFolder, progress: Progress | None
    ) -> tuple[Weights, Weights]:
        """All steps that are left.

        Args:
            units: private.
            folder: where released state is kept, and was kept by a run that was killed.
            progress: see `Progress`.

        Returns:
            The adapter that the run began with, and the average of those after, both as they stand
            in training; `for_base` makes the second one that fits the base model.

        Raises:
            BudgetRefusedError: what was kept is not of 0 to T steps, as the ledger knows them.
        """
        terms, rule = self.terms, self.rule
        config = terms.config
        done, begin = 0, self.begin
        weights = average = begin
        if (kept := folder.load()) is not None:
            done, tensors = kept
            if not 0 <= done <= config.steps:  # fewer than none would be followed by more than T
                raise BudgetRefusedError(
                    expected=f"a state after 0 to {config.steps} steps in {folder.path}",
                    found="one of another number",
                    todo="Begin a new run in another folder; what this one reserved stays spent.",
                )
            # In the order of the sites, which noise follows and the file does not keep.
            begin, weights, average = (
                {name: found[name] for name in self.begin}
                for found in (part(tensors, key) for key in ("begin", "weights", "average"))
            )
            rule.load_state_dict(
                {k.removeprefix("rule/"): v for k, v in tensors.items() if k.startswith("rule/")}
            )
        step = PrivateStep(
            family=self.family,
            rule=rule,
            config=config,
            noise_multiplier=terms.noise_multiplier,
            pace=terms.pace,
        )
        warmup, every = max(1, config.steps // 20), max(1, config.steps // _TOLD)
        epsilon = 0.0
        with residual_base(self.family.model, self._held(begin)):
            while done < config.steps:
                lr = config.lr * min(1.0, (done + 1) / warmup)
                weights = rule.update(weights, step(units, weights), step.noise_std, lr)
                done += 1
                keep = min(config.average, done / (10 + done))
                average = _mixed(weights, average, keep)
                if done % terms.pace.checkpoint_every == 0 or done == config.steps:
                    state = rule.state_dict()
                    kept_now = flatten(begin=begin, weights=weights, average=average, rule=state)
                    folder.save(done, kept_now)
                if progress is not None:
                    if done % every == 0 or done == config.steps:
                        epsilon = terms.epsilon_after(done)
                    progress(done, config.steps, epsilon)
        return begin, average

    def for_base(self, begin: Weights, end: Weights) -> Weights:
        """What training ended with, as an adapter for the base model as it is.

        Args:
            begin: what training began with.
            end: what it ended with.

        Returns:
            `end`; after a spectral start the difference of both, of twice the rank.
        """
        return rebase(end, begin) if self._spectral else end

    def _held(self, begin: Weights) -> Weights:
        """What is taken out of the base model's weights while it is trained."""
        return begin if self._spectral else {}


def _mixed(weights: Weights, average: Weights, keep: float) -> Weights:
    return {
        name: (torch.lerp(a, average[name][0], keep), torch.lerp(b, average[name][1], keep))
        for name, (a, b) in weights.items()
    }

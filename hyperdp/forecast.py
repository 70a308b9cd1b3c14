"""What a release will be worth, told from public tasks alone, before anything is spent.

All that ρ sees is (z, noise std of the mean), and that std follows from n, ε, δ, adjacency and k.
So a table over noise levels and numbers of units, measured once on public tasks, answers any plan.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperdp import keys
from hyperdp.errors import BundleError, UsageError
from hyperdp.guard import check_bundle

Float = npt.NDArray[np.float64]

FORECAST_FILE = "forecast.json"
LOCK = ".forecast.lock"
FORMAT = "hyperdp-forecast/2"
ANY = "any"
LIKE = (ANY, "print", "hand")  # see `hyperdp.pretrain.forecast_kinds`
LEAST_GAIN = 0.02  # share of the base's figure that LoRA must win for a gain to mean anything


@dataclass(frozen=True, kw_only=True)
class ForecastTable:
    """One figure on T public tasks, each a held-out one; smaller is better.

    Attributes:
        quantity: `loss` (held-out loss of the base model's own training) or `fid`.
        like: what the tasks are like, one of `LIKE`.
        noise_std: S noise levels of the mean, ascending, in the embedding's units.
        units: N numbers of units behind the mean, ascending.
        base, public_mean, lora: T figures each: without adapter, under ρ(public mean) and under
            non-private LoRA on the task's records.
        hyper: [T][N][S] figures under ρ(z), one draw of records and noise a cell.
    """

    quantity: str
    like: str = ANY
    noise_std: list[float]
    units: list[int]
    base: list[float]
    public_mean: list[float]
    lora: list[float]
    hyper: list[list[list[float]]]

    def __post_init__(self) -> None:
        shape = (len(self.base), len(self.units), len(self.noise_std))
        figures = np.array([*self.base, *self.public_mean, *self.lora])
        if (
            np.shape(self.hyper) != shape
            or not len(self.base) == len(self.public_mean) == len(self.lora)
            or not min(shape) >= 1
            or not np.isfinite(figures).all()
            or not np.isfinite(self.hyper).all()
            or not (np.diff(self.noise_std) > 0).all()
            or not (np.diff(self.units) > 0).all()
            or min(self.noise_std) <= 0
            or min(self.units) <= 0
        ):
            raise UsageError(
                expected=f"finite figures of {shape} tasks, sizes and noise levels, both ascending",
                found=f"hyper of shape {np.shape(self.hyper)}, or something not finite or in order",
                todo="Make the forecast again: `hyperdp pretrain forecast`.",
            )

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """The tasks that a gain can be spoken of: LoRA wins something there, bool [T]."""
        base, lora = np.array(self.base), np.array(self.lora)
        return np.asarray(base - lora > LEAST_GAIN * np.abs(base))

    def gain(self, figures: Float) -> Float:
        """Recovered gain of the kept tasks: (base − figure) / (base − LoRA).

        Args:
            figures: float64 [T, …].
        """
        kept = self.kept
        shape = (-1, *[1] * (figures.ndim - 1))
        base = np.array(self.base)[kept].reshape(shape)
        lora = np.array(self.lora)[kept].reshape(shape)
        return np.asarray((base - figures[kept]) / (base - lora))

    def best_gains(self) -> list[float | None]:
        """Each task's gain with the most units and the least noise; None where LoRA wins nothing.

        In the order of the tasks.
        """
        found = iter(self.gain(np.array(self.hyper)[:, -1, 0]))
        return [float(next(found)) if kept else None for kept in self.kept]

    def figures_at(self, units: float, noise_std: float) -> Float:
        """Every task's figure at any size and noise level, float64 [T].

        Linear between cells in 1/√n, the scale of the sampling error, and in log noise; the nearest
        cell beyond the table's ends.
        """
        values = np.array(self.hyper)  # [T, N, S]
        s, t = _between(np.log(self.noise_std), math.log(noise_std))
        values = (1 - t) * values[..., s] + t * values[..., min(s + 1, values.shape[2] - 1)]
        error = -1 / np.sqrt(self.units)  # ascending
        n, t = _between(error, -1 / math.sqrt(units))
        mixed: Float = (1 - t) * values[:, n] + t * values[:, min(n + 1, values.shape[1] - 1)]
        return mixed


def _between(axis: Float, value: float) -> tuple[int, float]:
    """Left neighbour and weight of the right one, held at the ends."""
    place = float(np.interp(value, axis, np.arange(len(axis))))
    left = min(int(place), len(axis) - 1)
    return left, place - left


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The tables of a bundle.

    Attributes:
        bundle, bundle_hash: whose they are.
        tables: one for each quantity and kind of tasks.
        made: kind of tasks → command, commit, hardware, seconds and settings.
    """

    bundle: str
    bundle_hash: str
    tables: list[ForecastTable]
    made: dict[str, dict[str, Any]]

    @property
    def likes(self) -> list[str]:
        """The kinds of tasks that there are tables of."""
        return list(dict.fromkeys(table.like for table in self.tables))

    def table(self, quantity: str | None = None, like: str = ANY) -> ForecastTable:
        """The table of a quantity; FID's where there is one when None, and the loss's otherwise.

        Args:
            quantity: `loss` or `fid`.
            like: the kind of tasks.

        Raises:
            UsageError: there is no such table.
        """
        if like not in self.likes:
            raise UsageError(
                expected=f"--like out of {', '.join(self.likes)}, which this forecast has",
                found=repr(like),
                todo="Take one of these, or make it: `hyperdp pretrain forecast --like`.",
            )
        known = {table.quantity: table for table in self.tables if table.like == like}
        name = quantity or ("fid" if "fid" in known else "loss")
        if name not in known:
            raise UsageError(
                expected=f"a quantity out of {', '.join(known)}",
                found=repr(name),
                todo="Make it with `hyperdp pretrain forecast --fid`.",
            )
        return known[name]

    def without(self, like: str) -> Forecast:
        """The forecast less the tables of one kind of tasks, to put new ones in."""
        return dataclasses.replace(
            self,
            tables=[table for table in self.tables if table.like != like],
            made={kind: facts for kind, facts in self.made.items() if kind != like},
        )

    def quantities(self, like: str) -> set[str]:
        """What there are tables of for one kind of tasks."""
        return {table.quantity for table in self.tables if table.like == like}

    def save(self, folder: Path) -> Path:
        """Writes `forecast.json`, whole or not at all, and returns its path."""
        path = folder / FORECAST_FILE
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, allow_nan=False)
        keys.write_durably(path, f"{text}\n".encode(), mode=keys.PUBLIC)
        return path

    def add_to(self, folder: Path) -> Path:
        """Writes the tables beside those of other kinds that lie in a folder.

        Several processes may add theirs at once; tables of the kinds that this one has go.

        Args:
            folder: with a forecast of the same bundle in it, or none.

        Returns:
            The file's path.

        Raises:
            BundleError: what lies there is damaged, or another bundle's.
        """
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole = self
            if (folder / FORECAST_FILE).is_file():
                found = load_forecast(folder, self.bundle_hash)
                for like in self.likes:
                    found = found.without(like)
                whole = dataclasses.replace(
                    found, tables=found.tables + self.tables, made={**found.made, **self.made}
                )
            return whole.save(folder)


def load_forecast(folder: Path, bundle_hash: str) -> Forecast:
    """The forecast beside a bundle.

    Args:
        folder: the bundle's.
        bundle_hash: of the bundle.

    Raises:
        BundleError: there is none, it is damaged, or it was made for another bundle.
    """
    path = folder / FORECAST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        tables = [ForecastTable(**table) for table in values.pop("tables")]
        forecast = Forecast(**values, tables=tables)
    except FileNotFoundError:
        raise BundleError(
            expected=f"a forecast beside the bundle, {path}",
            found="none",
            todo="Make one from public tasks: `hyperdp pretrain forecast BUNDLE`, hours.",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise BundleError(
            expected=f"a forecast in {path}",
            found=repr(error)[:200],
            todo="Make it again: `hyperdp pretrain forecast`.",
        ) from error
    check_bundle(path, forecast.bundle_hash, bundle_hash)
    return forecast

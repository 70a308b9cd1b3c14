"""The plan: interpolation, intervals and needs on a table with a known law; files; the check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hyperdp.budget import PrivacyBudget, noise_multiplier
from hyperdp.bundle import load_bundle
from hyperdp.cli._app import run
from hyperdp.cli.plan import says
from hyperdp.errors import BundleError, DataError, UsageError
from hyperdp.eval.forecast_check import check_forecast
from hyperdp.eval.foretold import foretell_rows
from hyperdp.eval.results import Row, read_rows
from hyperdp.forecast import Forecast, ForecastTable, load_forecast
from hyperdp.mechanism import MechanismSpec
from hyperdp.plan import look, make_plan, noise_std_of_mean, predictive_interval
from tests.worlds import tiny_bundle

SPEC = MechanismSpec(embedding_dim=8, clip_norm=1.0)
UNITS, NOISE = [64, 256, 2048], [1e-3, 1e-2, 1e-1]


def _law(task: int, units: float, noise: float) -> float:
    """Gain, linear in what the table interpolates in."""
    return 0.9 - 0.02 * task - 2.0 / np.sqrt(units) - 0.2 * np.log10(noise / 1e-3)


def _table(tasks: int = 12, quantity: str = "loss") -> ForecastTable:
    base = [2.0 + t for t in range(tasks)]
    lora = [1.0 + t / 2 for t in range(tasks)]
    return ForecastTable(
        quantity=quantity,
        noise_std=NOISE,
        units=UNITS,
        base=base,
        public_mean=[b - 0.2 * (b - a) for a, b in zip(lora, base, strict=True)],
        lora=lora,
        hyper=[
            [[b - _law(t, n, s) * (b - a) for s in NOISE] for n in UNITS]
            for t, (a, b) in enumerate(zip(lora, base, strict=True))
        ],
    )


def _budget(epsilon: float) -> PrivacyBudget:
    return PrivacyBudget(epsilon=epsilon, delta=1e-5)


def test_interpolation_is_exact_for_a_law_that_is_linear_in_its_axes() -> None:
    table = _table()
    gains = table.gain(table.figures_at(500, 0.03))
    np.testing.assert_allclose(gains, [_law(t, 500, 0.03) for t in range(12)], rtol=1e-9)
    held = table.gain(table.figures_at(10**6, 1e-6))
    np.testing.assert_allclose(held, [_law(t, 2048, 1e-3) for t in range(12)], rtol=1e-9)


def test_noise_of_the_mean_is_tau_delta_over_n_by_hand() -> None:
    by_hand = noise_multiplier(1.0, 1e-5) * np.sqrt(1 + 1 / 16) / 500
    assert noise_std_of_mean(SPEC, _budget(1.0), 500) == pytest.approx(by_hand, rel=1e-6)


def test_the_interval_holds_one_more_value_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        values = rng.exponential(size=13)
        low, high = predictive_interval(values[:-1])
        held += low <= values[-1] <= high
    assert held / 4000 >= 0.8 - 0.02  # three standard errors
    with pytest.raises(UsageError, match="9 public tasks"):
        predictive_interval(rng.exponential(size=8))


def test_a_plan_names_the_epsilon_and_the_n_that_a_gain_takes() -> None:
    plan = make_plan(
        _table(), spec=SPEC, budgets=[_budget(0.2), _budget(1), _budget(8)], units=500, wanted=0.5
    )
    gains = [outlook.gain for outlook in plan.outlooks]
    assert gains == sorted(gains)
    assert plan.smallest_epsilon is not None
    at = look(_table(), spec=SPEC, budget=_budget(plan.smallest_epsilon), units=500)
    assert at.gain == pytest.approx(0.5, abs=0.005) and at.gain >= 0.5
    needed = plan.units_needed[0]
    assert needed is not None and needed > 500
    assert look(_table(), spec=SPEC, budget=_budget(0.2), units=needed).gain >= 0.5
    assert look(_table(), spec=SPEC, budget=_budget(0.2), units=needed / 1.3).gain < 0.5
    assert plan.public_mean_gain == pytest.approx(0.2)


def test_a_gain_that_no_mean_gives_is_said_to_be_out_of_reach() -> None:
    plan = make_plan(_table(), spec=SPEC, budgets=[_budget(1)], units=500, wanted=0.8)
    assert plan.out_of_reach
    exact = [_law(t, 2048, 1e-3) for t in range(12)]
    assert plan.ceiling.gains == pytest.approx(exact)
    assert plan.ceiling.reached(0.8) == f"{sum(gain >= 0.8 for gain in exact)} of 12"
    (line,) = [s for s in says(plan, n=500, wanted=0.8, delta=1e-5) if "neither n nor" in s]
    assert f"median is {np.median(exact):.2f}, and 3 of 12" in line
    near = make_plan(_table(), spec=SPEC, budgets=[_budget(1)], units=500, wanted=0.5)
    assert not near.out_of_reach
    assert not any("neither n nor" in s for s in says(near, n=500, wanted=0.5, delta=1e-5))


def test_the_shipped_forecast_did_as_the_docs_say() -> None:
    """Against the private sets of `gain-curves`, which it has not seen."""
    rows = read_rows(Path("eval/results/gain-curves.jsonl"))
    check, _ = foretell_rows(load_bundle("glyphs"), rows)
    assert check.quantity == "fid" and check.coverage >= 0.8
    page = " ".join(Path("docs/benchmarks.md").read_text(encoding="utf-8").split())
    assert check.sentence() in page


def test_too_few_units_are_called_too_few() -> None:
    plan = make_plan(_table(), spec=SPEC, budgets=[_budget(0.2)], units=40, wanted=0.95)
    assert plan.smallest_epsilon is None and plan.outlooks[0].drowned
    assert not plan.outlooks[0].inside
    with pytest.raises(UsageError, match="n >= 1"):
        make_plan(_table(), spec=SPEC, budgets=[_budget(1)], units=0, wanted=0.5)


def test_a_task_on_which_lora_gains_nothing_has_no_gain() -> None:
    table = _table()
    table.lora[3] = table.base[3] * 0.995
    assert table.kept.sum() == 11 and not table.kept[3]


def test_a_forecast_is_read_back_and_refused_beside_another_bundle(tmp_path: Path) -> None:
    forecast = Forecast(bundle="tiny", bundle_hash="ab" * 32, tables=[_table()], made={"seed": 0})
    forecast.save(tmp_path)
    assert load_forecast(tmp_path, "ab" * 32) == forecast
    with pytest.raises(BundleError, match="made for bundle abababababab"):
        load_forecast(tmp_path, "cd" * 32)
    with pytest.raises(BundleError, match="hyperdp pretrain forecast BUNDLE"):
        load_forecast(tmp_path / "none", "ab" * 32)
    (tmp_path / "forecast.json").write_text('{"format": "hyperdp-forecast/1", "tables": [{}]}')
    with pytest.raises(BundleError, match="again"):
        load_forecast(tmp_path, "ab" * 32)
    with pytest.raises(UsageError, match="loss"):
        forecast.table("fid")


def _rows(base: str, gain: float) -> list[Row]:
    facts = {
        "bench": "b", "base": base, "private_set": "set", "seed": 0, "metric": "loss",
        "commit": "c", "hardware": "h", "seconds": 1.0, "peak_rss_mb": 1.0, "command": "x",
    }  # fmt: skip
    nothing = {"n": None, "epsilon": None, "delta": None}
    rows = [
        Row(method="base", value=3.0, **nothing, **facts),
        Row(method="lora", value=2.0, **nothing, **facts),
    ]
    return [*rows, Row(method="hyper", value=3.0 - gain, n=500, epsilon=1.0, delta=1e-5, **facts)]


def test_the_check_counts_what_lies_inside_and_takes_the_median_error() -> None:
    forecast = Forecast(bundle="tiny", bundle_hash="ab" * 32, tables=[_table()], made={})
    told = look(_table(), spec=SPEC, budget=_budget(1.0), units=500)
    for gain, inside in ((told.gain + 0.01, 1.0), (told.gain_high + 0.01, 0.0)):
        check = check_forecast(
            forecast, _rows("tiny-abababab", gain), embedding_dim=8, clip_norm=1.0
        )
        assert check.coverage == inside
        assert check.median_absolute_error == pytest.approx(gain - told.gain)
    with pytest.raises(DataError, match="tiny-abababab"):
        check_forecast(forecast, _rows("other", 0.1), embedding_dim=8, clip_norm=1.0)
    with pytest.raises(DataError, match="base, lora and hyper"):
        check_forecast(forecast, _rows("tiny-abababab", 0.1)[1:], embedding_dim=8, clip_norm=1.0)


def test_the_command_prints_a_plan_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    Forecast(bundle="tiny", bundle_hash=bundle.hash, tables=[_table()], made={}).save(bundle.path)
    picture = tmp_path / "plan.png"
    words = ["plan", "-b", str(bundle.path), "-n", "500", "-e", "0.2,1"]
    assert run([*words, "--json", "-o", str(picture)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [o["epsilon"] for o in facts["outlooks"]] == [0.2, 1.0]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run([*words, "--gain", "0.72"]) == 0
    assert "n is too small for a gain of 0.72" in capsys.readouterr().out
    assert run([*words, "--gain", "0.9"]) == 0
    said = capsys.readouterr().out
    assert "It is neither n nor ε that a gain of 0.9 wants" in said and "0 of 12" in said
    assert run([*words[:-1], "much"]) == 2

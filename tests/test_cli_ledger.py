"""`hyperdp ledger` and `hyperdp verify`, through the one door that turns errors into exit codes."""

import json
import shutil

import pytest
from dp_accounting import dp_event

from hyperdp.budget import PrivacyBudget
from hyperdp.cli._app import run
from hyperdp.errors import BudgetRefusedError
from hyperdp.keys import config_dir, dataset_fingerprint
from hyperdp.ledger import Ledger
from hyperdp.private.release import release
from tests.private_world import TinyBundle, own_keys, records  # noqa: F401


@pytest.fixture
def made(tmp_path):
    release(
        records(300),
        bundle=TinyBundle(),
        budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
        ledger=Ledger(config_dir() / "ledger.db"),
        out=tmp_path / "out",
        dataset="digits",
    )
    return tmp_path / "out"


def test_show_tells_what_is_spent_and_left(made, capsys):
    assert run(["ledger", "show", "digits"]) == 0
    assert "spent 1 of epsilon 1 at delta 1e-05, in 1 events" in capsys.readouterr().out
    assert run(["ledger", "set-cap", "digits", "--epsilon", "3", "--delta", "1e-5"]) == 0
    capsys.readouterr()
    assert run(["ledger", "show", "digits", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cap_epsilon"] == 3
    assert facts["spent_epsilon"] == pytest.approx(1)
    assert 2 < facts["remaining_epsilon"] < 3


def test_show_refuses_what_it_does_not_know(made, capsys):
    assert run(["ledger", "show", "letters"]) == 2
    assert run(["ledger", "show", "digits", "--ledger", "nowhere.db"]) == 2
    assert "nothing at nowhere.db" in capsys.readouterr().err


def test_a_dataset_may_be_named_by_its_path(tmp_path, monkeypatch, capsys):
    """As `release` resolves it, from wherever it is called."""
    (tmp_path / "scans").mkdir()
    ledger = Ledger(config_dir() / "ledger.db")
    ledger.set_cap(str(tmp_path / "scans"), PrivacyBudget(epsilon=2.0, delta=1e-5))
    monkeypatch.chdir(tmp_path)
    assert run(["ledger", "show", "scans", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cap_epsilon"] == 2


def test_a_name_that_a_folder_bears_too_is_the_dataset_that_was_released(
    made, tmp_path, monkeypatch, capsys
):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["ledger", "show", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spent_epsilon"] == pytest.approx(1)
    assert run(["ledger", "set-cap", "digits", "--epsilon", "3", "--delta", "1e-5"]) == 0
    ledger = Ledger(config_dir() / "ledger.db")
    assert ledger.account("digits").cap.epsilon == 3
    ledger.reserve(
        str(tmp_path / "digits"),
        budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
        event=dp_event.GaussianDpEvent(10.0),
        bundle_hash="ab" * 32,
    )
    capsys.readouterr()
    assert run(["ledger", "show", "digits"]) == 2
    assert "which is both" in capsys.readouterr().err
    assert run(["ledger", "show", str(tmp_path / "digits")]) == 0


def test_a_datasets_own_ledger_is_found_wherever_it_is(tmp_path, capsys):
    elsewhere = Ledger(tmp_path / "elsewhere.db")
    release(
        records(300),
        bundle=TinyBundle(),
        budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
        ledger=elsewhere,
        out=tmp_path / "out",
        dataset="digits",
    )
    assert run(["ledger", "show", "digits"]) == 0
    assert "spent 1 of epsilon 1" in capsys.readouterr().out
    assert run(["ledger", "set-cap", "digits", "--epsilon", "3", "--delta", "1e-5"]) == 0
    assert elsewhere.account("digits").cap.epsilon == 3
    assert run(["ledger", "history", "digits"]) == 0
    assert not (config_dir() / "ledger.db").exists()
    elsewhere.path.rename(tmp_path / "moved.db")
    cap = ["ledger", "set-cap", "digits", "--epsilon", "4", "--delta", "1e-5"]
    assert run(cap) == 2
    assert "elsewhere.db" in capsys.readouterr().err and not elsewhere.path.exists()
    assert run([*cap, "--ledger", str(tmp_path / "moved.db")]) == 0
    assert elsewhere.path.exists() is False


@pytest.mark.parametrize("words", [["--unit", "house"], ["--epsilon", "-1"], ["--delta", "2"]])
def test_set_cap_refuses_what_is_out_of_range(words):
    base = ["ledger", "set-cap", "digits", "--epsilon", "3", "--delta", "1e-5"]
    assert run([*base, *words]) == 2
    assert not (config_dir() / "ledger.db").exists()


def test_history_shows_what_each_entry_bought(made, capsys):
    assert run(["ledger", "history", "digits"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("cap", "reserve", "spend", "commit"))
    assert run(["ledger", "history", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["cap", "reserve", "spend", "commit"]
    assert "release: epsilon 1, delta 1e-05, add-remove" in rows[1]["bought"]
    assert {row["name"] for row in rows} == {"digits"}


def test_history_shows_a_fingerprint_where_the_name_was_never_noted(made, capsys):
    shutil.rmtree(config_dir() / "names")
    assert run(["ledger", "history"]) == 0
    out = capsys.readouterr().out
    assert "digits" not in out
    assert dataset_fingerprint("digits")[:12] in out


def test_the_refusal_of_a_second_ledger_says_where_the_first_is(made, tmp_path):
    second = Ledger(tmp_path / "second.db")
    with pytest.raises(BudgetRefusedError, match=r"last seen at .*ledger\.db") as refused:
        second.reserve(
            "digits",
            budget=PrivacyBudget(epsilon=1, delta=1e-5),
            event=dp_event.GaussianDpEvent(10.0),
            bundle_hash="0" * 64,
        )
    assert str(config_dir() / "ledger.db") in str(refused.value)


def test_verify_holds_a_release_to_an_export(made, tmp_path, capsys):
    export = tmp_path / "export.json"
    assert run(["ledger", "export", "-o", str(export)]) == 0
    assert run(["verify", str(made), "--ledger", str(export)]) == 0
    assert "all 14 claims hold" in capsys.readouterr().out
    assert run(["verify", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True


def test_verify_fails_loudly(made, capsys):
    path = made / "certificate.json"
    path.write_bytes(path.read_bytes().replace(b'"epsilon":1.0', b'"epsilon":0.1'))
    assert run(["verify", str(made)]) == 2
    captured = capsys.readouterr()
    assert "signature" in captured.err
    assert captured.out == ""
    assert run(["verify", str(made / "nowhere")]) == 2


def test_an_export_that_cannot_be_written_is_a_usage_error(made, tmp_path):
    assert run(["ledger", "export", "-o", str(tmp_path / "none" / "x.json")]) == 2


def test_a_spent_budget_ends_with_three(made):
    from hyperdp.errors import BudgetRefusedError

    with pytest.raises(BudgetRefusedError) as refused:
        release(
            records(3),
            bundle=TinyBundle(),
            budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
            ledger=Ledger(config_dir() / "ledger.db"),
            out=made.with_name("second"),
            dataset="digits",
        )
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"notes\n" * 900, b"SQLite format 3\0", None])
@pytest.mark.parametrize(
    "words", [["show", "digits"], ["history"], ["history", "digits"], ["export", "-o", "x.json"]]
)
def test_looking_at_what_is_no_ledger_ends_with_two_and_changes_nothing(
    tmp_path, monkeypatch, capsys, content, words
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ledger.db"
    if content is not None:
        path.write_bytes(content)
    assert run(["ledger", *words, "--ledger", str(path)]) == 2
    captured = capsys.readouterr()
    assert "expected" in captured.err
    assert captured.out == ""
    assert (path.read_bytes() if path.exists() else None) == content
    assert [p.name for p in tmp_path.iterdir() if p.name != "config"] == [
        "ledger.db"
    ] * path.exists()

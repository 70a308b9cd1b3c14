"""The command line: what it imports, what it prints, and how it ends."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from hyperdp import __version__, errors
from hyperdp.cli import _app, main
from hyperdp.cli._app import COMMANDS, run
from hyperdp.cli._lazy import LazyCommand
from hyperdp.cli._options import split_classes

WORDS = {"expected": "a key", "found": "a lock", "todo": "Turn it."}


@pytest.fixture
def command(monkeypatch):
    """Offer one command, `fake`, whose body a test gives."""

    def offer(body):
        module = types.ModuleType("fake_command_module")
        module.body = body
        monkeypatch.setitem(sys.modules, module.__name__, module)
        lazy = LazyCommand(module=module.__name__, attribute="body", help="A fake.")
        monkeypatch.setitem(COMMANDS, "fake", lazy)

    return offer


def raising(error):
    def body() -> None:
        raise error

    return body


def loaded_by(*args):
    """The modules that a fresh interpreter has loaded after a run, and its exit code."""
    code = (
        "import sys\nfrom hyperdp.cli._app import run\n"
        f"code = run({list(args)!r})\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return set(done.stderr.split()), done.returncode


@pytest.mark.parametrize("args", [("--help",), ("--version",), ()])
def test_the_overview_imports_no_command_and_nothing_heavy(args):
    modules, code = loaded_by(*args)
    assert code == 0
    assert "hyperdp.cli._app" in modules
    heavy = {"torch", "numpy", "PIL", "diffusers", "datasets", "matplotlib", "opendp"}
    assert not modules & heavy
    rooms = ("hyperdp.private", "hyperdp.pretrain", "hyperdp.eval")
    assert not [name for name in modules if name.startswith(rooms)]
    assert not modules & {command.module for command in COMMANDS.values()}


def test_import_hyperdp_loads_nothing_but_itself():
    code = "import sys, hyperdp; print('\\n'.join(m for m in sys.modules if 'hyperdp.' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_module_of_a_command_is_offered():
    modules = {path.stem for path in Path(_app.__file__).parent.glob("*.py")}
    assert {name for name in modules if not name.startswith("_")} == set(COMMANDS)


def leaves():
    """Every command that does something, as the words that call it."""
    from hyperdp.cli._lazy import load

    for name, command in COMMANDS.items():
        built = load(name, command)
        below = getattr(built, "commands", None)
        yield from ([name, sub] for sub in below) if below else [[name]]


def test_every_command_has_help_with_an_example(capsys):
    for words in leaves():
        assert run([*words, "--help"]) == 0
        assert "xample" in capsys.readouterr().out, words


def test_the_overview_lists_every_command_with_its_line(capsys):
    assert run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in shown


def test_without_words_the_overview_is_shown(capsys):
    assert run([]) == 0
    assert "Exit codes" in capsys.readouterr().out


def test_what_is_no_command_is_a_fault_of_ours(command, capsys, monkeypatch):
    monkeypatch.delenv("HYPERDP_DEBUG", raising=False)
    monkeypatch.setattr("hyperdp.cli._lazy.get_command", lambda _: object())
    command(lambda: None)
    assert run(["fake"]) == 1
    assert "TypeError" in capsys.readouterr().err


def test_the_version_is_the_one_of_the_distribution(capsys):
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"hyperdp {__version__}\n"
    assert version("hyperdp") == __version__


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError(**WORDS), 2),
        (errors.DataError(**WORDS), 2),
        (errors.BundleError(**WORDS), 2),
        (errors.VerificationError(**WORDS), 2),
        (errors.BudgetRefusedError(**WORDS), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_callers_says_the_three_things(error, code, command, capsys):
    command(raising(error))
    assert run(["fake"]) == code
    shown = capsys.readouterr()
    assert shown.err == "error: expected a key; found a lock. Turn it.\n"
    assert shown.out == ""


def test_markup_and_long_paths_reach_the_terminal_as_they_are(command, capsys):
    words = WORDS | {"found": "'/data/[bold]/" + "x" * 200 + "'"}
    command(raising(errors.DataError(**words)))
    assert run(["fake"]) == 2
    assert words["found"] in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["nope"], ["--nope"], ["fake", "--nope"], ["fake", "extra"], ["fake", "--count", "x"]]
)
def test_a_wrong_command_line_ends_with_2_and_says_where_help_is(args, command, capsys):
    def body(count: int = 1) -> None:
        raise AssertionError("must not run")

    command(body)
    assert run(args) == 2
    assert "--help'" in capsys.readouterr().err


def test_a_slip_of_the_finger_gets_a_suggestion(command, capsys):
    command(raising(KeyError()))
    assert run(["fkae"]) == 2
    assert "'fake'" in capsys.readouterr().err


def test_a_group_without_a_command_shows_its_help_and_ends_with_2(command, capsys):
    group = typer.Typer(no_args_is_help=True, help="A group of things.")
    group.command("one")(lambda: None)
    group.command("two")(lambda: None)
    command(group)
    assert run(["fake"]) == 2
    shown = capsys.readouterr()
    assert "A group of things." in shown.out
    assert "error:" not in shown.err
    assert run(["fake", "one"]) == 0


def test_a_fault_of_ours_tells_its_type_and_place_but_not_its_text(command, capsys, monkeypatch):
    monkeypatch.delenv("HYPERDP_DEBUG", raising=False)
    command(raising(ValueError("embedding was 0.123456")))
    assert run(["fake"]) == 1
    shown = capsys.readouterr().err
    assert "a fault of ours: ValueError at hyperdp." in shown
    assert "0.123456" not in shown
    assert "Traceback" not in shown


def test_the_text_of_a_fault_is_shown_where_the_operator_asks_for_it(command, capsys, monkeypatch):
    monkeypatch.setenv("HYPERDP_DEBUG", "1")
    command(raising(ValueError("embedding was 0.123456")))
    assert run(["fake"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "embedding was 0.123456" in shown
    assert "private" in shown


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EISDIR])
def test_what_the_system_refuses_is_the_callers_to_mend(number, command, capsys):
    command(raising(OSError(number, os.strerror(number), "/some/place")))
    assert run(["fake"]) == 2
    shown = capsys.readouterr().err
    assert "/some/place" in shown
    assert os.strerror(number) in shown


def test_a_file_of_ours_that_is_missing_is_our_fault(command, capsys):
    command(raising(FileNotFoundError(errno.ENOENT, "gone", "/ours")))
    assert run(["fake"]) == 1
    assert "/ours" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EOFError()])
def test_an_interrupted_run_ends_with_130(error, command, capsys):
    command(raising(error))
    assert run(["fake"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_command_may_choose_its_exit_code(command):
    command(raising(typer.Exit(3)))
    assert run(["fake"]) == 3


def test_the_process_ends_with_the_exit_code(command):
    command(raising(errors.BudgetRefusedError(**WORDS)))
    with pytest.raises(SystemExit) as caught:
        main(["fake"])
    assert caught.value.code == 3


def test_python_dash_m_is_the_same_command():
    words = [sys.executable, "-m", "hyperdp", "nope"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such command 'nope'")


def test_classes_are_separated_by_commas():
    assert split_classes(None) is None
    assert split_classes("a, b ,c,") == ("a", "b", "c")

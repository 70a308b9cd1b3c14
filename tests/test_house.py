"""The house itself: packaging, the rooms' import rules, the two commands of the README."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hyperdp

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pretrain", "private", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources():
    """Every source file of the four rooms with the dotted name it is imported under."""
    for room in ("hyperdp", *ROOMS):
        for folder, subfolders, names in os.walk(ROOT / room):  # links are not followed
            subfolders[:] = [name for name in subfolders if name != "__pycache__"]
            for name in names:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    parts = path.relative_to(ROOT).with_suffix("").parts
                    parts = parts if room == "hyperdp" else ("hyperdp", *parts)
                    yield path, ".".join(parts).removesuffix(".__init__")


def test_the_outer_rooms_are_relative_links():
    for room in ROOMS:
        assert str((ROOT / "hyperdp" / room).readlink()) == f"../{room}"


def test_every_package_is_listed_for_the_wheel():
    packages = {module for path, module in sources() if path.name == "__init__.py"}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])
    orphans = {str(path) for path, _ in sources() if not (path.parent / "__init__.py").exists()}
    assert orphans == set()


def test_the_version_is_written_once_and_repeated_right():
    assert PROJECT["project"]["version"] == hyperdp.__version__


def test_public_names_are_few_and_load():
    assert len(hyperdp.__all__) <= 13
    for name in hyperdp.__all__:
        assert getattr(hyperdp, name) is not None
        assert name in dir(hyperdp)
    with pytest.raises(AttributeError, match="nope"):
        _ = hyperdp.nope


def copy_of_the_house(target):
    """The sources as a fresh clone would have them, links kept."""
    for name in ("hyperdp", *ROOMS):
        shutil.copytree(
            ROOT / name,
            target / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)


def lint_imports(folder):
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("planted_in", "line"),
    [
        ("hyperdp/errors.py", "import hyperdp.private.records"),
        ("hyperdp/errors.py", "from hyperdp.pretrain import corpus"),
        ("hyperdp/errors.py", "def f():\n    from hyperdp import eval"),
        ("hyperdp/errors.py", "import hyperdp.cli"),
        ("hyperdp/__init__.py", "import hyperdp.private"),
        ("pretrain/corpus.py", "import hyperdp.private.records"),
        ("pretrain/corpus.py", "import hyperdp.eval"),
        ("private/records.py", "import hyperdp.pretrain"),
        ("private/records.py", "import hyperdp.eval.metrics"),
        ("eval/metrics/__init__.py", "import hyperdp.pretrain.corpus"),
        ("eval/__init__.py", "import hyperdp.cli._app"),
    ],
)
def test_an_import_against_the_rooms_rules_is_caught(planted_in, line, tmp_path):
    copy_of_the_house(tmp_path)
    with (tmp_path / planted_in).open("a") as stream:
        stream.write(f"\n\n{line}\n")
    code, shown = lint_imports(tmp_path)
    assert code == 1
    importer = planted_in.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    importer = importer if importer.startswith("hyperdp") else f"hyperdp.{importer}"
    assert f"- {importer} -> hyperdp." in shown


def test_the_rooms_as_they_are_keep_their_rules(tmp_path):
    copy_of_the_house(tmp_path)
    with (tmp_path / "eval/__init__.py").open("a") as stream:
        stream.write("\n\nimport hyperdp.private.records\n")  # this one is allowed
    code, shown = lint_imports(tmp_path)
    assert code == 0, shown


def test_the_wheel_holds_every_module_and_nothing_beside_hyperdp(tmp_path):
    copy_of_the_house(tmp_path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "-w", tmp_path / "dist", tmp_path], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for name in names
        if name.endswith(".py")
    }
    assert modules == {module for _, module in sources()}
    assert {name.split("/")[0] for name in names} == {"hyperdp"}
    assert "hyperdp/py.typed" in names
    for pattern in (
        "pretrain/sample/*", "pretrain/recipes/*", "eval/recipes/*", "eval/templates/*",
    ):  # fmt: skip
        files = [f"hyperdp/{path.relative_to(ROOT)}" for path in ROOT.glob(pattern)]
        assert files
        assert names.issuperset(files)
    shipped = ROOT / "hyperdp" / "bundles"
    for path in shipped.rglob("*"):
        assert path.is_dir() or str(path.relative_to(ROOT)) in names


def test_nothing_is_ever_unpickled():
    for path, module in sources():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = {alias.name.split(".")[0] for alias in node.names}
                roots.add((getattr(node, "module", None) or "").split(".")[0])
                assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, module
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert options.get("allow_pickle") != "True", module
                if called == "torch.load":
                    assert options.get("weights_only") == "True", module
                if called in {"np.load", "numpy.load"}:
                    assert options.get("allow_pickle") == "False", module


def test_the_readme_names_the_two_commands_and_make_has_them():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", readme))
    assert {"demo", "test"} <= named <= targets


def test_ci_lints_and_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.index("make lint") < text.index("make test")

"""`hyperdp release` and `hyperdp private`, end to end on a tiny untrained bundle."""

import json
import subprocess
import sys
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from hyperdp import budget
from hyperdp.cli import _releasing
from hyperdp.cli._app import run
from hyperdp.ledger import Ledger
from hyperdp.lora import load_peft
from hyperdp.private.release import Release
from hyperdp.verification import verify
from tests.reader_samples import png, write_parquet_bytes
from tests.worlds import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(tiny_bundle(tmp_path_factory.mktemp("bundle") / "b").path)


@pytest.fixture
def data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    path = tmp_path / "data.npz"
    np.savez(path, images=images, y=np.arange(300) % 3, user=np.arange(300) // 2)
    return path


@pytest.fixture(autouse=True)
def operator(tmp_path, monkeypatch):
    """Keys and the account's own ledger go to a folder of the test."""
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config"


def spend(command, data, out, bundle, *more):
    budget_words = ["--epsilon", "8", "--delta", "1e-5"]
    return run([command, str(data), *budget_words, "-o", str(out), "-b", bundle, *more])


def reserved(operator):
    """How often a budget was taken from the account's own ledger."""
    path = operator / "ledger.db"
    if not path.exists():
        return 0
    return sum(entry.kind == "reserve" for entry in Ledger(path).history())


def test_a_release_says_what_was_spent_and_can_be_emitted(data, bundle, tmp_path, capsys):
    out = tmp_path / "release"
    assert spend("release", data, out, bundle) == 0
    shown = capsys.readouterr().out
    assert "epsilon 8, delta 1e-05, add-remove, unit record" in shown
    assert sorted(path.name for path in out.iterdir()) == [
        "certificate.json",
        "release.safetensors",
    ]
    assert run(["emit", str(out), "-o", str(tmp_path / "adapter"), "-b", bundle]) == 0
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


def test_public_records_train_the_adapters_on_and_cost_no_budget(
    data, bundle, tmp_path, capsys, operator
):
    words = ["--label-column", "y", "--classes", "0,1,2"]
    assert spend("release", data, tmp_path / "r", bundle, *words) == 0
    assert run(["emit", str(tmp_path / "r"), "-o", str(tmp_path / "plain"), "-b", bundle]) == 0
    public = tmp_path / "public.npz"
    images = np.random.default_rng(1).integers(0, 256, (120, 28, 28), dtype=np.uint8)
    np.savez(public, images=images)
    words = ["emit", str(tmp_path / "r"), "-b", bundle, "--public", str(public)]
    words += ["--public-steps", "2"]
    for name in ("one", "two"):
        assert run([*words, "-o", str(tmp_path / name)]) == 0
    assert "warning" not in capsys.readouterr().err
    for label in "012":
        plain, one, two = (load_peft(tmp_path / name / label) for name in ("plain", "one", "two"))
        assert all(torch.equal(one[site][1], two[site][1]) for site in one)
        assert any(not torch.equal(one[site][1], plain[site][1]) for site in one)
    assert (tmp_path / "one" / "certificate.json").read_bytes() == (
        tmp_path / "r" / "certificate.json"
    ).read_bytes()
    assert reserved(operator) == 1
    np.savez(public, images=images[:50])
    capsys.readouterr()
    assert run([*words, "-o", str(tmp_path / "few")]) == 2
    assert "at least 100 public records" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
    np.savez(public, images=images)
    assert run(["ledger", "set-cap", str(data), "-e", "20", "-d", "1e-4"]) == 0
    assert spend("release", data, tmp_path / "plain-r", bundle) == 0
    words[1] = str(tmp_path / "plain-r")
    assert run([*words, "-o", str(tmp_path / "plainer")]) == 0
    assert "labelled releases of images alone" in capsys.readouterr().err


def test_json_is_one_object_of_noisy_facts(data, bundle, tmp_path, capsys):
    assert spend("release", data, tmp_path / "r", bundle, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["release"] == str(tmp_path / "r")
    assert (facts["unit"], facts["classes"]) == ("record", [])
    words = ["--label-column", "y", "--classes", "0,1,2", "--unit-column", "user", "--json"]
    words += ["--dataset", "under another name"]
    assert spend("private", data, tmp_path / "p", bundle, *words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["epsilon"], facts["delta"], facts["unit"]) == (8.0, 1e-5, "user")
    assert facts["classes"] == ["0", "1", "2"]
    assert len(facts["noisy_count"]) == 3
    assert facts["adapters"] == [str(tmp_path / "p" / "adapter" / name) for name in "012"]
    for adapter in facts["adapters"]:
        assert json.loads((tmp_path / adapter / "adapter_config.json").read_text())["peft_type"]


def test_dark_ink_on_white_paper_is_inverted_and_the_certificate_says_so(
    data, bundle, tmp_path, capsys
):
    """With hardly any noise, so that the releases' means tell what was embedded."""
    images = np.load(data)["images"] // 2  # dark, as noise alone is nearly its own negative
    means = {}
    for name, pixels, words in (
        ("dark", 255 - images, ["--invert"]),
        ("light", images, []),
        ("as it is", 255 - images, []),
    ):
        path, out = tmp_path / f"{name}.npz", tmp_path / name
        np.savez(path, images=pixels)
        words += ["-e", "499", "-d", "1e-5", "-o", str(out), "-b", bundle]
        assert run(["release", str(path), *words]) == 0
        made = Release.load(out)
        verify(out, ledger=tmp_path / "config" / "ledger.db")
        assert made.certificate.inverted == ("--invert" in words)
        means[name] = made.mean()
        noise = float(made.mean_noise_std())
    gap = float((means["dark"] - means["light"]).abs().max())
    assert gap < 8 * noise
    assert float((means["as it is"] - means["light"]).abs().max()) > 20 * noise
    # Steps that go on from it would read the same records the other way round.
    capsys.readouterr()
    words = ["fit", str(tmp_path / "dark.npz"), "--init", str(tmp_path / "dark"), "--size", "90"]
    words += ["-e", "1", "-d", "1e-5", "-o", str(tmp_path / "fitted"), "-b", bundle]
    assert run(words) == 2
    assert "does not invert" in capsys.readouterr().err


def test_private_tells_where_everything_is(data, bundle, tmp_path, capsys):
    assert spend("private", data, tmp_path / "p", bundle) == 0
    shown = capsys.readouterr().out
    assert f"release in {tmp_path / 'p' / 'release'}" in shown
    assert f"adapter in {tmp_path / 'p' / 'adapter'}" in shown


def test_private_writes_over_nothing_and_finds_out_before_it_spends(
    data, bundle, tmp_path, operator
):
    (tmp_path / "p" / "adapter").mkdir(parents=True)
    (tmp_path / "p" / "adapter" / "mine").write_text("x")
    assert spend("private", data, tmp_path / "p", bundle) == 2
    assert spend("private", data, data, bundle) == 2
    assert reserved(operator) == 0


def test_a_dataset_that_says_little_brings_a_warning(bundle, tmp_path, capsys):
    path, _ = write_parquet_bytes(tmp_path)
    # With a public count the ratio is the same whatever the noise.
    words = ["--epsilon", "0.1", "--delta", "1e-5", "--adjacency", "replace-one"]
    words += ["-o", str(tmp_path / "r"), "-b", bundle]
    assert run(["release", str(path), *words]) == 0
    shown = capsys.readouterr().err
    assert shown.splitlines()[-1].startswith("warning: signal-to-noise ratio")
    assert ".py:" not in shown


def test_the_second_release_of_a_dataset_is_refused_with_3(data, bundle, tmp_path, operator):
    assert spend("release", data, tmp_path / "1", bundle) == 0
    assert spend("release", data, tmp_path / "2", bundle) == 3
    assert not (tmp_path / "2").exists()
    assert reserved(operator) == 1
    assert spend("release", data, tmp_path / "3", bundle, "--dataset", "another") == 0
    another_ledger = ("--ledger", str(tmp_path / "l.db"))
    assert spend("release", data, tmp_path / "4", bundle, *another_ledger) == 3


def empty_folder(root):
    (root / "bad").mkdir()
    return root / "bad", ()


def not_an_image(root):
    (root / "bad").mkdir()
    (root / "bad" / "1.png").write_bytes(png(1))
    (root / "bad" / "notes.txt").write_text("hello")
    return root / "bad", ()


def nan_in_an_array(root):
    np.savez(root / "bad.npz", images=np.full((2, 28, 28), np.nan))
    return root / "bad.npz", ()


def label_missing(root):
    labels = np.array(["a", "", "b"])
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)), y=labels)
    return root / "bad.npz", ("--label-column", "y", "--classes", "a,b")


def label_outside_the_classes(root):
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)), y=np.array(["a", "b", "c"]))
    return root / "bad.npz", ("--label-column", "y", "--classes", "a,b")


def labels_without_classes(root):
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)), y=np.zeros(3))
    return root / "bad.npz", ("--label-column", "y")


def classes_without_labels(root):
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)))
    return root / "bad.npz", ("--classes", "a,b")


def leaving_out_where_n_is_public(root):
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)))
    return root / "bad.npz", ("--skip-unreadable", "--adjacency", "replace-one")


def no_such_column(root):
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)))
    return root / "bad.npz", ("--image-column", "pixels")


def epsilon_of_nothing(root):
    np.savez(root / "bad.npz", images=np.zeros((3, 28, 28)))
    return root / "bad.npz", ("--epsilon", "0")


@pytest.mark.parametrize("command", ["release", "private"])
@pytest.mark.parametrize(
    "write",
    [
        empty_folder,
        not_an_image,
        nan_in_an_array,
        label_missing,
        label_outside_the_classes,
        labels_without_classes,
        classes_without_labels,
        leaving_out_where_n_is_public,
        no_such_column,
        epsilon_of_nothing,
    ],
)
def test_bad_data_ends_with_2_leaves_nothing_and_spends_nothing(
    write, command, bundle, tmp_path, operator, capsys
):
    path, words = write(tmp_path)
    assert spend(command, path, tmp_path / "out", bundle, *words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: expected ")
    assert "; found " in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    assert reserved(operator) == 0


def test_records_that_cannot_be_read_may_be_left_out(bundle, tmp_path):
    path, _ = not_an_image(tmp_path)
    assert spend("release", path, tmp_path / "out", bundle, "--skip-unreadable") == 0


def test_a_file_that_is_damaged_as_a_whole_is_found_before_the_budget_is_spent(
    data, bundle, tmp_path, operator
):
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    assert spend("release", data, tmp_path / "out", bundle, "--skip-unreadable") == 2
    assert reserved(operator) == 0


@pytest.mark.parametrize("command", ["release", "fit", "evolve"])
def test_no_library_counts_in_a_log_what_is_left_out(command, bundle, tmp_path):
    """Pillow logs an error of every such TIFF; without a handler Python prints it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (28, 28)).save(folder / f"{i}.tif")
    for i in range(3):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[277] = 9999  # samples per pixel
        Image.new("L", (28, 28)).save(folder / f"bad{i}.tif", tiffinfo=tags)
    with pytest.raises(OSError, match=r"."), Image.open(folder / "bad0.tif"):
        pass
    words = ["-e", "8", "-d", "1e-5", "-b", bundle, "-o", str(tmp_path / "out")]
    words += {"fit": ["--size", "4", "--batch", "2", "--steps", "2"]}.get(command, [])
    words += {"evolve": ["--count", "2", "--candidates", "2", "--iterations", "1"]}.get(command, [])
    told = subprocess.run(
        [sys.executable, "-m", "hyperdp", command, str(folder), *words, "--skip-unreadable"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "9999" not in told.stderr and "sample" not in told.stderr.lower()


def test_an_output_among_the_records_is_refused_before_they_are_read(bundle, tmp_path, operator):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"not an image, and never looked at")
    assert spend("release", folder, folder / "out", bundle) == 2
    assert spend("private", folder, folder, bundle) == 2
    assert run(["release", str(folder), "-e", "0", "-d", "1e-5", "-o", str(tmp_path / "o"),
                "-b", bundle]) == 2  # fmt: skip
    assert reserved(operator) == 0 and [p.name for p in folder.iterdir()] == ["0.png"]


def test_bundles_that_are_unknown_or_of_another_release(data, bundle, tmp_path, capsys):
    assert spend("release", data, tmp_path / "r", "nope") == 2
    assert "'nope'" in capsys.readouterr().err
    assert spend("release", data, tmp_path / "r", bundle) == 0
    other = str(tiny_bundle(tmp_path / "other", name="other").path)
    assert run(["emit", str(tmp_path / "r"), "-o", str(tmp_path / "a"), "-b", other]) == 2
    assert not (tmp_path / "a").exists()


def test_the_adjacencies_offered_are_the_ones_there_are():
    offered = get_type_hints(_releasing.ReleaseRequest)["adjacency"]
    assert get_args(offered) == get_args(budget.Adjacency)


def test_workers_embed_for_one_release(data, bundle, tmp_path, operator, monkeypatch, capsys):
    from hyperdp.private import release as release_module

    monkeypatch.setattr(
        release_module, "add_noise", lambda total, budget: (total._sums.copy(), total._counts)
    )
    made = {}
    for words in ([], ["--workers", "2"]):
        out = tmp_path / f"release{len(words)}"
        assert spend("release", data, out, bundle, "--dataset", f"d{len(words)}", *words) == 0
        made[len(words)] = Release.load(out)
    assert np.array_equal(made[0].sums, made[2].sums)
    assert reserved(operator) == 2

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hyperdp.cli import _app
from hyperdp.errors import DataError, UsageError
from hyperdp.eval.features import extract
from hyperdp.eval.measure import NOT_PRIVATE, measure, read_generated, read_reference
from hyperdp.eval.metrics.fid import fid
from hyperdp.images import save_grid, save_images


class Blocks:
    """Mean grey of the four quarters: quick, and enough to tell bright from dark."""

    name, dim = "quarters", 4

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


def pictures(count, seed, *, dark=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 1, 12, 12, generator=generator) * 2 - 1) * (1 - dark) - dark


def test_floor_and_methods_are_measured_at_the_same_sizes():
    for generated, reference, held_out, sizes in (
        (pictures(60, 1), pictures(100, 2), None, (50, 50)),
        (pictures(20, 1), pictures(100, 2), None, (20, 80)),
        (pictures(60, 1), pictures(100, 2), pictures(30, 3), (30, 100)),
    ):
        found = measure(generated, reference, held_out, Blocks())
        for score in (found.fid, found.kid, found.fid_floor, found.kid_floor):
            assert (score.generated, score.reference) == sizes


def test_what_is_set_apart_for_the_floor_is_in_no_reference():
    """A reference of two repeated images would score a floor of 0 if a half met itself."""
    reference = torch.cat([pictures(40, 2), pictures(40, 4, dark=0.5)])
    found = measure(pictures(40, 1), reference, None, Blocks())
    assert found == measure(pictures(40, 1), reference, None, Blocks())
    whole = extract(Blocks(), reference)
    assert found.fid_floor.value > fid(whole, whole).value


def test_worse_images_score_worse():
    near = measure(pictures(200, 1), pictures(200, 2), pictures(200, 3), Blocks())
    far = measure(pictures(200, 1, dark=0.4), pictures(200, 2), pictures(200, 3), Blocks())
    assert far.fid.value > 10 * near.fid.value
    assert far.kid.value > near.kid.value + 3 * near.kid.std
    assert near.fid_floor == far.fid_floor


def test_a_sampled_folder_is_read_without_its_previews(tmp_path):
    images = pictures(3, 1)
    save_images(images, tmp_path / "three")
    save_grid(images, tmp_path / "three" / "grid.png")
    save_grid(images, tmp_path / "three.png")
    for folder in (tmp_path, tmp_path / "three"):
        read = read_generated(folder)
        torch.testing.assert_close(read, images, atol=1 / 127, rtol=0)


def test_colour_folders_stay_in_colour(tmp_path):
    Image.fromarray(np.full((6, 5, 3), [255, 0, 0], np.uint8)).save(tmp_path / "red.png")
    assert read_generated(tmp_path).shape == (1, 3, 6, 5)


def test_bad_folders_are_told(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="hyperdp sample"):
            read_generated(folder)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.txt"):
        read_generated(tmp_path)


def test_reference_by_name_or_path(tmp_path):
    reference, pool = read_reference("digits", (1, 28, 28))
    assert (len(reference), len(pool)) == (899, 898)
    save_images(pictures(4, 1), tmp_path)
    images, apart = read_reference(str(tmp_path), (1, 12, 12))
    assert (images.shape, apart) == ((4, 1, 12, 12), None)
    inverted, _ = read_reference(str(tmp_path), (1, 12, 12), invert=True)
    torch.testing.assert_close(inverted, -images)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.txt"):
        read_reference(str(tmp_path), (1, 12, 12))
    assert len(read_reference(str(tmp_path), (1, 12, 12), skip_unreadable=True)[0]) == 4
    with pytest.raises(UsageError):
        read_reference("no-such-set", (1, 28, 28))


@pytest.fixture
def folders(tmp_path):
    save_images(pictures(8, 1), tmp_path / "made")
    save_images(pictures(20, 2), tmp_path / "real")
    return str(tmp_path / "made"), str(tmp_path / "real")


def test_command_warns_where_the_reference_is_private(folders, capsys):
    made, real = folders
    assert _app.run(["eval", made, "--reference", real, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["warning"] == NOT_PRIVATE
    assert facts["extractor"] == "EfficientNet-Lite0"
    assert (facts["generated"], facts["reference"]) == (8, 12)
    assert all(np.isfinite(facts[k]) for k in ("fid", "fid_floor", "kid", "kid_floor", "seconds"))
    assert _app.run(["eval", made, "--reference", real]) == 0
    out = capsys.readouterr().out
    assert NOT_PRIVATE in out
    assert "EfficientNet-Lite0 features" in out
    assert _app.run(["eval", made, "-r", real, "--held-out", made, "--public-reference"]) == 0
    assert NOT_PRIVATE not in capsys.readouterr().out


def test_command_tells_what_is_missing(folders, tmp_path, capsys):
    made, _ = folders
    assert _app.run(["eval", str(tmp_path / "no"), "-r", made]) == 2
    assert _app.run(["eval", made, "-r", str(tmp_path / "no")]) == 2
    assert "expected" in capsys.readouterr().err


def test_command_flags_images_that_repeat_private_records(folders, tmp_path, capsys):
    """Eight private records, repeated with tiny noise; healthy ones beside them."""
    _, real = folders
    private = pictures(8, 50)
    save_images(private, tmp_path / "private")
    nudge = 0.02 * pictures(40, 51)
    save_images((private.repeat(5, 1, 1, 1) + nudge).clamp(-1, 1), tmp_path / "copies")
    save_images(pictures(40, 52), tmp_path / "healthy")
    for name, planted in (("copies", True), ("healthy", False)):
        command = ["eval", str(tmp_path / name), "-r", real, "--train", str(tmp_path / "private")]
        assert _app.run([*command, "--held-out", str(tmp_path / "healthy"), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        [flag] = facts["flags"]
        assert (flag["name"], flag["raised"]) == ("memorisation", planted)
        assert (facts["membership"]["auc"] > 0.95) == planted
        assert facts["warning"] == NOT_PRIVATE
        assert _app.run(command) == 0
        assert ("FLAG: Private records are repeated" in capsys.readouterr().out) == planted


def test_intervals_hold_their_figures():
    found = measure(
        pictures(60, 1, dark=0.2), pictures(200, 2), pictures(80, 3), Blocks(), intervals=True
    )
    for name in ("fid", "kid", "fid_floor"):
        assert getattr(found, name).value in found.intervals[name]
    assert found.intervals["fid"].low > found.intervals["fid_floor"].high
    assert found.manifold_floor.coverage > found.manifold.coverage


def test_unknown_features_are_refused(folders, capsys):
    made, real = folders
    assert _app.run(["eval", made, "-r", real, "--features", "vgg"]) == 2
    assert "inception" in capsys.readouterr().err

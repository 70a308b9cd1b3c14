import ast
import gzip
import re
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

import hyperdp.eval
from hyperdp.errors import DataError, UsageError
from hyperdp.eval import private_sets
from hyperdp.eval.private_sets import (
    FASHION_CLASSES,
    FASHION_MNIST,
    FASHION_UNSEEN,
    NOTO,
    PRIVATE_SETS,
    fashion_public,
    load_private_set,
    read_fashion_mnist,
    render_script,
)

FONTS = pytest.mark.skipif(
    not list(NOTO.glob("NotoSansArmenian-*.ttf")), reason="fonts-noto-extra is not installed"
)


@pytest.fixture(scope="module")
def mnist():
    return load_private_set("mnist-5k")


def keys(images):
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", ["digits", pytest.param("armenian", marks=FONTS)])
def test_pool_and_reference_are_disjoint_and_the_same_on_every_call(name):
    first, second = load_private_set(name), load_private_set(name)
    for images in (first.pool, first.reference):
        assert images.dtype == torch.float32
        assert images.shape[1:] == (1, 28, 28)
        assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert not keys(first.pool) & keys(first.reference)
    assert torch.equal(first.pool, second.pool)
    assert torch.equal(first.reference, second.reference)


def test_mnist_is_split_in_halves_with_every_digit_alike(mnist):
    assert not keys(mnist.pool) & keys(mnist.reference)
    assert len(mnist.pool) == len(mnist.reference) == 2500
    for labels in (mnist.pool_labels, mnist.reference_labels):
        assert labels.dtype == torch.int64
        assert torch.equal(labels.bincount(), torch.full((10,), 250))


def test_records_are_drawn_from_the_pool_and_nest(mnist):
    few, few_labels = mnist.records(128, seed=3)
    many, many_labels = mnist.records(2000, seed=3)
    assert torch.equal(many[:128], few)
    assert torch.equal(many_labels[:128], few_labels)
    assert len(keys(many)) == 2000
    assert keys(many) <= keys(mnist.pool)
    assert not torch.equal(mnist.records(128, seed=4)[0], few)
    for n in (0, 2501):
        with pytest.raises(UsageError, match=f"n={n}"):
            mnist.records(n)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_has_its_published_split():
    data = load_private_set("fashion-mnist")
    for images, labels, count in (
        (data.pool, data.pool_labels, 60_000),
        (data.reference, data.reference_labels, 10_000),
    ):
        assert images.shape == (count, 1, 28, 28)
        assert images.dtype == torch.float32
        assert (float(images.min()), float(images.max())) == (-1, 1)
        assert torch.equal(labels.bincount(), torch.full((10,), count // 10))
    assert not keys(data.pool) & keys(data.reference)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_no_image_of_an_unseen_class_is_public():
    public, names = fashion_public()
    assert len(public) == len(names) == 42_000
    assert set(names) == set(FASHION_CLASSES) - set(FASHION_UNSEEN)
    open_keys = keys(public)
    for name in FASHION_UNSEEN:
        data = load_private_set(f"fashion-{name}")
        assert (len(data.pool), len(data.reference)) == (6000, 1000)
        assert not open_keys & keys(data.pool)
        train, labels = read_fashion_mnist("train")
        assert torch.equal(data.pool, train[labels == FASHION_CLASSES.index(name)])


def test_fashion_mnist_is_read_byte_by_byte_and_a_missing_one_is_told(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    header = struct.pack(">4i", 0x803, 3, 28, 28)
    for name, data in (
        ("images-idx3", header + pixels.tobytes()),
        ("labels-idx1", struct.pack(">2i", 0x801, 3) + bytes([4, 0, 9])),
    ):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(data))
    images, labels = read_fashion_mnist("t10k", folder=tmp_path)
    assert np.array_equal(np.round((images.numpy()[:, 0] + 1) * 127.5), pixels)
    assert labels.tolist() == [4, 0, 9]
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    for part in ("t10k", "train"):
        with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
            read_fashion_mnist(part, folder=tmp_path)


@FONTS
@pytest.mark.parametrize(("script", "word"), [("armenian", "ARMENIAN"), ("bengali", "BENGALI")])
def test_blocks_hold_their_script_alone(script, word):
    for block in private_sets.SCRIPT_BLOCKS[script]:
        names = [unicodedata.name(chr(code), "") for code in block]
        assert all(word in name for name in names if name)
    images = render_script(script, limit=64)
    assert images.shape == (64, 1, 28, 28)
    assert (images.max((1, 2, 3)) > 0).all()
    assert not np.array_equal(images[0], images[1])


def test_missing_fonts_and_unknown_names_are_told(tmp_path):
    with pytest.raises(DataError, match="apt-get install"):
        render_script("khmer", folder=tmp_path)
    with pytest.raises(UsageError, match="mnist-5k"):
        load_private_set("imagenet")


def test_small_sets_are_halved_and_middling_ones_keep_a_full_pool():
    for count, pool, reference in ((100, 50, 50), (3000, 2000, 1000), (9000, 2500, 2500)):
        made = private_sets._split("x", "", np.zeros((count, 1, 28, 28), np.float32), None)
        assert (len(made.pool), len(made.reference)) == (pool, reference)


def test_sets_reserved_for_acceptance_are_not_offered():
    reserved = re.compile("georgian|thai|gujarati|hebrew|tamil", re.IGNORECASE)
    assert not [name for name in PRIVATE_SETS if reserved.search(name)]
    for source in Path(hyperdp.eval.__path__[0]).glob("*.py"):
        texts = [n.value for n in ast.walk(ast.parse(source.read_text()))
                 if isinstance(n, ast.Constant) and isinstance(n.value, str)]  # fmt: skip
        assert not [text for text in texts if reserved.search(text)], source

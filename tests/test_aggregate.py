import warnings

import numpy as np
import pytest
from torch import nn

from hyperdp.errors import DataError, UsageError
from hyperdp.mechanism import STEPS_PER_UNIT, ClippedSum, MechanismSpec
from hyperdp.private.aggregate import aggregate
from hyperdp.private.class_names import check_classes
from hyperdp.private.embed import embed_batch
from hyperdp.private.records import Record
from tests.private_world import DIM, SHAPE, TinyBundle, TinyConfig, images, records

BUNDLE = TinyBundle()
PRIVATE = "a very private label"


def spec(classes=1, clip_norm=1.0):
    return MechanismSpec(embedding_dim=DIM, num_classes=classes, clip_norm=clip_norm)


def total_of(data, *, unit="record", classes=(), bundle=BUNDLE, **more):
    return aggregate(
        data,
        bundle=bundle,
        spec=spec(len(classes) or 1, bundle.config.clip_norm),
        unit=unit,
        classes=list(classes),
        **more,
    )


def equal(a: ClippedSum, b: ClippedSum) -> bool:
    return np.array_equal(a._sums, b._sums) and np.array_equal(a._counts, b._counts)


@pytest.mark.parametrize("unit", ["record", "user"])
def test_the_sum_depends_on_neither_order_nor_companions(unit):
    data = records(37, classes=3, users=5)
    classes = ("0", "1", "2")
    whole = total_of(data, unit=unit, classes=classes, batch_size=16)
    shuffled = [data[i] for i in np.random.default_rng(3).permutation(37)]
    assert equal(whole, total_of(shuffled, unit=unit, classes=classes, batch_size=16))
    assert equal(whole, total_of(iter(data), unit=unit, classes=classes, batch_size=16))


@pytest.mark.parametrize("unit", ["record", "user"])
def test_removing_a_unit_removes_its_contribution_and_nothing_else(unit):
    data = records(30, classes=2, users=6)
    classes = ("0", "1")
    gone = [r for r in data if r.unit == "user-2"] if unit == "user" else data[4:5]
    rest = [r for r in data if all(r is not g for g in gone)]
    whole = total_of(data, unit=unit, classes=classes)
    without = total_of(rest, unit=unit, classes=classes)
    alone = total_of(gone, unit=unit, classes=classes)
    np.testing.assert_array_equal(whole._sums - without._sums, alone._sums)
    np.testing.assert_array_equal(whole._counts - without._counts, alone._counts)
    squared = sum(int(x) ** 2 for x in [*alone._sums.ravel(), *alone._counts])
    assert 0 < squared <= whole.spec.squared_sensitivity


def test_record_sums_match_a_float_computation():
    data = records(20, classes=2)
    total = total_of(data, classes=("0", "1"), bundle=TinyBundle(config=TinyConfig(clip_norm=0.1)))
    embedded = embed_batch(BUNDLE.encoder, images(20)).astype(float)
    norms = np.linalg.norm(embedded, axis=1, keepdims=True)
    clipped = embedded * np.minimum(1, 0.1 / norms)
    assert (norms > 0.1).any()
    for label in (0, 1):
        np.testing.assert_allclose(
            total._sums[label] / STEPS_PER_UNIT, clipped[label::2].sum(0), atol=2e-6
        )
    np.testing.assert_array_equal(total._counts, [10 * total.spec.count_bound] * 2)


def test_a_user_counts_once_with_the_mean_of_their_records():
    data = records(12, users=3)
    total = total_of(data, unit="user")
    embedded = embed_batch(BUNDLE.encoder, images(12)).astype(float)
    means = np.stack([embedded[i::3].mean(0) for i in range(3)])
    means *= np.minimum(1, 1 / np.linalg.norm(means, axis=1, keepdims=True))
    np.testing.assert_allclose(total._sums[0] / STEPS_PER_UNIT, means.sum(0), atol=1e-6)
    assert total._counts[0] == 3 * total.spec.count_bound


def test_a_user_of_several_classes_is_shared_among_them():
    picture = images(1)[0]
    data = [Record(image=picture, label=label, unit="u") for label in "aaab"]
    total = total_of(data, unit="user", classes=("a", "b"))
    bound = total.spec.count_bound
    np.testing.assert_allclose(total._counts, [0.75 * bound, 0.25 * bound], atol=1)
    np.testing.assert_allclose(total._sums[0], 3 * total._sums[1], atol=4)


@pytest.mark.parametrize("unit", ["record", "user"])
def test_a_record_that_is_not_finite_counts_as_zero(unit):
    bad = Record(image=np.full(SHAPE, np.nan, np.float32), unit="bad")
    good = records(3, users=3)
    with_bad = total_of([*good, bad], unit=unit)
    without = total_of(good, unit=unit)
    np.testing.assert_array_equal(with_bad._sums, without._sums)
    assert with_bad._counts[0] - without._counts[0] == without.spec.count_bound


@pytest.mark.parametrize(
    ("record", "unit", "classes", "expected"),
    [
        (Record(image=images(1)[0], label=PRIVATE), "record", ("0", "1"), "classes"),
        (Record(image=images(1)[0]), "record", ("0", "1"), "classes"),
        (Record(image=images(1)[0]), "user", (), "user"),
        (Record(image=images(1)[0], unit=""), "user", (), "user"),
        (Record(image=images(1)[0], unit=" \t"), "user", (), "user"),
        (Record(image=images(1)[0], unit=float("nan")), "user", (), "user"),
        (Record(image=images(1)[0], unit=7), "user", (), "user"),
        (Record(image=np.zeros((1, 3, 3), np.float32)), "record", (), "shape"),
        (Record(image=np.zeros(SHAPE, np.float64)), "record", (), "float32"),
        (Record(image=np.zeros(SHAPE, np.int16)), "record", (), "float32"),
        (Record(image="not an image"), "record", (), "not shown"),
    ],
)
def test_unfit_records_are_refused_without_being_named(record, unit, classes, expected):
    data = [Record(image=r.image, label="0", unit="u") for r in records(3)]
    with pytest.raises(DataError, match=expected) as refused:
        total_of([*data, record], unit=unit, classes=classes)
    assert PRIVATE not in str(refused.value)
    assert refused.value.__cause__ is None


def test_an_error_of_a_library_does_not_quote_a_record():
    def reader():
        yield from records(2)
        raise RuntimeError(f"cannot parse {PRIVATE}")

    with pytest.raises(DataError, match="not shown") as refused:
        total_of(reader())
    assert PRIVATE not in str(refused.value)
    assert "RuntimeError" not in str(refused.value)
    assert refused.value.__context__ is refused.value.__cause__ is None


def test_an_error_of_a_reader_brings_no_context():
    def reader():
        yield from records(2)
        try:
            int(PRIVATE)
        except ValueError as error:
            raise DataError(expected="a", found="b", todo="c") from error

    with pytest.raises(DataError, match="expected a") as refused:
        total_of(reader())
    assert refused.value.__context__ is refused.value.__cause__ is None


def test_a_warning_about_a_record_is_not_shown(recwarn):
    class Loud(nn.Module):
        def forward(self, x):
            warnings.warn(f"{PRIVATE}: {float(x.max())}", stacklevel=1)
            return x.flatten(1)[:, :DIM]

    def reader():
        yield from records(2)
        np.float32(3e38) * np.float32(3e38)
        warnings.warn(PRIVATE, stacklevel=1)

    total_of(reader(), bundle=TinyBundle(encoder=Loud()))
    assert not recwarn.list


@pytest.mark.parametrize("classes", [["a"], [], ["a", "a"], "ab"])
def test_class_names_are_a_list_of_at_least_two(classes):
    with pytest.raises(UsageError, match="class"):
        check_classes(classes)
    assert check_classes(None) == []
    assert check_classes(("a", "b")) == ["a", "b"]


@pytest.mark.parametrize("name", [1, "", None, "x" * 201, b"a"])
def test_class_names_fit_a_certificate(name):
    with pytest.raises(UsageError, match="texts of 1 to 200 characters"):
        check_classes(["a", name])


def test_class_names_fit_a_certificate_together():
    thai = [f"{i:04d}" + "\u0e01" * 190 for i in range(600)]  # six bytes each, where spelt
    with pytest.raises(UsageError, match="class names of at most 524,288 characters in all"):
        check_classes(thai)
    assert check_classes(thai[:400]) == thai[:400]


def test_progress_writes_nothing_where_there_is_no_terminal(capfd):
    total_of(records(5), progress=True)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_progress_writes_nothing_to_a_file_whatever_the_environment_says(monkeypatch, capfd):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    total_of(records(5), progress=True)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_record_shows_no_value():
    record = Record(image=images(1)[0], label=PRIVATE, unit=PRIVATE)
    assert repr(record) == "Record()"

"""Whatever bytes are given as documents: an error of ours, or records of the one form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperdp.errors import HyperdpError
from hyperdp.private.readers import open_text_dataset
from tests.text_world import LENGTH, TEXTS, tokenizer

TOKENIZER = tokenizer()
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Line ends, marks of order, encodings that are none: what files of people have in them.
PIECES = st.sampled_from(
    [
        "text",
        '"',
        ",",
        "\n",
        "\r",
        "\t",
        "{",
        "}",
        ":",
        "\x00",
        "\ufeff",
        "\u202e",
        "שלום",
        "🙂",
        "é",
    ]
).map(str.encode)
NOISE = st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=30).map(b"".join)


def read(path: Path) -> int | None:
    """Number of records; None where it is refused, as it must be before anything is spent."""
    try:
        dataset = open_text_dataset(path, encode=TOKENIZER.encode)
        dataset.check()
    except HyperdpError as error:
        assert str(error)
        return None
    records = list(dataset.records())  # what was checked is read without an error
    for record in records:
        assert record.tokens.shape == (LENGTH,)
        assert ((record.tokens >= -1) & (record.tokens < TOKENIZER.vocab_size)).all()
    return len(records)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
@FUZZ
@given(noise=NOISE)
def test_noise_is_refused_or_read(suffix: str, noise: bytes, tmp_path: Path):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(noise)
    read(path)


@FUZZ
@given(noise=NOISE)
def test_noise_behind_good_rows_never_makes_fewer_records_of_them(noise: bytes, tmp_path: Path):
    path = tmp_path / "noise.jsonl"
    good = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    path.write_bytes(good + noise)
    found = read(path)
    assert found is None or found >= len(TEXTS)


@FUZZ
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_every_text_that_json_can_hold_is_one_record(texts: list[str], tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read(path) == len(texts)

"""Documents become token arrays of one length, and nothing of them is lost that fits."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperdp.errors import BundleError
from hyperdp.passages import brown_passages, fortunes_of, signature
from hyperdp.text import DocumentTokenizer
from hyperdp.text_encoder import PAD
from tests.text_world import LENGTH, tokenizer

TOKENIZER = tokenizer()
LONG = tokenizer(4096)


def test_a_document_begins_and_ends_with_its_marks_and_is_padded_behind():
    tokens = TOKENIZER.encode("Rain")
    count = int((tokens >= 0).sum())
    assert tokens.shape == (LENGTH,) and tokens.dtype.name == "int64"
    assert tokens[0] == TOKENIZER.begin and tokens[count - 1] == TOKENIZER.end
    assert (tokens[count:] == PAD).all()


@pytest.mark.parametrize("blank", ["", " ", "\n\t \r\n", "\u3000"])
def test_a_blank_document_has_no_token_at_all(blank: str):
    assert (TOKENIZER.encode(blank) == PAD).all()


@given(st.text(max_size=80))
def test_every_text_comes_back_but_for_line_ends_and_outer_blanks(text: str):
    tokens = LONG.encode(text)
    expected = text.strip().replace("\r\n", "\n").replace("\r", "\n").strip()
    assert LONG.decode(tokens[tokens >= 0].tolist()[1:]) == expected


@pytest.mark.parametrize("text", ["שלום עולם", "🙂🙃🙂", "a\x00b\x07c", "e\u0301", "\u202eabc"])
def test_other_scripts_emoji_and_control_characters_are_kept(text: str):
    tokens = LONG.encode(text)
    assert LONG.decode(tokens[tokens >= 0].tolist()[1:]) == text


def test_an_unpaired_surrogate_becomes_a_replacement_character():
    tokens = LONG.encode("a\ud800b")
    assert LONG.decode(tokens[tokens >= 0].tolist()[1:]) == "a\ufffdb"


def test_the_text_of_a_mark_is_text_and_no_mark():
    tokens = LONG.encode("one </s> two")
    assert (tokens == LONG.end).sum() == 1
    assert LONG.decode(tokens[tokens >= 0].tolist()[1:]) == "one </s> two"


def test_a_long_document_is_cut_where_a_short_one_would_end_and_quickly():
    began = time.monotonic()
    huge = TOKENIZER.encode("  " * 10**6 + "the harbour " * 10**6)
    assert time.monotonic() - began < 20
    assert (huge == TOKENIZER.encode("the harbour " * 100)).all()


def test_a_tokenizer_without_an_end_mark_is_refused():
    stock = tokenizer().stock
    stock.eos_token = None
    with pytest.raises(BundleError, match="end-of-text"):
        DocumentTokenizer(stock, 8)


def test_a_fortune_file_is_cut_at_its_lines_of_percent():
    assert fortunes_of("one\n%\ntwo 5% off\nmore\n%\n") == ["one", "two 5% off\nmore"]


def test_a_signature_is_a_name_and_nothing_else():
    assert signature('No.\n\t\t-- Mark Twain, "Letters"') == "Mark Twain"
    assert signature("It is 5 -- no, 6 o'clock, and all is well") == ""


def test_a_tagged_file_becomes_prose_with_every_word_in_it():
    line = "\tThe/at ``/`` rain/nn ''/'' fell/vbd ,/, he/pps said/vbd ./.\n"
    passages = brown_passages(line * 20)
    assert passages[0].startswith('The "rain" fell, he said. The "rain"')
    assert sum(passage.count("rain") for passage in passages) == 20

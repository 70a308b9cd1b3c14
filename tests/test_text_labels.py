"""Labelled private documents, and what their adapters are worth to a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperdp.errors import UsageError
from hyperdp.eval import text_sets
from hyperdp.eval.text_sets import load_labelled_set, load_text_set, split_documents, with_labels


def test_labels_leave_the_split_as_it_is_and_drop_what_has_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "npm" / "node_modules" / "@stdlib" / "datasets-spam-assassin" / "data"
    for group in (*text_sets.MAIL_GROUPS, "hard-ham-1"):
        (data / group).mkdir(parents=True)
        for i in range(20):
            raw = f"Subject: s\n\nbody {i} of {group}"
            (data / group / f"{i}.json").write_text(json.dumps({"text": raw}))
        for i in range(4):
            (data / group / f"both-{i}.json").write_text(json.dumps({"text": f"\n\nin both {i}"}))
    monkeypatch.setenv("HYPERDP_CACHE", str(tmp_path))
    plain, found = load_text_set("spam-assassin"), load_labelled_set("spam-assassin")
    assert found.classes == ["ham", "spam"]
    for part, whole in ((found.pool, plain.pool), (found.reference, plain.reference)):
        assert part == [text for text in whole if "in both" not in text]
        assert ["spam-" in text for text in part] == [c == 1 for c in found.labels(part)]
    together = found.pool + found.reference
    assert len(together) == 80 and not any("hard-ham" in text for text in together)
    with pytest.raises(UsageError, match="with labels"):
        load_labelled_set("fortunes-science")


def test_a_document_without_a_class_is_in_no_labelled_set():
    data = split_documents("x", "y", [f"text {i}" for i in range(40)])
    found = with_labels(data, {"b": ["text 3", "text 4"], "a": ["  text 5 ", "text 3"]})
    assert sorted(found.pool + found.reference) == ["text 4", "text 5"]
    assert found.labels(["text 4", "text 5"]) == [1, 0]

"""Losses noted as they are measured, so that a run that is killed loses one at most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Notebook:
    """Losses by what they are of, in a JSONL file whose first line says what was asked."""

    def __init__(self, path: Path, what: dict[str, Any]) -> None:
        self._path, self._what = path, json.loads(json.dumps(what))
        self._losses: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        if rows and rows[0] == self._what:
            self._losses = {_key(row["of"]): row["loss"] for row in rows[1:]}

    def loss(self, of: dict[str, Any], measure: Callable[[], float]) -> float:
        """The loss noted of something, measured now where none is."""
        key = _key(of)
        if key not in self._losses:
            self._losses[key] = measure()
            rows = [{"of": json.loads(k), "loss": v} for k, v in self._losses.items()]
            draft = self._path.with_suffix(".tmp")
            draft.write_text(
                "".join(json.dumps(row) + "\n" for row in [self._what, *rows]), encoding="utf-8"
            )
            draft.replace(self._path)
        return self._losses[key]


def _key(of: dict[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)

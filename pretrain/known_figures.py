"""What a forecast at other noise levels has measured already: LoRA, and the levels of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperdp.pretrain.task_files import Figures, TaskFiles


@dataclass(frozen=True)
class Known:
    """A task's figures at other noise levels, the lowest among them.

    Attributes:
        noise_std: the levels.
        figures: of the same measures and units.
    """

    noise_std: list[float]
    figures: Figures


def known_figures(files: TaskFiles, what: Mapping[str, Any], index: int) -> Known | None:
    """A finished task's figures where only the noise levels are others, and not the lowest.

    Args:
        files: of the tasks that are measured now.
        what: their figures depend on.
        index: of the task.

    Returns:
        The figures with the most levels in common; None where nobody has measured this task.
    """
    own = json.loads(json.dumps(what))  # as a file has it
    levels = own["config"].pop("noise_std")
    found = []
    for settings, figures in files.elsewhere(index):
        other = settings.get("config", {}).pop("noise_std", [])
        if settings == own and other and min(other) == min(levels):
            found.append(Known(other, figures))
    return max(found, key=lambda known: len({*known.noise_std} & {*levels}), default=None)

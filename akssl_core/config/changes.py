"""What was changed in a run's settings before it is resumed, and whether a run can go on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .schema import leaves

HARMLESS = (
    "callbacks",
    "data.cache_gb",
    "data.max_unreadable",
    "data.path",
    "evaluate.",
    "train.epochs",
    "train.steps",
    "train.keep",
    "train.stop_on_collapse",
    "train.checkpoint_every",
    "train.log_every",
    "train.workers",
    "train.device",
    "train.devices",
    "train.strategy",
)  # they move no weight, or, like more epochs or a place that data was moved to, they are what people resume for


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs."""

    path: str
    before: Any
    after: Any

    @property
    def harmless(self) -> bool:
        """Whether a run can go on with it."""
        return any(self.path == name or (name.endswith(".") and self.path.startswith(name)) for name in HARMLESS)

    def __str__(self) -> str:
        """`train.epochs: 10 -> 20`."""
        return f"{self.path}: {_short(self.before)} -> {_short(self.after)}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Sequence[Change]:
    """The settings in which two tables differ, by path; what one of them lacks is null."""
    old, new = dict(leaves(before)), dict(leaves(after))
    paths = [*old, *(path for path in new if path not in old)]
    return [Change(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

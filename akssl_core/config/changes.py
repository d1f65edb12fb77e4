"""Settings that were changed before a run is resumed, and whether it can go on with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .schema import Ref, Schema, leaves

HARMLESS = "resume: harmless"
"""In the type of a field, `Annotated[int, HARMLESS]`: it moves no weight of the steps so far, or, like more epochs,
it is what people resume for."""


def is_harmless(path: str, settings: Schema) -> bool:
    """Whether a run goes on with another value at this path: its field, or that of a table above it, says so."""
    held = settings.config if isinstance(settings, Ref) else settings
    name, _, rest = path.partition(".")
    if (field := type(held).model_fields.get(name)) is None:
        return False
    inner = getattr(held, name)
    return HARMLESS in field.metadata or (isinstance(inner, Schema) and is_harmless(rest, inner))


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs."""

    path: str
    before: Any
    after: Any

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

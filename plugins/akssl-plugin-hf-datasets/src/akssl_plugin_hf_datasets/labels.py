"""Labels of a column as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from akssl_core import encode_labels


def read_labels(parts: Sequence[Any], column: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """The labels of all parts in a row, (N,) int64 with -1 for "unknown", and the names of the classes.

    Numbers of a ClassLabel stay as they are. Whole numbers from -1 to N - 1 do too; other numbers and texts are
    numbered in sorted order. Parts whose classes have other numbers are brought together by the names.
    """
    names = [getattr(part.features[column], "names", None) for part in parts]  # None where it is no ClassLabel
    values = [part.with_format("arrow")[:][column].to_pylist() for part in (p.select_columns([column]) for p in parts)]
    if names[0] is not None and all(other == names[0] for other in names):
        numbers = [-1 if value is None else value for part in values for value in part]
        return torch.tensor(numbers, dtype=torch.int64).clamp_(min=-1), tuple(names[0])
    named = [_named(value, words) for part, words in zip(values, names, strict=True) for value in part]
    return encode_labels(named, len(named))


def _named(value: Any, words: Sequence[str] | None) -> Any:
    """The name of a class that has one, None for an unknown label, and any other value as it is."""
    if value is None or value == -1:
        return None
    if words is None:
        return value
    return words[value] if value >= 0 else None

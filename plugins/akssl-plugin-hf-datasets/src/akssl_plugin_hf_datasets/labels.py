"""Labels of a column as numbers, and the images that are kept from training for the probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EVERY = 5  # one image of each class in five becomes a query, as for the core's own sources
MOST_QUERIES = 5000  # more make a probe slower, not better


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
    return _numbered([_named(value, words) for part, words in zip(values, names, strict=True) for value in part])


def _named(value: Any, words: Sequence[str] | None) -> Any:
    """The name of a class that has one, None for an unknown label, and any other value as it is."""
    if value is None or words is None:
        return value
    return words[value] if value >= 0 else None


def _numbered(values: list[Any]) -> tuple[Tensor, tuple[str, ...] | None]:
    """Whole numbers or texts, None where unknown, as labels."""
    known = {value for value in values if value is not None and value != -1}
    if not any(isinstance(value, str) for value in known) and all(0 <= value < len(values) for value in known):
        return torch.tensor([-1 if value is None else int(value) for value in values]), None
    order = sorted(known, key=lambda value: (str(value) if isinstance(value, str) else "", value))
    number = {value: i for i, value in enumerate(order)}
    return torch.tensor([number.get(value, -1) for value in values]), tuple(str(value) for value in order)


def hold_out(labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Positions (bank, queries) of a fixed stratified split, each sorted; None where there is nothing to tell apart.

    Of each class the second image and every fifth after it become queries, at most 5000 in all, evenly
    thinned; the other labelled images are the bank. It takes two classes and a class with two images.
    """
    classes = torch.unique(labels[labels >= 0]).tolist()
    queries = [torch.nonzero(labels == number).flatten()[1::EVERY] for number in classes]
    if len(classes) < 2 or not any(len(rows) for rows in queries):
        return None
    by_class = torch.cat(queries)
    chosen = by_class[:: -(-len(by_class) // MOST_QUERIES)].sort().values
    is_bank = labels >= 0
    is_bank[chosen] = False
    return torch.nonzero(is_bank).flatten(), chosen

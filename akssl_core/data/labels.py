"""Labels in any usual form as int64, and a fixed stratified split for probes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

EVERY = 5  # one image of each class in five becomes a query
MOST_QUERIES = 5000  # more make a probe slower, not better


def encode_labels(labels: Any, count: int) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels (count,) as int64 with -1 for "unknown", and the names of the classes where numbers had to be given.

    Whole numbers from -1 to count - 1 stay as they are; other numbers and texts are numbered in sorted order.
    None is an unknown label too.

    Raises:
        DataError: another length, shape or type.
    """
    values = _as_array(labels)
    if values.shape != (count,):
        what = f"{len(values)} labels" if values.ndim == 1 else f"labels of shape {values.shape}"
        cure = " One-hot labels become numbers by labels.argmax(1)." if values.ndim == 2 else ""
        raise DataError(f"labels: got {what} for {count} images; expected one label an image.{cure}")
    if values.dtype != object:
        return _numbered(values, count)
    known = torch.tensor([value is not None for value in values])
    labels = torch.full((count,), -1)
    if not known.any():
        return labels, None
    labels[known], names = _numbered(_as_array(values[known.numpy()]), count)
    return labels, names


def _numbered(values: np.ndarray[Any, Any], count: int) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels that are all known as numbers; `count` is that of all images."""
    if values.ndim != 1:
        raise DataError(_LISTS)
    if values.dtype.kind not in "biuU":
        raise DataError(
            f"labels: expected whole numbers or texts, got {values.dtype}. Convert them, or leave them out."
        )
    if values.dtype.kind != "U" and values.min() >= -1 and values.max() < count:
        return torch.from_numpy(values.astype(np.int64)), None
    names, numbers = np.unique(values, return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), tuple(str(name) for name in names)


_LISTS = "labels: some items are lists; expected one number or text an image."


def _as_array(labels: Any) -> np.ndarray[Any, Any]:
    if isinstance(labels, Tensor):
        return labels.detach().cpu().numpy()
    try:
        values = np.asarray(labels)
        return np.asarray(values.tolist()) if values.dtype == object else values  # texts from a table
    except ValueError as error:
        raise DataError(_LISTS) from error


def hold_out(labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Positions (bank, queries) of a fixed stratified split, each sorted; None where there is nothing to tell apart.

    Of each class the second image and every fifth after it become queries, at most 5000 in all, evenly
    thinned; the other labelled images are the bank. It takes two classes and a class with two images.
    """
    classes = sorted(set(labels[labels >= 0].tolist()))
    if len(classes) < 2:
        return None
    members = [torch.nonzero(labels == k).flatten() for k in classes]
    queries = torch.cat([rows[1::EVERY] for rows in members]).sort().values
    if len(queries) == 0:
        return None
    queries = _thin(queries, labels)
    is_bank = labels >= 0
    is_bank[queries] = False
    return torch.nonzero(is_bank).flatten(), queries


def _thin(queries: Tensor, labels: Tensor) -> Tensor:
    """At most `MOST_QUERIES` of them, the same share of each class."""
    step = -(-len(queries) // MOST_QUERIES)
    by_class = queries[labels[queries].argsort(stable=True)]
    return by_class[::step].sort().values


def without(rows: Tensor, count: int) -> Tensor:
    """The positions 0..count-1 that are not among `rows`."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[rows] = False
    return torch.nonzero(keep).flatten()

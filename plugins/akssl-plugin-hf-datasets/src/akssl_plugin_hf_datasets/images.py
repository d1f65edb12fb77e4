"""Rows of a table as images: decoded when asked for, remembered, and stood in for where they cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from akssl_core import DataError, ImageSet, Pixels

from .decode import Unreadable, decode, look

THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes without the interpreter lock
SAMPLE = 64  # headers read to learn the usual size and the channels


class Rows:
    """The images of a table, the memory of what was decoded, and the record of what could not be.

    `channels` and `shorter`, the median shorter side, come from a sample of the first split.

    Args:
        table: a `datasets.Dataset` of one column: the split to train on, then the test split if there is one.
        count: the number of rows of the first split.
        test: the name of the second.
        folder: where relative paths inside the table start, None for a data set of the hub.
        config: with the settings `path`, `max_unreadable` and `cache_gb`.

    Raises:
        DataError: no image of the sample can be read, or too many cannot.
    """

    def __init__(self, table: Any, count: int, test: str | None, folder: Path | None, config: Any) -> None:
        self.table, self.folder = table.with_format("arrow"), folder
        self.count, self.test = count, test
        self.folders = [folder, Path()] if folder else [Path()]
        self.place, self.share = config.path, config.max_unreadable
        self.room = int(config.cache_gb * 2**30)
        self.reasons: dict[int, str] = {}
        self.unreadable: dict[str, str] = {}
        self._small: dict[int, Tensor] = {}
        self.channels, self.shorter = self._look()

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def _names(self) -> list[str] | None:
        """The paths beside the images, relative to the folder, where every image has one of its own."""
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import compute

        column = self.table[:].column(0)
        if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
            column = compute.struct_field(column, "path")
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return None
        names = [name and name.removeprefix(f"{self.folder}{os.sep}") for name in column.to_pylist()]
        return names if all(names) and len(set(names)) == len(names) else None

    def id_of(self, row: int) -> str:
        """The path of the image where every one has its own, else its number in its split ("test/3")."""
        if self._names is not None:
            return self._names[row]
        return str(row) if row < self.count else f"{self.test}/{row - self.count}"

    def _look(self) -> tuple[int, int]:
        """(channels, median shorter side) of some images of the first split, spread over it.

        Raises:
            DataError: none of them can be read, or too many cannot.
        """
        rows = sorted({i * self.count // SAMPLE for i in range(SAMPLE)})
        seen, reasons = [], {}
        for row, cell in zip(rows, self._cells(rows), strict=True):
            try:
                seen.append(look(cell, self.folders))
            except Unreadable as error:
                reasons[row] = str(error)
        if not seen:
            named = {self.id_of(row): reason for row, reason in reasons.items()}
            raise DataError(f"data: none of {len(rows)} images looked at in '{self.place}' can be read: {_few(named)}.")
        for row, reason in reasons.items():
            self._mark(row, reason)
        return max(channels for channels, _ in seen), sorted(side for _, side in seen)[(len(seen) - 1) // 2]

    def read(self, rows: Sequence[int], side: int) -> dict[int, Tensor]:
        """The images at these rows, reduced to a shorter side of `side`; those that cannot be read are left out.

        Raises:
            DataError: too many images cannot be read.
        """
        wanted = dict.fromkeys(rows)
        missing = [row for row in wanted if row not in self._small and row not in self.reasons]
        images = {row: self._small[row] for row in wanted if row in self._small}
        for row, result in zip(missing, self._decode(missing, side), strict=True):
            if isinstance(result, Unreadable):
                self._mark(row, str(result))
            else:
                images[row] = result
                self._keep(row, result)
        return images

    def _cells(self, rows: Sequence[int]) -> list[Any]:
        """The raw cells at these rows."""
        return list(self.table[list(rows)].column(0)) if rows else []

    def _decode(self, rows: Sequence[int], side: int) -> list[Tensor | Unreadable]:
        """Decode in a few threads; they live for one batch alone."""

        def one(cell: Any) -> Tensor | Unreadable:
            try:
                return decode(cell, self.folders, self.channels, side)
            except Unreadable as error:
                return error

        cells = self._cells(rows)
        if len(cells) <= 1:
            return [one(cell) for cell in cells]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="akssl-decode") as pool:
            return list(pool.map(one, cells))

    def _keep(self, row: int, image: Tensor) -> None:
        """Keep an image while there is room. Nothing is dropped: every image is as likely to come next."""
        if image.numel() <= self.room:
            self._small[row] = image
            self.room -= image.numel()

    def _mark(self, row: int, reason: str) -> None:
        """Record an image that cannot be read.

        Raises:
            DataError: more than the allowed share cannot be read.
        """
        self.reasons[row] = self.unreadable[self.id_of(row)] = reason
        bad, count = len(self.reasons), len(self)
        if bad > ceil(self.share * count):
            raise DataError(
                f"data: {bad} of {count} images in '{self.place}' cannot be read ({bad / count:.1%}, allowed "
                f"{self.share:.1%}): {_few(self.unreadable)}. Repair or remove them, or raise data.max_unreadable."
            )


class RowImages(ImageSet):
    """Some rows of a table as images. One that cannot be read is stood in for by the next that can.

    The next one is looked for among these images alone, first among those with the same label, so that a
    bank never shows a query and a probe is not told a wrong label.
    """

    loading = "thread"

    def __init__(
        self, store: Rows, rows: Tensor, side: int, labels: Tensor | None, classes: tuple[str, ...] | None
    ) -> None:
        self.store, self.rows, self.side = store, rows.tolist(), side
        self.labels, self.classes, self.channels = labels, classes, store.channels
        self._instead: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order, reduced to about the size of the views.

        Raises:
            DataError: too many images cannot be read.
        """
        index = [int(i) for i in index]
        images = self.store.read([self.rows[i] for i in index], self.side)
        bad = tuple((i, self.store.reasons[self.rows[i]]) for i in index if self.rows[i] not in images)
        stand_ins = {i: self._stand_in(i) for i, _ in bad}
        return Pixels.stack([stand_ins[i] if i in stand_ins else images[self.rows[i]] for i in index], bad)

    def _stand_in(self, i: int) -> Tensor:
        """The image shown instead of image i: always the same one, found once."""
        for j in [self._instead[i]] if i in self._instead else self._after(i):
            for image in self.store.read([self.rows[j]], self.side).values():
                self._instead[i] = j
                return image
        unreadable = _few(self.store.unreadable)
        raise DataError(f"data: none of {len(self)} images in '{self.store.place}' can be read: {unreadable}.")

    def _after(self, i: int) -> Iterator[int]:
        """The other positions from i on, around the end; those with the same label first."""
        if self.labels is not None:
            same = torch.nonzero(self.labels == self.labels[i]).flatten()
            yield from same[same > i].tolist()
            yield from same[same < i].tolist()
        yield from range(i + 1, len(self))
        yield from range(i)

    def id_of(self, i: int) -> str:
        """The path of the image where every one has its own, else its number in the table."""
        return self.store.id_of(self.rows[i])

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The images of the whole table that could not be read so far, with the reasons."""
        return self.store.unreadable

    def subset(self, rows: Tensor) -> ImageSet:
        """Some of these images, with the same memory and the same record."""
        labels = None if self.labels is None else self.labels[rows]
        return RowImages(self.store, torch.tensor(self.rows)[rows], self.side, labels, self.classes)


def _few(unreadable: Mapping[str, str]) -> str:
    """The first few names with their reasons, for a message."""
    return "; ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:3])

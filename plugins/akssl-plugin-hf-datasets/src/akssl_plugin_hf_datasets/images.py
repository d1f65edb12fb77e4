"""The rows of a table as a store of images: which cells they are, how one is called, and what a sample shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from akssl_core import ImageStore

from .decode import decode, look


class Rows(ImageStore):
    """The images of a table.

    `channels` and `shorter`, the median shorter side, come from a sample of the first split.

    Args:
        table: a `datasets.Dataset` of one column: the split to train on, then the test split if there is one.
        first: the number of rows of the first split.
        test: the name of the second.
        folder: where relative paths inside the table start, None for a data set of the hub.
        config: with the settings `path`, `max_unreadable` and `cache_gb`.

    Raises:
        DataError: no image of the sample can be read, or too many cannot.
    """

    def __init__(self, table: Any, first: int, test: str | None, folder: Path | None, config: Any) -> None:
        super().__init__(len(table), f"'{config.path}'", max_unreadable=config.max_unreadable, cache_gb=config.cache_gb)
        self.table, self.folder = table.with_format("arrow"), folder
        self.first, self.test = first, test
        self.folders = [folder, Path()] if folder else [Path()]
        self.channels, self.shorter = self.look(first)

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
        return str(row) if row < self.first else f"{self.test}/{row - self.first}"

    def cells(self, rows: Sequence[int]) -> list[Any]:
        """The Arrow scalars at these rows, from one look into the table."""
        return list(self.table[list(rows)].column(0))

    def header(self, cell: Any) -> tuple[int, int]:
        """(channels it is worth, shorter side) of the image in a cell."""
        return look(cell, self.folders)

    def decode(self, cell: Any, side: int | None) -> Tensor:
        """The image in a cell, reduced or whole."""
        return decode(cell, self.folders, self.channels, side)

"""Prepared files as one: a single file, or a folder of shards with the index that says which rows lie in which."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..config.schema import Schema
from ..errors import DataError
from .prepared_file import FORMAT, PARTS, SUFFIX, NotPrepared, PreparedFile, Record, Unread, held_in, parsed
from .scan import MOVED

INDEX = f"images.index{SUFFIX}"
MOST = 99_999  # shards of a folder
OWN = re.compile(rf"\.?images(\.index|-\d{{5}}-of-\d{{5}}){re.escape(SUFFIX)}(\.part|\.lock)?")
_LOOKED_AT = 1000  # names in a folder; one of shards holds nothing else


class Index(Schema):
    """What stands in the header of an index; its tensors are the rows of training, bank and queries."""

    of: str = Field(min_length=1, max_length=100, description="hash of the source and of how it was prepared")
    rows: tuple[Annotated[int, Field(ge=1, le=2**40)], ...] = Field(
        min_length=1, max_length=MOST, description="how many rows each shard holds, one after the other"
    )
    others: dict[str, str] = Field(description="id of what is no row -> why it cannot be read")


def shard_name(number: int, count: int) -> str:
    """The file of a shard. An index names none, so that it leads to no other place."""
    return f"images-{number:05}-of-{count:05}{SUFFIX}"


def is_prepared(path: Path) -> bool:
    """Whether a path is that of a prepared file, or of a folder of shards, finished or not."""
    if not os.path.isdir(path):
        return path.suffix.lower() == SUFFIX
    with suppress(OSError), os.scandir(path) as entries:  # whoever reads the folder tells why it cannot be listed
        return os.path.isfile(path / INDEX) or any(OWN.fullmatch(one.name) for one in islice(entries, _LOOKED_AT))
    return False


@dataclass(frozen=True)
class PreparedFiles:
    """Checked files whose rows follow each other: one, or the shards of a folder. Pixels stay on disk."""

    path: Path
    record: Record
    files: tuple[PreparedFile, ...]
    begins: tuple[int, ...]  # the first row of each file
    unread: Unread
    parts: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> PreparedFiles:
        """Map what comes from anywhere.

        Raises:
            DataError: it does not exist, was written by something else, is damaged, or is not finished.
        """
        try:
            return cls.mapped(path)
        except NotPrepared as error:
            cure = f"make one again: akssl data prepare SRC --out FILE{SUFFIX}"
            if os.path.isdir(path) and is_prepared(path):
                raise DataError(f"data: {path} {error}. Run the command that made it again: it goes on.") from error
            moved = "" if os.path.exists(path) else f". {MOVED}"
            raise DataError(
                f"data: {path} {error}. Expected a file that 'akssl data prepare' wrote; {cure}{moved}"
            ) from error

    @classmethod
    def mapped(cls, path: Path) -> PreparedFiles:
        """Map a file, a folder of shards or its index, and check all but the pixels.

        Raises:
            NotPrepared: with what is wrong.
        """
        is_folder = os.path.isdir(path) and is_prepared(path)
        if is_folder and not os.path.exists(path / INDEX):
            raise NotPrepared(f"is not finished: it has no {INDEX}, which is written last")
        at = path / INDEX if is_folder else path
        tensors, texts, seen = held_in(at)
        if texts["format"] == FORMAT:
            files: tuple[PreparedFile, ...] = (PreparedFile.mapped(at, (tensors, texts, seen)),)
            others = files[0].unread.others
        else:
            index = parsed(Index, texts.get("index", ""), "index")
            files = tuple(_shard(at.parent, number, index) for number in range(len(index.rows)))
            others = index.others
        begins = (0, *accumulate(map(len, files)))
        reasons = zip(begins[:-1], (file.unread.rows for file in files), strict=True)
        rows = {first + row: why for first, own in reasons for row, why in own.items()}
        parts = {name: tensors[name] for name in PARTS if name in tensors}
        found = cls(path, files[0].record, files, begins[:-1], Unread(rows=rows, others=others), parts)
        _check_parts(found)
        return found

    def __len__(self) -> int:
        return self.begins[-1] + len(self.files[-1])

    def check(self, rows: Sequence[int]) -> None:
        """Refuse to read on at some rows where their file was written to since, as `PreparedFile.check` does."""
        for file in {id(file): file for file, _ in map(self.at, rows)}.values():
            file.check()

    def at(self, row: int) -> tuple[PreparedFile, int]:
        """The file of a row, and the row there."""
        number = bisect_right(self.begins, row) - 1
        return self.files[number], row - self.begins[number]

    @cached_property
    def sizes(self) -> Tensor:
        """(N, 2) int32: height and width of each image; 0, 0 for one that could not be read."""
        return torch.cat([file.sizes for file in self.files])

    @cached_property
    def reduced(self) -> Tensor:
        """(N,) bool: which originals were larger or longer."""
        return torch.cat([file.reduced for file in self.files])

    @cached_property
    def labels(self) -> Tensor | None:
        """(N,) int64, -1 for "unknown"; None: no image has one."""
        found = [file.labels for file in self.files if file.labels is not None]
        return torch.cat(found) if found else None

    @cached_property
    def ids(self) -> list[str]:
        """The name of each image."""
        return [name for file in self.files for name in file.ids]


def _shard(folder: Path, number: int, index: Index) -> PreparedFile:
    """One file of a folder, which must be that of the index."""
    name = shard_name(number, len(index.rows))
    if not os.path.exists(folder / name):
        raise NotPrepared(f"lacks {name}")
    try:
        file = PreparedFile.mapped(folder / name)
    except NotPrepared as error:
        raise NotPrepared(f"cannot be read: {name} {error}") from error
    if (file.shard, len(file)) != (f"{index.of} {number}", index.rows[number]):
        raise NotPrepared(f"cannot be read: {name} is of other data than {INDEX}")
    return file


def _check_parts(of: PreparedFiles) -> None:
    """That files go together, that an image can be read, and that the parts are among the images."""
    count = len(of)
    if any(file.record != of.record or (file.labels is None) != (of.labels is None) for file in of.files):
        raise NotPrepared("is damaged: its shards are of several kinds")
    if len(of.unread.rows) == count:
        raise NotPrepared("is damaged: none of its images has pixels")
    for name, rows in of.parts.items():
        if len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= count:
            raise NotPrepared(f"is damaged: '{name}' must hold positions from 0 to {count - 1}")
    probes = [name in of.parts for name in ("bank", "queries")]
    if any(probes) and not (all(probes) and of.labels is not None):
        raise NotPrepared("is damaged: a probe needs bank, queries and labels, and it lacks one of them")

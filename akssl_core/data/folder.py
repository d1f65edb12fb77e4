"""A folder of image files: flat, nested or one sub-folder a class, of any formats, sizes and modes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import Schema
from ..errors import DataError
from .base import ImageSet, Pixels, suitable_size
from .convert import stored_side
from .decode import Unreadable, read_image, shorter_side
from .holdout import HoldOutSource
from .labels import encode_labels
from .scan import Found, class_folders, printable, scan

THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes without the interpreter lock
SAMPLE = 64  # headers read to learn the usual size


class FolderConfig(Schema):
    """Settings of the data source `folder`."""

    path: Path = Field(description="folder of images: flat, nested or one sub-folder a class")
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: every image is turned gray")
    max_unreadable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the files that may be unreadable, rounded up to whole files (25 of 500); past it the "
        "run stops. A run also stops at once when none of 64 files spread over the folder can be read",
    )
    cache_gb: float = Field(2.0, ge=0, description="memory for decoded images, so that later epochs decode nothing")


class ImageFiles:
    """The files of a folder, the memory of what was decoded, and the record of what could not be."""

    def __init__(self, config: FolderConfig, found: Found) -> None:
        self.root, self.files = config.path.expanduser(), found.files
        self.channels, self.share = config.channels, config.max_unreadable
        self.unreadable = dict(found.broken)
        self.reasons: dict[int, str] = {}  # by row: two names that are no text may look alike when printed
        self.count = len(found.files) + len(found.broken)
        self.room = int(config.cache_gb * 2**30)
        self._small: dict[int, Tensor] = {}

    def id_of(self, row: int) -> str:
        """The path of a file relative to the folder, fit to be shown."""
        return printable(self.files[row])

    def mark(self, row: int, reason: str) -> None:
        """Record a file that cannot be read.

        Raises:
            DataError: more than the allowed share cannot be read.
        """
        self.reasons[row] = self.unreadable[self.id_of(row)] = reason
        self.check()

    def check(self) -> None:
        """Stop when too many files cannot be read.

        Raises:
            DataError: with their number, share and first few names, and the setting to raise.
        """
        bad = len(self.unreadable)
        if bad > ceil(self.share * self.count):
            raise DataError(
                f"data: {bad} of {self.count} files in {self.root} cannot be read ({bad / self.count:.1%}, allowed "
                f"{self.share:.1%}): {_first(self.unreadable)}. Repair or remove them, or raise data.max_unreadable."
            )

    def headers(self) -> list[int]:
        """The shorter sides of some files spread over the folder.

        Raises:
            DataError: none of them is an image, or too many files cannot be read.
        """
        rows = sorted({i * len(self.files) // SAMPLE for i in range(SAMPLE)})
        sides, reasons = [], {}
        for row in rows:
            try:
                sides.append(shorter_side(self.root / self.files[row]))
            except Unreadable as error:
                reasons[row] = str(error)
        if not sides:
            named = {self.id_of(row): reason for row, reason in reasons.items()}
            raise DataError(f"data: none of {len(rows)} files looked at in {self.root} is an image: {_first(named)}.")
        for row, reason in reasons.items():
            self.mark(row, reason)
        return sides

    def read(self, rows: Sequence[int], side: int) -> dict[int, Tensor]:
        """The images at these rows, reduced to a shorter side of `side`; those that cannot be read are left out.

        Raises:
            DataError: too many files cannot be read.
        """
        wanted = dict.fromkeys(rows)
        missing = [row for row in wanted if row not in self._small and row not in self.reasons]
        images = {row: self._small[row] for row in wanted if row in self._small}
        for row, result in zip(missing, self._decode(missing, side), strict=True):
            if isinstance(result, Unreadable):
                self.mark(row, str(result))
            else:
                images[row] = result
                self._keep(row, result)
        return images

    def _decode(self, rows: Sequence[int], side: int) -> list[Tensor | Unreadable]:
        """Decode in a few threads; they live for one batch alone."""

        def one(row: int) -> Tensor | Unreadable:
            try:
                return read_image(self.root / self.files[row], self.channels, side)
            except Unreadable as error:
                return error

        if len(rows) <= 1:
            return [one(row) for row in rows]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="akssl-decode") as pool:
            return list(pool.map(one, rows))

    def _keep(self, row: int, image: Tensor) -> None:
        """Keep an image while there is room. Nothing is dropped: every image is as likely to come next."""
        if image.numel() <= self.room:
            self._small[row] = image
            self.room -= image.numel()


class FolderImages(ImageSet):
    """Some of a folder's files as images. A file that cannot be read is stood in for by the next that can.

    The next one is looked for among these images alone, first among those with the same label, so that a
    bank never shows a query and a probe is not told a wrong label.
    """

    def __init__(
        self, store: ImageFiles, rows: Sequence[int], side: int, labels: Tensor | None, classes: tuple[str, ...] | None
    ) -> None:
        self.store, self.rows, self.side = store, rows, side
        self.labels, self.classes, self.channels = labels, classes, store.channels
        self._instead: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order, reduced to about the size of the views.

        Raises:
            DataError: too many files cannot be read.
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
        raise DataError(f"data: none of {len(self)} files in {self.store.root} can be read: {_first(self.unreadable)}.")

    def _after(self, i: int) -> Iterator[int]:
        """The other positions from i on, around the end; those with the same label first."""
        if self.labels is not None:
            same = torch.nonzero(self.labels == self.labels[i]).flatten()
            yield from same[same > i].tolist()
            yield from same[same < i].tolist()
        yield from range(i + 1, len(self))
        yield from range(i)

    def id_of(self, i: int) -> str:
        """The path of the file, relative to the folder."""
        return self.store.id_of(self.rows[i])

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The files of the folder that could not be read so far, with the reasons."""
        return self.store.unreadable

    def subset(self, rows: Tensor) -> ImageSet:
        """Some of these images, with the same memory and the same record."""
        labels = None if self.labels is None else self.labels[rows]
        return FolderImages(self.store, [self.rows[i] for i in rows.tolist()], self.side, labels, self.classes)


class Folder(HoldOutSource):
    """A folder of images. First-level sub-folders are classes when all images lie in two or more of them.

    Raises:
        DataError: no such folder, no image in it, or none that can be read.
    """

    name = "folder"
    Config = FolderConfig

    def __init__(self, config: FolderConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        found = scan(config.path.expanduser())
        self._store = ImageFiles(config, found)
        self._natural = suitable_size(int(statistics.median_low(self._store.headers())))
        self._store.check()
        tops = class_folders(found.files)
        if tops is not None:
            self._labels, self._classes = encode_labels(tops, len(tops))
        self._note_files(found)
        self.note_split()

    def _note_files(self, found: Found) -> None:
        self.notes.append(f"{len(found.files)} image files in {self.config.path}")
        if self._classes:
            self.notes.append(f"{len(self._classes)} classes by sub-folder: {_few(self._classes)}")
        else:
            self.notes.append("no classes: that takes every image in one of two or more sub-folders")

    def make_images(self) -> ImageSet:
        """All files, reduced to about the size of the views."""
        side = stored_side(self.asked_size or self.natural_size)
        return FolderImages(self._store, range(len(self._store.files)), side, self._labels, self._classes)


def _few(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ..."


def _first(unreadable: Mapping[str, str]) -> str:
    """The first few names with their reasons, for a message."""
    return "; ".join(f"{name} ({reason})" for name, reason in sorted(unreadable.items())[:3])

"""A folder of image files: flat, nested or one sub-folder a class, of any formats, sizes and modes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ..config.schema import HARMLESS, FilePath, Schema
from .base import LARGEST, STORED_SIDE, HoldOutSource, ImageSet
from .decode import read_image, shorter_side
from .labels import encode_labels
from .scan import ScannedFolder, class_folders, printable, scan
from .stored import ImageStore, StoredImages


class FolderConfig(Schema):
    """Settings of the data source `folder`."""

    path: Annotated[FilePath, HARMLESS] = Field(description="folder of images: flat, nested or one sub-folder a class")
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: every image is turned gray")
    max_unreadable: Annotated[float, HARMLESS] = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the files that may be unreadable, rounded up to whole files (25 of 500); past it the "
        "run stops. A run also stops at once when none of 64 files spread over the folder can be read",
    )
    stored_side: int | None = Field(None, ge=8, le=LARGEST, description=STORED_SIDE)
    cache_gb: Annotated[float, HARMLESS] = Field(
        2.0, ge=0, description="memory for decoded images, so that later epochs decode nothing"
    )


class ImageFiles(ImageStore):
    """The files of a folder."""

    noun, expected = "files", "is an image"

    def __init__(self, config: FolderConfig, found: ScannedFolder) -> None:
        self.root, self.files, self.channels = config.path, found.files, config.channels
        super().__init__(
            len(found.files),
            str(self.root),
            max_unreadable=config.max_unreadable,
            cache_gb=config.cache_gb,
            broken=found.broken,
        )

    def id_of(self, row: int) -> str:
        """The path of a file relative to the folder, fit to be shown."""
        return printable(self.files[row])

    def cells(self, rows: Sequence[int]) -> list[Path]:
        """The paths of the files."""
        return [self.root / self.files[row] for row in rows]

    def header(self, cell: Path) -> tuple[int, int]:
        """(channels that were asked for, shorter side) of one file."""
        return self.channels, shorter_side(cell)

    def decode(self, cell: Path, side: int | None) -> Tensor:
        """One file as a small image, or the whole of it."""
        return read_image(cell, self.channels, side)


class Folder(HoldOutSource):
    """A folder of images. First-level sub-folders are classes when all images lie in two or more of them.

    Raises:
        DataError: no such folder, no image in it, or none that can be read.
    """

    name = "folder"
    Config = FolderConfig

    def __init__(self, config: FolderConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.asked_side = config.stored_side
        found = scan(config.path)
        self._store = ImageFiles(config, found)
        _, self.shorter = self._store.look()
        tops = class_folders(found.files)
        if tops is not None:
            self.labels, classes = encode_labels(tops, len(tops))
            self.classes = tuple(printable(name) for name in classes or ())
        self._note_files(found)
        self.note_split()

    def _note_files(self, found: ScannedFolder) -> None:
        self.notes.append(f"{len(found.files)} image files in {printable(str(self.config.path))}")
        if self.classes:
            self.notes.append(f"{len(self.classes)} classes by sub-folder: {_few(self.classes)}")
        else:
            self.notes.append("no classes: that takes every image in one of two or more sub-folders")

    def make_images(self) -> ImageSet:
        """All files, reduced to about the size of the views."""
        return StoredImages(self._store, range(len(self._store)), self.stored_side, self.labels, self.classes)


def _few(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ..."

"""A folder of image files: flat, nested or one sub-folder a class, of any formats, sizes and modes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config.schema import HARMLESS, FilePath, Schema
from ..errors import DataError
from .base import LARGEST, STORED_SIDE, HoldOutSource, ImageSet
from .convert import WHITE
from .decode import look_inside, read_image, shorter_side
from .labels import encode_labels
from .scan import SPLITS, ScannedFolder, class_folders, printable, scan
from .stored import ImageStore, StoredImages

LOOKED_INTO = 16  # files decoded to learn how many bits and pages they have


class FolderConfig(Schema):
    """Settings of the data source `folder`."""

    path: Annotated[FilePath, HARMLESS] = Field(description="folder of images: flat, nested or one sub-folder a class")
    test: FilePath | None = Field(
        None, description="folder of labelled test images, one sub-folder a class; then nothing of `path` is held out"
    )
    labels: Literal["folders", "none"] = Field(
        "folders", description="folders: the first-level sub-folders are classes where they can be; none: no classes"
    )
    hold_out: bool = Field(
        True, description="keep one labelled image in five out of training, to judge by; false: every image trains"
    )
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: every image is turned gray")
    white: int | None = Field(
        None,
        ge=1,
        le=WHITE,
        description="value of 16-bit gray shown as white; null: that of the bits which a sample uses, 4095 for 12",
    )
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
        self.white = config.white or WHITE
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

    def file_of(self, row: int) -> Path:
        """The path of a file."""
        return self.root / self.files[row]

    def cells(self, rows: Sequence[int]) -> list[Path]:
        """The paths of the files."""
        return [self.file_of(row) for row in rows]

    def header(self, cell: Path) -> tuple[int, int]:
        """(channels that were asked for, shorter side) of one file."""
        return self.channels, shorter_side(cell)

    def decode(self, cell: Path, side: int | None) -> Tensor:
        """One file as a small image, or the whole of it."""
        return read_image(cell, self.channels, side, self.white)

    def look_inside(self, white: int | None) -> list[str]:
        """Notes on what a sample of the files holds beside its first page and the usual eight bits.

        Where nobody said which value of 16-bit gray is white, it is that of the bits in use.
        """
        step = max(1, len(self.files) // LOOKED_INTO)
        inside = [look_inside(self.file_of(row)) for row in range(0, len(self.files), step)]
        largest = max((value for _, value in inside if value is not None), default=None)
        notes = []
        if largest is not None and white is None:
            bits = min((bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits), default=16)
            self.white = 2**bits - 1
            if bits < 16:
                notes.append(
                    f"16-bit images that use {bits} bits (up to {largest} in a sample): {self.white} is shown as "
                    f"white; data.white sets another value"
                )
        if several := sum(pages > 1 for pages, _ in inside):
            notes.append(f"{several} of {len(inside)} files looked into have several pages, of which the first is used")
        return notes


class Folder(HoldOutSource):
    """A folder of images. First-level sub-folders are classes when all images lie in two or more of them.

    Raises:
        DataError: no such folder, no image in it, or none that can be read.
    """

    name = "folder"
    Config = FolderConfig

    def __init__(self, config: FolderConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.stored_side = config.stored_side
        found = scan(config.path)
        self._store = ImageFiles(config, found)
        _, self.shorter = self._store.look()
        self.notes += self._store.look_inside(config.white)
        tops = class_folders(found.files) if config.labels == "folders" else None
        names: tuple[str, ...] = ()
        if tops is not None:
            self.labels, classes = encode_labels(tops, len(tops))
            names = classes or ()
            self.classes = tuple(printable(name) for name in names)
        self._tests = None if config.test is None else self._read_tests(config.test, names)
        self._note_files(found)
        self._ask_about(found.files)
        self.note_split()

    def _read_tests(self, root: Path, classes: Sequence[str]) -> tuple[ImageFiles, Tensor]:
        """The files of the test folder with their labels, numbered as those of the training images.

        Raises:
            DataError: there is no image, or one that lies in no class of the training images.
        """
        found = scan(root)
        tops = [file.partition("/")[0] if "/" in file else "" for file in found.files]
        if strange := sorted(set(tops) - set(classes)):
            known = f"one of {_few(classes)}" if classes else f"a class, and {self.config.path} has none by sub-folder"
            where = printable(strange[0]) or "no sub-folder"
            raise DataError(
                f"data.test: {root} holds images in {where!r}; expected each in {known}. "
                f"Name its sub-folders as those of the training images."
            )
        numbers = {name: number for number, name in enumerate(classes)}
        store = ImageFiles(self.config.model_copy(update={"path": root}), found)
        store.look()
        store.white = self._store.white
        return store, torch.tensor([numbers[top] for top in tops])

    @property
    def holds_out(self) -> bool:
        """Unless test images of their own were given, or the user wants every image to train."""
        return self._tests is None and self.config.hold_out

    def note_split(self) -> None:
        """Tell the user which images are the queries."""
        if self._tests is not None:
            self.notes.append(f"{len(self._tests[1])} images in {self.config.test} are the probes' queries")
        elif self.labels is not None and not self.config.hold_out:
            self.notes.append(
                "nothing is held out (data.hold_out=false): every image trains, and no accuracy is computed"
            )
        else:
            super().note_split()

    def _ask_about(self, files: Sequence[str]) -> None:
        """Warn of sub-folders that are probably something else than what they are taken for."""
        root, tops = self.config.path, sorted({file.partition("/")[0] for file in files if "/" in file})
        parts = [name for name in tops if name.lower() in SPLITS]
        if len(parts) > 1:
            train = min(parts, key=lambda name: "train" not in name.lower())
            test = max((name for name in parts if name != train), key=lambda name: "test" in name.lower())
            self.warnings.append(
                f"data: {root} holds {_few(parts)}, which look like the parts of one data set, and a run trains on all "
                f"of them. To train on one alone: --data {root / train}; and to be judged by another: --set "
                f"data.test={root / test}"
            )
        elif self.classes and sum(map(_is_no_class, self.classes)) * 2 > len(self.classes):
            self.warnings.append(
                f"data: the sub-folders {_few(self.classes)} look like dates or albums, and are taken for classes: "
                f"one image in five is held out to tell them apart. If they are none: --set data.labels=none"
            )

    def _note_files(self, found: ScannedFolder) -> None:
        self.notes.append(f"{len(found.files)} image files in {printable(str(self.config.path))}")
        if found.others:
            kinds = [f"{count} {suffix or 'without suffix'}" for suffix, count in found.others.most_common()]
            self.notes.append(f"{found.others.total()} files of other kinds are left out: {_few(kinds)}")
        if self.classes:
            self.notes.append(f"{len(self.classes)} classes by sub-folder: {_few(self.classes)}")
        else:
            self.notes.append("no classes: that takes every image in one of two or more sub-folders")

    def make_images(self) -> ImageSet:
        """All files, reduced to about the size of the views."""
        return StoredImages(self._store, range(len(self._store)), self.stored_side, self.labels, self.classes)

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """The training images and those of the test folder, or a part that is held out."""
        if self._tests is None:
            return super().probe()
        store, labels = self._tests
        return self.all(), StoredImages(store, range(len(store)), self.stored_side, labels, self.classes)


def one_file(path: Path) -> ImageSet:
    """One image file as a set, under its name.

    Raises:
        DataError: it is no image that can be read.
    """
    store = ImageFiles(FolderConfig(path=path.parent, max_unreadable=0), ScannedFolder([path.name]))
    store.look()
    store.look_inside(None)
    return StoredImages(store, range(1), LARGEST)


def _is_no_class(name: str) -> bool:
    """Whether a folder is named like a date, a camera's folder or an album."""
    return (
        re.fullmatch(r"(19|20)\d\d([-_. ]?[01]\d([-_. ]?[0-3]\d)?)?.*|\d{3}[A-Z_]{5}|album.*|photos?.*", name, re.I)
        is not None
    )


def _few(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ..."

"""Image files as a source: in a folder, flat, nested or one sub-folder a class; in archives; or named by a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from ..config.schema import HARMLESS, FilePath
from ..errors import DataError
from .base import LARGEST, STORED_SIDE, HoldOutSource, ImageSet
from .convert import WHITE, Limits, measured_limits
from .decode import Inside, Unreadable, decode_image, image_header, look_inside
from .decoders import FileDecoder, decode_file, file_header, look_into
from .files import SPLITS, Files, FolderFiles, Label, Part, few, top_folders
from .labels import encode_labels
from .places import files_at
from .scan import MOVED, printable
from .stored import ImageStore, StoredImages
from .tables import Reading, matched

LOOKED_INTO = 16  # files decoded to learn how many bits and pages they have


class FolderConfig(Reading):
    """Settings of the data source `folder`."""

    path: Annotated[FilePath, HARMLESS] = Field(
        description="folder of images: flat, nested or one sub-folder a class; a table of image files and their labels "
        "(.csv, .tsv, .txt, .parquet); a .zip, a .tar, a folder of tars or a pattern of some ('shards/*.tar'); "
        "a .npy or .npz of many images",
    )
    test: FilePath | None = Field(
        None,
        description="labelled test images: folder with one sub-folder a class, or whatever `path` may be; then nothing "
        "of `path` is held out",
    )
    labels: Literal["folders", "none"] | FilePath = Field(
        "folders",
        description="folders: the labels in a table or beside the images of tar shards, else the first-level "
        "sub-folders where they can be classes; none: no classes; or the path of a table of the images' labels",
    )
    hold_out: bool = Field(
        True, description="keep one labelled image in five out of training, to judge by; false: every image trains"
    )
    channels: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto",
        description="3: colour; 1: every image is turned gray; auto: as many as files of a decoder have, 3 for others",
    )
    black: FiniteFloat | None = Field(
        None,
        description="as `white`, the value shown as black; null: 0, or the smallest of a sample that has some below",
    )
    white: FiniteFloat | None = Field(
        None,
        description="value of images with more than 8 bits that is shown as white; null: that of the bits which a "
        "sample uses, 4095 for 12, and the largest of a sample where there are fractions or values below 0",
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

    @model_validator(mode="after")
    def _possible(self) -> FolderConfig:
        if self.decoder is None and self.channels not in (1, 3, "auto"):
            cure = "for files of other channels, set data.decoder too (npy, tiff, ...)"
            raise ValueError(f"channels should be 1, 3 or auto, got {self.channels}; {cure}")
        if self.black is not None and self.white is not None and self.black >= self.white:
            raise ValueError(f"black should be less than white, got {self.black:g} and {self.white:g}")
        return self


class ImageFiles(ImageStore):
    """Image files, decoded when they are asked for."""

    noun, expected = "files", "is an image"

    def __init__(self, config: FolderConfig, files: Files) -> None:
        self.files, self.config = files, config
        self.channels = 3 if config.channels == "auto" else config.channels
        self.limits: Limits | None = None if config.white is None else (config.black or 0, config.white)
        self.decided: dict[str, Any] = {}  # settings that were found out
        self.reader: FileDecoder | None = None if config.decoder is None else config.decoder.build()
        self.held: dict[int, int] = {}  # channels by row, of those that were looked at
        super().__init__(
            len(files.names),
            files.place,
            max_unreadable=config.max_unreadable,
            cache_gb=config.cache_gb,
            broken=files.broken,
        )

    def id_of(self, row: int) -> str:
        """The name of a file, fit to be shown: its path relative to the folder."""
        return printable(self.files.names[row])

    def file_of(self, row: int) -> Path | None:
        """The path of a file, if it lies alone."""
        return self.files.path(row)

    def cells(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows themselves."""
        return rows

    def header(self, cell: int) -> tuple[int, int]:
        """(channels that were asked for, shorter side) of one file."""
        with self.files.open(cell) as file:
            if self.reader is None:
                return self.channels, image_header(file)[1]
            _, self.held[cell], side = file_header(self.reader, file)
            return self.held[cell], side

    def look(self, count: int | None = None) -> tuple[int, int]:
        """As every store does; files of a decoder have as many channels as the first, if nobody gave a number.

        Raises:
            DataError: they differ in it.
        """
        most, side = super().look(count)
        if self.reader is None or self.config.channels != "auto":
            return most, side
        rows = {channels: row for row, channels in reversed(self.held.items())}
        if len(rows) > 1:
            found = ", ".join(f"{channels} ('{self.id_of(row)}')" for channels, row in sorted(rows.items()))
            cure = "Keep those of one number in a folder of their own, or set data.channels: others count as unreadable"
            raise DataError(f"data: files in {self.place} hold different numbers of channels: {found}. {cure}.")
        self.channels = self.decided["channels"] = most
        return most, side

    def decode(self, cell: int, side: int | None) -> Tensor:
        """One file as a small image, or the whole of it."""
        with self.files.open(cell) as file:
            if self.reader is None:
                return decode_image(file, self.channels, side, self.limits)
            return decode_file(self.reader, file, self.channels, side, self.limits or (0, WHITE))

    def look_inside(self) -> list[str]:
        """Notes on what a sample of the files holds beside its first page and the usual eight bits.

        Where nobody said which values are black and white, they are those in use.
        """
        step = max(1, len(self) // LOOKED_INTO)
        inside = [self._inside(row) for row in range(0, len(self), step)]
        several, cut = sum(one.pages > 1 for one in inside), sum(one.cut for one in inside)
        notes, looked_into = [], f"of {len(inside)} files looked into"
        if spans := [one.span for one in inside if one.span is not None]:
            given, (found, how) = (self.config.black, self.config.white), measured_limits(spans)
            black, white = (one if own is None else own for own, one in zip(given, found, strict=True))
            if black >= white:
                raise DataError(f"data.black: {black:g} is not below the white of these images, {white:g}. Set both.")
            self.limits = black, white
            self.decided |= {"black": black, "white": white}
            notes += [f"{how}; data.black and data.white set others"] if how and None in given else []
        if several:
            notes.append(f"{several} {looked_into} have several pages, of which the first is used")
        if cut:
            reads = "data.decoder=tiff reads all of a TIFF"
            notes.append(f"{cut} {looked_into} have 16 bits a colour, of which 8 are used; {reads}")
        return notes

    def _inside(self, row: int) -> Inside:
        try:
            with self.files.open(row) as file:
                return look_inside(file) if self.reader is None else look_into(self.reader, file)
        except Unreadable:
            return Inside()  # whoever decodes it tells why


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """Errors of files that another setting than `path` names begin with that one."""
    try:
        yield
    except DataError as error:
        text = str(error).removeprefix("data: ").replace(f" {MOVED}", "")
        raise DataError(f"data.{setting}: {text.removeprefix(f'data.{setting}: ')}") from error


class Folder(HoldOutSource):
    """Image files in a folder, in archives, or named by a table.

    First-level sub-folders are classes when all images lie in two or more of them. Where they are train and val or
    test, these are the training images and the test images.

    Args:
        config: its settings.
        image_size: the side of view that a run asks for.
        files: the images, in place of those that the settings name.

    Raises:
        DataError: no such folder, no image in it, none that can be read, or test images of classes that do not train.
    """

    name = "folder"
    Config = FolderConfig
    _tests: tuple[ImageFiles, list[int], Tensor] | None = None  # their rows with a label, and the labels

    def __init__(self, config: FolderConfig, image_size: int | None = None, files: Files | None = None) -> None:
        super().__init__(config, image_size)
        self.stored_side = config.stored_side
        files, others = official(files or files_at(config.path, config))
        self.left_out = few([printable(part.place) for part in others])
        self._store = ImageFiles(config, files)
        _, self.shorter = self._store.look()
        self.notes += self._store.look_inside()
        self.decided, self.limits = self._store.decided, self._store.limits
        self.notes += [f"{len(files.names)} image files in {printable(files.place)}", *files.notes]
        given, notes = self._labels_of(files)
        self.notes += notes
        if given and isinstance(config.labels, Path) and all(label is None for label in given):
            raise DataError(f"data.labels: {notes[0]}. Its rows name them by path, name, or name without suffix.")
        if given is not None:
            self.labels, classes = encode_labels(given, len(files.names))
            self.classes = classes and tuple(map(printable, classes))
        if self.classes:
            self.notes.append(f"{len(self.classes)} classes: {few(self.classes)}")
        elif given is None:
            self.notes.append("no classes: that takes every image in one of two or more sub-folders, or labels")
        known = [] if self.labels is None else zip(given or (), self.labels.tolist(), strict=True)
        numbers = {str(label): number for label, number in known if label is not None}
        if config.test is not None:
            with _named("test"):
                tests = files_at(config.test, config)
            self._tests = self._read_tests(tests, numbers)
        elif fit := [part for part in others if (own := self._classes_of(part)) and own <= numbers.keys()]:
            self._tests = self._read_tests(fit[0], numbers)
        self._ask_about()
        self.note_split()

    def _labels_of(self, files: Files) -> tuple[Sequence[Label] | None, list[str]]:
        """Those that stand with the files or in the table that was named, and notes."""
        labels = self.config.labels
        if isinstance(labels, Path):
            with _named("labels"):
                return matched(labels, self.config, files)
        return (None if labels == "none" else files.labels), []

    def _classes_of(self, tests: Files) -> set[str]:
        """Those of some test images; the first-level folder is one, be it the only one."""
        return {str(label) for label in self._test_labels(tests) if label is not None}

    def _test_labels(self, files: Files) -> Sequence[Label]:
        return self._labels_of(files)[0] or top_folders(files.names)

    def _read_tests(self, files: Files, numbers: Mapping[str, int]) -> tuple[ImageFiles, list[int], Tensor]:
        """The test files, the rows of those with a label, and these, numbered as those of the training images.

        Raises:
            DataError: there is no image, or one that lies in no class of the training images.
        """
        given = self._test_labels(files)
        if strange := sorted(self._classes_of(files) - numbers.keys()):
            known = f"one of {few(sorted(numbers))}" if numbers else f"a class, and {self._store.place} has no classes"
            where = printable(strange[0]) or "no sub-folder"
            raise DataError(
                f"data.test: {files.place} holds images in {where!r}; expected each in {known}. "
                f"Name its classes as those of the training images."
            )
        rows = [row for row, label in enumerate(given) if label is not None]
        store = ImageFiles(self.config, files)
        store.look()
        store.limits = self._store.limits
        return store, rows, torch.tensor([numbers[str(given[row])] for row in rows])

    @property
    def holds_out(self) -> bool:
        """Unless test images of their own were given, or the user wants every image to train."""
        return self._tests is None and self.config.hold_out

    def note_split(self) -> None:
        """Tell the user which images are the queries."""
        if self._tests is not None:
            self.notes.append(f"{len(self._tests[1])} images in {self._tests[0].place} are the probes' queries")
        elif self.labels is not None and not self.config.hold_out:
            self.notes.append(
                "nothing is held out (data.hold_out=false): every image trains, and no accuracy is computed"
            )
        else:
            super().note_split()

    def _ask_about(self) -> None:
        """Warn of sub-folders that are probably something else than what they are taken for."""
        if self.classes and sum(map(_is_no_class, self.classes)) * 2 > len(self.classes):
            self.warnings.append(
                f"data: the sub-folders {few(self.classes)} look like dates, albums or parts of a data set, and are "
                f"taken for classes: one image in five is held out to tell them apart. If they are none: --set "
                f"data.labels=none"
            )

    def make_images(self) -> ImageSet:
        """All files, reduced to about the size of the views."""
        return StoredImages(self._store, range(len(self._store)), self.stored_side, self.labels, self.classes)

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """The labelled training images and those of the test set, or a part that is held out."""
        if self._tests is None or self.labels is None:
            return super().probe()
        store, rows, labels = self._tests
        bank = self.all().subset(torch.nonzero(self.labels >= 0).flatten()) if (self.labels < 0).any() else self.all()
        return bank, StoredImages(store, rows, self.stored_side, labels, self.classes)


def official(files: Files) -> tuple[Files, list[Files]]:
    """The images that train where all lie in train and other parts of a data set, and the other parts; test first."""
    tops = {name.lower(): name for name in set(top_folders(files.names))}
    if "train" not in tops or len(tops) < 2 or not tops.keys() <= SPLITS:
        return files, []
    train, *others = (Part(files, tops[name]) for name in ("train", *sorted(tops.keys() - {"train"})))
    names = few(sorted(tops.values()))
    train.notes += [*files.notes, f"{files.place} holds {names}: runs train on {tops['train']} alone"]
    return train, [*others]


def one_file(path: Path, config: FolderConfig) -> ImageSet:
    """One image file as a set, under its name; of the settings, those count that say how it is read.

    Raises:
        DataError: it is no image that can be read.
    """
    config = config.model_copy(update={"max_unreadable": 0.0})
    store = ImageFiles(config, FolderFiles(path.parent, [path.name]))
    store.look()
    store.look_inside()
    return StoredImages(store, range(1), LARGEST)


def _is_no_class(name: str) -> bool:
    """Whether a folder is named like a date, a camera's folder, an album or a part of a data set."""
    return (
        name.lower() in SPLITS
        or re.fullmatch(r"(19|20)\d\d([-_. ]?[01]\d([-_. ]?[0-3]\d)?)?.*|\d{3}[A-Z_]{5}|album.*|photos?.*", name, re.I)
        is not None
    )

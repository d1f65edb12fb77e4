"""Images that were decoded once and written to one file or several, read as the source they come from would be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..config.schema import HARMLESS, FilePath, Schema
from .base import DatasetSource, ImageSet
from .convert import Cut, Square
from .scan import printable
from .shards import PreparedFiles
from .stored import ImageStore, StoredImages


class PreparedConfig(Schema):
    """Settings of the data source `prepared`."""

    path: Annotated[FilePath, HARMLESS] = Field(description="file or folder of shards that `akssl data prepare` wrote")


class PreparedImages(ImageStore):
    """The rows of a prepared file, or of several.

    They are fetched by one background thread, as those of a folder are, and not directly: the first look at a page
    waits for the disk, and copying a batch of photos takes as long as a small step. Both leave the interpreter free.
    """

    threads = 0  # nothing is decoded

    def __init__(self, file: PreparedFiles) -> None:
        self.file, self.channels = file, file.record.channels
        super().__init__(
            len(file),
            str(file.path),
            max_unreadable=1.0,  # whoever made the file has set the limit
            cache_gb=0.0,  # the system keeps the pages of the file
            broken=file.unread.others,
        )
        for row, reason in file.unread.rows.items():
            self.mark(row, reason)

    def id_of(self, row: int) -> str:
        """The name that the image had in the source."""
        return self.file.ids[row]

    def cells(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows themselves."""
        return rows

    def header(self, cell: int) -> tuple[int, int]:
        """(channels, shorter side) of one image."""
        return self.channels, int(self.file.sizes[cell].min())

    def read(self, rows: Sequence[int], side: int) -> dict[int, Tensor]:
        """The images at these rows; those that could not be read are left out.

        Raises:
            DataError: the file was changed since it was opened.
        """
        self.file.check(rows)
        return super().read(rows, side)

    def squares(self, rows: Sequence[int], side: int, square: Cut) -> dict[int, Tensor]:
        """As a backbone sees them: from the file where the images were reduced and it holds squares of this size.

        Raises:
            DataError: the file was changed since it was opened.
        """
        self.file.check(rows)
        made: dict[int, Tensor] = {}
        for row in rows:
            file, own = self.file.at(row)
            if isinstance(square, Square) and (one := file.square(own, square)) is not None:
                made[row] = one
        return made | super().squares([row for row in rows if row not in made], side, square)

    def decode(self, cell: int, side: int | None) -> Tensor:
        """One image as it lies in the file, larger than `side` or not."""
        file, row = self.file.at(cell)
        return file.image(row)


class Prepared(DatasetSource):
    """What `akssl data prepare` wrote: images, labels and the probes' split as their source had them.

    Raises:
        DataError: no such file or folder, or not one that is whole.
    """

    name = "prepared"
    Config = PreparedConfig

    def __init__(self, config: PreparedConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self._file = file = PreparedFiles.open(config.path)
        record = file.record
        self.mean, self.std = record.mean, record.std
        self.notes.append(f"{len(file)} images in {printable(str(config.path))}, prepared from {record.source}")
        if record.classes:
            self.notes.append(f"{len(record.classes)} classes")
        if "queries" in file.parts:
            self.notes.append(f"{len(file.parts['queries'])} labelled images are the queries of the probes")
        else:
            self.notes.append("no labels to hold some out: every image trains, and no accuracy is computed")

    @property
    def natural_size(self) -> int:
        """The side of view that suited the source, or that suits the reduced images."""
        return self._file.record.natural_size

    @property
    def inexact(self) -> str:
        """Why features of these images are not those of the originals, and what to do about it; "": they are."""
        size = self.asked_size or self.natural_size
        if not self._file.reduced.any() or size in self._file.record.views:
            return ""
        return (
            f"images that were reduced are judged at {size} px by what is left of them, so that their features are "
            f"not quite those of the originals; add --image-size {size} to 'akssl data prepare'"
        )

    def _note_side(self) -> None:
        """Say where the images are not those that the source would show at this size of view."""
        have, wanted, size = self._file.record.side, self.stored_side, self.asked_size or self.natural_size
        again = f"'akssl data prepare SRC --size {wanted}' makes a file for them"
        if not self._file.reduced.any():
            return
        self.notes += [self.inexact] if self.inexact else []
        if have < wanted:
            self.notes.append(
                f"the images were reduced to a shorter side of {have} px, less than the {wanted} px that views of "
                f"{size} px would be cut from: details are lost; {again}"
            )
        elif have > wanted:
            self.notes.append(
                f"the images have a shorter side of up to {have} px, and views of {size} px need {wanted} px: "
                f"{again}, which is smaller and trains faster"
            )

    @cached_property
    def _rows(self) -> StoredImages:
        """All rows; nothing of them is resized."""
        self._note_side()
        file = self._file
        return StoredImages(PreparedImages(file), range(len(file)), file.record.side, file.labels, file.record.classes)

    def _part(self, name: str) -> ImageSet:
        """The rows of one part of the source; one without any label has no labels."""
        rows = self._file.parts.get(name)
        if rows is None:
            return self._rows
        images = self._rows.subset(rows)
        if images.labels is not None and not _any_known(images.labels) and _any_known(self._rows.labels):
            images.labels = None
        return images

    def all(self) -> ImageSet:
        """Every image of the source, held out or not."""
        return self._part("all")

    def train(self) -> ImageSet:
        """The images that the source trains on."""
        return self._part("train")

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """The bank and the queries of the source."""
        return (self._part("bank"), self._part("queries")) if "queries" in self._file.parts else None


def _any_known(labels: Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).any())

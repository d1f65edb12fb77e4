"""A data set with its parts, columns and labels as a source: what trains, and what the probes see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from akssl_core import DataError, HoldOutSource, ImageSet, Schema, StoredImages, absolute_path

from .columns import image_column, label_column
from .images import Rows
from .labels import read_labels
from .opening import folder_of, open_splits, pick
from .words import listed, one_line

TESTS = ("test", "validation")  # taken for the probes' queries, the first that has labels


def as_text(path: Any) -> Any:
    """A local path as one that holds from any folder; a name on the hub as it is."""
    if not isinstance(path, str | Path) or not path:
        return path
    is_local = isinstance(path, Path) or os.path.exists(os.path.expanduser(path))
    return str(absolute_path(path)) if is_local else path


class HfConfig(Schema):
    """Settings of the data source `hf`."""

    path: Annotated[str, BeforeValidator(as_text), "resume: harmless"] = Field(
        min_length=1,
        description="a .parquet or .arrow file, a folder of them or of images, a folder written by save_to_disk, or a "
        "name on the hub, which is asked only for what is not a local path",
    )
    split: str = Field("train", description="the part to train on")
    test_split: str | None = Field(
        None,
        description="the part whose labelled images are the probes' queries; null: test or validation, the first that "
        "has labels; where neither has, one in five labelled images is held out",
    )
    image: str | None = Field(
        None, description="column with the images; null: the only one of the type Image, or the obvious one"
    )
    label: str | None = Field(None, description="column with the labels; null: the only ClassLabel, or label")
    config: str | None = Field(None, description="configuration of the data set, where it has several")
    max_unreadable: Annotated[float, "resume: harmless"] = Field(
        0.05, ge=0, le=1, description="share of the images that may be unreadable; past it the run stops"
    )
    stored_side: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="shorter side to which larger images are reduced before crops; null: as `folder`",
    )
    cache_gb: Annotated[float, "resume: harmless"] = Field(
        2.0, ge=0, description="memory for decoded images, so that later epochs decode nothing"
    )


class HfDatasets(HoldOutSource):
    """Images from Parquet, Arrow, a saved data set, an image folder or the Hugging Face hub.

    The rows of the test split follow those of the training split, so that both share one memory.

    Raises:
        DataError: nothing is there, it holds no images, or a setting names no part or column of it.
    """

    name = "hf"
    Config = HfConfig

    def __init__(self, config: HfConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.stored_side = config.stored_side
        splits = open_splits(config.path, config.config)
        main = pick(splits, config.split, config.path, "split")
        self._image, self._label = image_column(main, config.image), label_column(main, config.label, self.notes)
        self._test = self._test_split(splits)
        parts = [main] if self._test is None else [main, splits[self._test]]
        self._count = len(main)
        self._test_labels: Tensor | None = None  # where they are, they are the queries and nothing is held out
        if self._label is not None:
            self._take_labels(*read_labels(parts, self._label))
        self._rows = self._make_rows(parts)
        self.shorter = self._rows.shorter
        self._note_columns()
        self.note_split()

    def _take_labels(self, labels: Tensor, classes: tuple[str, ...] | None) -> None:
        """Keep the labels of both splits, if training images have some."""
        if _any_known(labels[: self._count]):
            self.labels, self.classes = labels[: self._count], classes
            self._test_labels = None if self._test is None else labels[self._count :]

    def _make_rows(self, parts: list[Any]) -> Rows:
        import datasets  # type: ignore[import-untyped]

        config = self.config
        try:
            table = datasets.concatenate_datasets([part.select_columns([self._image]) for part in parts])
        except ValueError as error:  # the parts hold their images in different ways
            raise DataError(
                f"data: the splits '{config.split}' and '{self._test}' of '{config.path}' cannot be read together: "
                f"{one_line(error)}. Name another with data.test_split."
            ) from error
        return Rows(table, self._count, self._test, folder_of(config.path), config)

    def _test_split(self, splits: Mapping[str, Any]) -> str | None:
        """The part whose labelled images are the queries, or None where some must be held out.

        Raises:
            DataError: the one that was asked for does not exist, trains, or has no labels.
        """
        asked, path = self.config.test_split, self.config.path
        if asked is None:
            if self._label is None:
                return None
            others = [name for name in TESTS if name in splits and name != self.config.split]
            labelled = [name for name in others if self._has_labels(splits[name])]
            if others and others[:1] != labelled[:1]:
                self.notes.append(f"the split '{others[0]}' has no labels, so it serves no probe")
            return labelled[0] if labelled else None
        test = pick(splits, asked, path, "test_split")
        if asked == self.config.split:
            raise DataError(
                f"data.test_split: '{asked}' is the split to train on. Name another of {listed(splits)}, or leave it "
                f"out: then one in five labelled images is held out where no other split has labels."
            )
        if not self._has_labels(test):
            columns = listed(test.column_names)
            raise DataError(
                f"data.test_split: the split '{asked}' of '{path}' has no labelled images. Columns: {columns}. Name "
                f"the column with the labels with data.label, or leave test_split out."
            )
        return str(asked)

    def _has_labels(self, part: Any) -> bool:
        """Whether a part has the image column and a label for some of its images."""
        if self._label is None or len(part) == 0 or not {self._image, self._label} <= set(part.column_names):
            return False
        return _any_known(read_labels([part], self._label)[0])

    def _note_columns(self) -> None:
        """Tell the user what was found."""
        labels = "" if self._label is None else f", labels in column '{self._label}'"
        self.notes.append(f"{self._count} images of split '{self.config.split}' in column '{self._image}'{labels}")
        if self.classes:
            self.notes.append(f"{len(self.classes)} classes: {listed(self.classes, 5)}")

    @property
    def holds_out(self) -> bool:
        """Unless a split of the data set tests."""
        return self._test_labels is None

    def note_split(self) -> None:
        """Tell the user which images are the queries."""
        if self._test_labels is None:
            return super().note_split()
        queries = int((self._test_labels >= 0).sum())
        self.notes.append(f"{queries} labelled images of split '{self._test}' are the probes' queries")

    def make_images(self) -> ImageSet:
        """Every image of the split to train on, reduced to about the size of the views."""
        return StoredImages(self._rows, range(self._count), self.stored_side, self.labels, self.classes)

    def train(self) -> ImageSet:
        """The images of the split that are not held out."""
        return super().train() if self._test_labels is None else self.all()

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """The labelled training images, and the labelled images of the test split or those held out."""
        if self._test_labels is None or self.labels is None:
            return super().probe()
        rows = range(self._count, len(self._rows))
        tests = StoredImages(self._rows, rows, self.stored_side, self._test_labels, self.classes)
        return _labelled(self.all(), self.labels), _labelled(tests, self._test_labels)


def _labelled(images: ImageSet, labels: Tensor) -> ImageSet:
    return images.subset(torch.nonzero(labels >= 0).flatten())


def _any_known(labels: Tensor) -> bool:
    return bool((labels >= 0).any())

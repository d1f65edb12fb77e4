"""A data set with its parts, columns and labels as a source: what trains, and what the probes see."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from akssl_core import DataError, DatasetSource, ImageSet, Schema

from .columns import image_column, label_column
from .images import RowImages, Rows
from .labels import hold_out, read_labels
from .opening import folder_of, open_splits, pick
from .words import listed, one_line

TESTS = ("test", "validation")  # taken for the probes' queries, the first that has labels


def _as_text(path: Any) -> Any:
    return str(path) if isinstance(path, Path) else path


class HfConfig(Schema):
    """Settings of the data source `hf`."""

    path: Annotated[str, BeforeValidator(_as_text)] = Field(
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
    max_unreadable: float = Field(
        0.05, ge=0, le=1, description="share of the images that may be unreadable; past it the run stops"
    )
    cache_gb: float = Field(2.0, ge=0, description="memory for decoded images, so that later epochs decode nothing")


class HfDatasets(DatasetSource):
    """Images from Parquet, Arrow, a saved data set, an image folder or the Hugging Face hub.

    The rows of the test split follow those of the training split, so that both share one memory.

    Raises:
        DataError: nothing is there, it holds no images, or a setting names no part or column of it.
    """

    name = "hf"
    Config = HfConfig

    def __init__(self, config: HfConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        splits = open_splits(config.path, config.config)
        main = pick(splits, config.split, config.path, "split")
        self._image, self._label = image_column(main, config.image), label_column(main, config.label, self.notes)
        self._test = self._test_split(splits)
        parts = [main] if self._test is None else [main, splits[self._test]]
        self._count = len(main)
        self._labels: Tensor | None = None
        self._classes: tuple[str, ...] | None = None
        if self._label is not None:
            labels, classes = read_labels(parts, self._label)
            if _any_known(labels[: self._count]):
                self._labels, self._classes = labels, classes
        self._rows = self._make_rows(parts)
        self._note()

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

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor] | None:
        """Rows (bank, queries) of the probes, or None where there is nothing to tell apart."""
        if self._labels is None:
            return None
        if self._test is None:
            return hold_out(self._labels)
        known = torch.nonzero(self._labels >= 0).flatten()
        return known[known < self._count], known[known >= self._count]

    def _note(self) -> None:
        """Tell the user what was found and what is held out."""
        count, name = self._count, self.config.split
        labels = "" if self._label is None else f", labels in column '{self._label}'"
        self.notes.append(f"{count} images of split '{name}' in column '{self._image}'{labels}")
        if self._classes:
            self.notes.append(f"{len(self._classes)} classes: {listed(self._classes, 5)}")
        if self._labels is None:
            self.notes.append("no labels: every image trains, and no accuracy is computed")
        elif self._split is None:
            self.notes.append("too few labels to hold some out: every image trains, and no accuracy is computed")
        elif self._test is None:
            queries, known = len(self._split[1]), int((self._labels >= 0).sum())
            self.notes.append(
                f"{queries} of {known} labelled images (one in five of each class) are held out as queries for the "
                f"probes; training does not see them"
            )
        else:
            self.notes.append(f"{len(self._split[1])} labelled images of split '{self._test}' are the probes' queries")

    @property
    def natural_size(self) -> int:
        """By the median shorter side of a sample of the images."""
        side = min(self._rows.shorter, 224)
        return max(8, side - side % (32 if side >= 64 else 4))

    @cached_property
    def _images(self) -> ImageSet:
        """All rows, reduced to about the size of the views: 8/7 of it, as 256 is for 224."""
        side = round((self.asked_size or self.natural_size) * 8 / 7)
        return RowImages(self._rows, torch.arange(len(self._rows)), side, self._labels, self._classes)

    def all(self) -> ImageSet:
        """Every image of the split, held out or not."""
        return self._images.subset(torch.arange(self._count))

    def train(self) -> ImageSet:
        """The images of the split that are not held out."""
        kept = torch.ones(self._count, dtype=torch.bool)
        if self._split is not None and self._test is None:
            kept[self._split[1]] = False
        return self._images.subset(torch.nonzero(kept).flatten())

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """The labelled training images, and the labelled or held-out queries."""
        if self._split is None:
            return None
        bank, queries = self._split
        return self._images.subset(bank), self._images.subset(queries)


def _any_known(labels: Tensor) -> bool:
    return bool((labels >= 0).any())

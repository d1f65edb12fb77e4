"""The words of data: pixels, views, batches, image sets and their sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from ..config.schema import Component
from ..draws import Draws
from .convert import Cut, Limits, Square, stored_side
from .labels import hold_out, without
from .pixels import Pixels as Pixels
from .pixels import sent as sent

LARGEST = 2048  # side of an image that a file may ask for, in pixels: somebody makes memory for it

STORED_SIDE = (
    "shorter side in pixels to which larger images are reduced before crops are taken of them; null: 12/7 of the "
    "views, 384 for 224, at which crops are enlarged no more often than in published runs. More shows finer detail in "
    "small crops, and takes memory and time"
)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How an image reaches a backbone. The bounds are those of files that come from anywhere."""

    size: Annotated[int, Field(ge=1, le=LARGEST)]
    """The side in pixels."""
    channels: Annotated[int, Field(ge=1, le=1024)]
    """3 for colour, 1 for gray."""
    mean: tuple[float, ...]
    """Subtracted from the values of each channel, which lie in [0, 1]."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """The divisor of each channel after that."""

    def pictures(self, images: Tensor) -> Tensor:
        """Normalised images (..., C, H, W) as they were before: values in [0, 1]."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)


class Views(dict[str, list[Tensor]]):
    """The augmented views of one batch by group: `views["global"]` is a list of (B, C, H, W)."""

    def all(self) -> list[Tensor]:
        """Every view, in the declared order of the groups."""
        return [view for group in self.values() for view in group]


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as a method sees it."""

    views: Views
    """The augmented images, by group."""
    index: Tensor
    """(B,) int64, the position of each image in the data set."""
    label: Tensor | None = None
    """(B,) int64, -1 where an image has none. A method that reads it says so: `uses_labels = True`."""
    seed: int = 0
    """Of the run; what is drawn follows from it."""
    step: int = 0
    """Optimizer steps done before this one."""
    host_index: Tensor | None = None
    """`index` in the host's memory, where `index` is on a GPU."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def host(self) -> Batch:
        """The batch without its images, in the host's memory, for masks and whatever else decides shapes.

        `batch.host.draws` are the numbers of `batch.draws`, and no GPU is asked for them.
        """
        index = self.index if self.host_index is None else self.host_index
        return replace(self, views=Views(), index=index, label=None)

    def sent(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device of the batch, by a copy that the host does not wait for."""
        return sent(tensor, self.index.device)

    @property
    def draws(self) -> Draws:
        """Random numbers of this step, a row an image: `batch.draws.uniform("mask", 49)` is (B, 49).

        They follow from seed, step, image and name, so they are the same in any process, micro-batch and resumed run.
        """
        return Draws.of_step(self.seed, self.step, self.index)

    @property
    def shared_draws(self) -> Draws:
        """Random numbers of this step in one row, the same for all images and processes."""
        return Draws.of_step(self.seed, self.step, self.index.new_full((1,), -1))

    def part(self, start: int, end: int) -> Batch:
        """The images from `start` up to `end` alone."""
        views = Views({name: [view[start:end] for view in group] for name, group in self.views.items()})
        label = None if self.label is None else self.label[start:end]
        host_index = None if self.host_index is None else self.host_index[start:end]
        return replace(self, views=views, index=self.index[start:end], label=label, host_index=host_index)


class Decoder(Protocol):
    """Decodes images one by one, as `ImageStore` does."""

    threads: int
    """In so many threads."""


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """Images that can be fetched many at once. Items are (image (C, h, w), label or -1): uint8, or float32 in 0..255.

    `labels` is (N,) int64 with -1 for an image without one, or None where no image has any; `classes` are
    their names where they have names. `loading` says what is worth doing while a batch is fetched: "direct",
    nothing, the pixels are in memory; "thread", one background thread; "process", worker processes if the
    user asks for some, for it runs code of the user's own.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    channels: int = 3
    """Of every image: 3 for colour, 1 for gray."""
    loading: Literal["direct", "thread", "process"] = "thread"
    decoder: Decoder | None = None
    """What decodes the images one by one, in threads, where something does."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order, to make views of: they may have been reduced."""

    def squares(self, index: Sequence[int], square: Cut) -> Pixels:
        """The same as a backbone sees them. A set whose `fetch` reduces its images starts from the originals here."""
        return self.fetch(index).squares(square)

    def masks(self, index: Sequence[int], square: Square) -> Tensor | None:
        """The class of each pixel of the images that `squares` gives, (n, size, size) uint8, 255 where it has none.

        None: classes of pixels are not known.
        """
        return None

    def known_labels(self) -> tuple[int, int]:
        """How many images have a label, and one more than the highest label; zeros where none has one."""
        labels = () if self.labels is None else self.labels[self.labels >= 0].tolist()
        return len(labels), max(labels, default=-1) + 1

    def id_of(self, i: int) -> str:
        """The name of image i for people: a file's path where there is one, else its number."""
        return str(i)

    def file_of(self, i: int) -> Path | None:
        """The file that image i lies in alone, where there is one."""
        return None

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The images that could not be read so far: id -> reason. It grows while images are fetched."""
        return {}

    def subset(self, rows: Tensor) -> ImageSet:
        """The images at `rows` (n,) alone, in that order."""
        return Subset(self, rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        label = -1 if self.labels is None else int(self.labels[i])
        return self.fetch([i]).image(0), label


class Subset(ImageSet):
    """Some images of another set; nothing is copied."""

    def __init__(self, whole: ImageSet, rows: Tensor) -> None:
        self.whole, self.rows = whole, rows
        self.labels = None if whole.labels is None else whole.labels[rows]
        self.classes, self.channels, self.loading = whole.classes, whole.channels, whole.loading
        self.decoder = whole.decoder

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions of the subset, in this order."""
        return self._renamed(index, self.whole.fetch)

    def squares(self, index: Sequence[int], square: Cut) -> Pixels:
        """The same as a backbone sees them."""
        return self._renamed(index, lambda rows: self.whole.squares(rows, square))

    def masks(self, index: Sequence[int], square: Square) -> Tensor | None:
        """Those of the images in the whole set."""
        return self.whole.masks(self.rows[torch.as_tensor(index, dtype=torch.int64)].tolist(), square)

    def _renamed(self, index: Sequence[int], fetch: Callable[[list[int]], Pixels]) -> Pixels:
        rows = self.rows[torch.as_tensor(index, dtype=torch.int64)].tolist()
        pixels = fetch(rows)
        place = dict(zip(rows, index, strict=True))
        return replace(pixels, unreadable=tuple((int(place[row]), reason) for row, reason in pixels.unreadable))

    def id_of(self, i: int) -> str:
        """The name that the image has in the whole set."""
        return self.whole.id_of(int(self.rows[i]))

    def file_of(self, i: int) -> Path | None:
        """That of the image in the whole set."""
        return self.whole.file_of(int(self.rows[i]))

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The images of the whole set that could not be read so far."""
        return self.whole.unreadable


class DatasetSource(Component, ABC):
    """Where images come from: training images, and a labelled split for probes where one exists.

    `image_size` is the side the run asks for, or None when it leaves the choice to the source. A source that
    draws or decodes images makes them about that large; one that holds ready images may ignore it.
    """

    kind = "data"
    family: ClassVar[str | None] = None
    """The recipe that suits this data: "cifar", "imagenet"."""
    mean: tuple[float, ...] | None = None
    """Known means of the channels; None: measured on a sample."""
    std: tuple[float, ...] | None = None
    """Known standard deviations of the channels; None: measured on a sample."""
    asked_size: int | None
    """The side of view that a run asks for, in pixels."""
    notes: list[str]
    """Decisions and findings, for the user to read."""
    warnings: list[str]
    """Things that the user may not have meant, said before the run begins."""
    decided: Mapping[str, Any] = {}
    """Its own settings that it found out by looking at the images, which config.yaml keeps."""
    left_out: str = ""
    """Where images lie that were found beside those of `all`: a folder of test images."""
    limits: Limits | None = None
    """Which values of its images with more than 8 bits are black and white; None: it has none."""
    _stored_side: int | None = None

    def __init__(self, config: Any, image_size: int | None = None) -> None:
        self.config = config
        self.asked_size = image_size
        self.notes = []
        self.warnings = []

    @property
    @abstractmethod
    def natural_size(self) -> int:
        """The side of view that suits these images when the user asks for none."""

    @property
    def stored_side(self) -> int:
        """The shorter side to which images may be reduced: as it was set, or 12/7 of that of the views, 384 for 224."""
        return self._stored_side or stored_side(self.asked_size or self.natural_size)

    @stored_side.setter
    def stored_side(self, side: int | None) -> None:
        self._stored_side = side

    @abstractmethod
    def train(self) -> ImageSet:
        """The images to train on. Labels, where there are any, are for probes, and for methods with `uses_labels`."""

    def all(self) -> ImageSet:
        """Every image in order, for embedding; by default the training images."""
        return self.train()

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """A labelled bank and labelled queries for k-NN and linear probes; None where labels are missing."""
        return None


class HoldOutSource(DatasetSource):
    """A source without an official split. Training leaves out the queries, so that no probe sees its answers.

    A constructor sets `shorter`, and `labels` and `classes` where there are any (`encode_labels` makes them),
    before any image is made, and ends with `note_split`. The images themselves come from `make_images`.
    """

    shorter: int
    """The median shorter side of the images, or of a sample of them, in pixels."""
    labels: Tensor | None = None
    """Of all images, (N,) int64 with -1 for "unknown"."""
    classes: tuple[str, ...] | None = None
    """The names of the classes."""

    @property
    def natural_size(self) -> int:
        """By the median shorter side of the images, or of a sample of them."""
        return suitable_size(self.shorter)

    @abstractmethod
    def make_images(self) -> ImageSet:
        """All images, labelled or not, reduced to `stored_side` at most where they are decoded; called once."""

    @cached_property
    def _images(self) -> ImageSet:
        return self.make_images()

    @property
    def holds_out(self) -> bool:
        """Whether queries are kept out of training; a source with test images of its own, or none, says no."""
        return True

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor] | None:
        return hold_out(self.labels) if self.labels is not None and self.holds_out else None

    def note_split(self) -> None:
        """Tell the user what is held out."""
        if self.labels is None:
            self.notes.append("no labels: every image trains, and no accuracy is computed")
        elif self._split is None:
            self.notes.append("too few labels to hold some out: every image trains, and no accuracy is computed")
        else:
            queries, known = len(self._split[1]), int((self.labels >= 0).sum())
            self.notes.append(
                f"{queries} of {known} labelled images (one in five of each class) are held out as queries for the "
                f"probes; training does not see them"
            )

    def all(self) -> ImageSet:
        """Every image, held out or not."""
        return self._images

    def train(self) -> ImageSet:
        """The images that are not held out."""
        images = self._images
        return images if self._split is None else images.subset(without(self._split[1], len(images)))

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """The labelled part of the training images, and the held-out queries."""
        if self._split is None:
            return None
        bank, queries = self._split
        return self._images.subset(bank), self._images.subset(queries)


def suitable_size(shorter: int) -> int:
    """The side of view for images with this shorter side: a round number, at most 224 and at least 8."""
    side = min(shorter, 224)
    return max(8, side - side % (32 if side >= 64 else 4))

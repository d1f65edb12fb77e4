"""What the rest of the program knows of data: pixels, views, batches, image sets and their sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import Component


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How an image reaches a backbone: side in pixels, channels, and the statistics it is normalised with."""

    size: int
    channels: int
    mean: tuple[float, ...]  # per channel, for values in [0, 1]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Pixels:
    """Raw images of one batch. Ragged ones lie in the top left corner of a common canvas."""

    images: Tensor  # (B, C, H, W) uint8
    sizes: Tensor | None = None  # (B, 2) int64, height and width of each; None: all fill the canvas
    unreadable: tuple[tuple[int, str], ...] = ()  # (index, reason) of those that another image stands in for

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Pixels:
        """The same pixels on another device (asynchronously where the memory is pinned)."""
        sizes = None if self.sizes is None else self.sizes.to(device, non_blocking=True)
        return replace(self, images=self.images.to(device, non_blocking=True), sizes=sizes)

    def image(self, i: int) -> Tensor:
        """Image i alone, (C, h, w) uint8, without the canvas around it."""
        if self.sizes is None:
            return self.images[i]
        height, width = self.sizes[i].tolist()
        return self.images[i, :, :height, :width]

    @classmethod
    def stack(cls, images: Sequence[Tensor], unreadable: tuple[tuple[int, str], ...] = ()) -> Pixels:
        """Images (C, h, w) of any sizes as one batch; a canvas is made only when the sizes differ."""
        if len({image.shape for image in images}) == 1:
            return cls(torch.stack(list(images)), None, unreadable)
        sizes = torch.tensor([image.shape[1:] for image in images])
        height, width = sizes.amax(0).tolist()
        canvas = torch.zeros(len(images), images[0].shape[0], height, width, dtype=torch.uint8)
        for place, image in zip(canvas, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return cls(canvas, sizes, unreadable)


class Views(dict[str, list[Tensor]]):
    """The augmented views of one batch by group: `views["global"]` is a list of (B, C, H, W)."""

    def all(self) -> list[Tensor]:
        """Every view, in the declared order of the groups."""
        return [view for group in self.values() for view in group]


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as a method sees it."""

    views: Views
    index: Tensor  # (B,) position in the data set
    label: Tensor | None = None  # (B,) probes read it; a method that reads it says so: uses_labels = True

    def __len__(self) -> int:
        return len(self.index)


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """Images that can be fetched many at once. Items are (uint8 (C, h, w), label or -1).

    `labels` is (N,) int64, or None where there are none. `mean` and `std` are the known statistics of the
    data; None means that they are measured on a sample.
    """

    labels: Tensor | None = None
    channels: int = 3

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        label = -1 if self.labels is None else int(self.labels[i])
        return self.fetch([i]).image(0), label


class DatasetSource(Component, ABC):
    """Where images come from: training images, and a labelled split for probes where one exists.

    `image_size` is the side the run asks for, or None when it leaves the choice to the source. A source that
    draws or decodes images makes them about that large; one that holds ready images may ignore it.
    """

    kind = "data"
    family: ClassVar[str | None] = None  # names the recipe that suits this data: "cifar", "imagenet"
    mean: tuple[float, ...] | None = None  # known statistics per channel; None: measured on a sample
    std: tuple[float, ...] | None = None

    def __init__(self, config: Any, image_size: int | None = None) -> None:
        self.config = config
        self.asked_size = image_size
        self.notes: list[str] = []  # what was decided or found, for the user to read

    @property
    @abstractmethod
    def natural_size(self) -> int:
        """The side of view that suits these images when the user asks for none."""

    @abstractmethod
    def train(self) -> ImageSet:
        """The images to train on. Labels, where there are any, are for probes alone."""

    def probe(self) -> tuple[ImageSet, ImageSet] | None:
        """A labelled bank and labelled queries for k-NN and linear probes; None where labels are missing."""
        return None

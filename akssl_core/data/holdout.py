"""Sources that hold one set of images, of which some labelled ones are kept from training for the probes."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

from torch import Tensor

from .base import DatasetSource, ImageSet, suitable_size
from .labels import hold_out, without


class HoldOutSource(DatasetSource):
    """A source without an official split. Training leaves out the queries, so that no probe sees its answers.

    A constructor sets `shorter`, and `labels` and `classes` where there are any (`encode_labels` makes them),
    before any image is made, and ends with `note_split`. The images themselves come from `make_images`.
    """

    shorter: int  # the median shorter side of the images, or of a sample of them, in pixels
    labels: Tensor | None = None  # of all images, (N,) int64 with -1 for "unknown"
    classes: tuple[str, ...] | None = None  # their names

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

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor] | None:
        return None if self.labels is None else hold_out(self.labels)

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

"""Any map-style torch `Dataset`, read item by item through its own `__getitem__`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, TensorDataset
from torch.utils.data import Subset as TorchSubset

from ..config.schema import Schema
from ..errors import DataError
from . import convert
from .base import HoldOutSource, ImageSet, Pixels
from .labels import encode_labels
from .tables import usual

READ_FOR_LABELS = 2000  # so many items are read once for their labels; more would delay the start
LOOKED_AT = 8  # items that decide the number of channels
IMAGES = ("image", "img", "images", "pixels", "picture", "photo")  # keys of items, as `plain` writes them
LABELS = ("label", "labels", "target", "class", "finelabel")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a data set: its image as it came, and its label if it has one."""

    image: Any
    label: Any = None

    @classmethod
    def read(cls, data: Dataset[Any], i: int) -> Item:
        """Read item i: an image, a tuple that starts with an image and perhaps a label, or a dict of both.

        Raises:
            DataError: the item is something else.
        """
        item = data[i]
        if isinstance(item, Mapping):
            image, label = usual(item, IMAGES), usual(item, LABELS)
            item = (item if image is None else item[image], item.get(label))
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        if not parts or not isinstance(parts[0], Image.Image | Tensor | np.ndarray):
            found = type(parts[0]).__name__ if parts else "an empty tuple"
            raise DataError(
                f"data: item {i} of {type(data).__name__} holds {found} where its image should be. Items must be "
                f"an image (Pillow, uint8 tensor or array), (image, label) or {{'image': ..., 'label': ...}}; akssl "
                f"makes the views itself."
            )
        return cls(parts[0], parts[1] if len(parts) > 1 else None)

    def header(self) -> tuple[int, int]:
        """(channels it is worth, shorter side) of its image."""
        if isinstance(self.image, Image.Image):
            return convert.pil_channels(self.image), min(self.image.size)
        found = convert.planes(self.image, "images")
        return len(found), min(found.shape[-2:])


class WrappedImages(ImageSet):
    """A torch `Dataset` that has a length as an image set. Large images are reduced to about the size of the views."""

    loading = "process"

    def __init__(
        self, data: Any, channels: int, side: int, labels: Tensor | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        self.data, self.channels, self.side = data, channels, side
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order.

        Raises:
            DataError: an item is not an image, or its values are neither uint8 nor in [0, 1].
        """
        return Pixels.stack([self._image(int(i), self.side) for i in index])

    def squares(self, index: Sequence[int], square: convert.Cut) -> Pixels:
        """The same as a backbone sees them, cut out of the items as they are."""
        return Pixels(torch.cat([square(self._image(int(i))[None]) for i in index]))

    def _image(self, i: int, side: int | None = None) -> Tensor:
        image = Item.read(self.data, i).image
        if isinstance(image, Image.Image):
            return convert.pil_to_tensor(image, self.channels, side)
        what = f"data: item {i}"
        pixels = convert.to_channels(convert.to_uint8(convert.planes(image, what), what), self.channels)
        return pixels if side is None else convert.shrink(pixels, side)


class Wrapped(HoldOutSource):
    """A torch `Dataset`, or whatever has a length and items, that was passed from Python.

    Without `labels`, they come from its `targets` or `labels` (also inside torch's `Subset`, `ConcatDataset` and
    `TensorDataset`), without reading an image; a data set of at most 2000 items is read once for them; a
    larger one without such an attribute counts as unlabelled.

    Raises:
        DataError: an `IterableDataset`, no length, no item, or items that are not raw images.
    """

    name = "dataset"

    def __init__(self, data: Any, labels: Any = None, *, image_size: int | None = None) -> None:
        super().__init__(Schema(), image_size)
        count = _length(data)
        self.data = data
        items = [Item.read(data, i) for i in sorted({i * count // LOOKED_AT for i in range(LOOKED_AT)})]
        channels, sides = zip(*(item.header() for item in items), strict=True)
        self._channels, self.shorter = max(channels), sorted(sides)[len(items) // 2]
        arrays = [convert.as_tensor(item.image) for item in items if not isinstance(item.image, Image.Image)]
        for array in arrays:
            convert.to_uint8(array, f"data: {type(data).__name__}")
        if any(array.is_floating_point() for array in arrays):
            self.notes.append("float images in [0, 1] are converted to uint8")
        known = self._find_labels(items[0], count) if labels is None else encode_labels(labels, count)
        self.labels, self.classes = known
        self.note_split()

    def _find_labels(self, first: Item, count: int) -> tuple[Tensor | None, tuple[str, ...] | None]:
        found = stored_labels(self.data)
        if found is None and first.label is not None and count <= READ_FOR_LABELS:
            found = [Item.read(self.data, i).label for i in range(count)]
        if found is None:
            if first.label is not None:
                self.notes.append(
                    f"labels not read: {count} items and no 'targets' or 'labels'; add one of them to have accuracies"
                )
            return None, None
        try:
            return encode_labels(found, count)
        except DataError as error:
            self.notes.append(f"labels not used: {error}")
            return None, None

    def make_images(self) -> ImageSet:
        """All items."""
        return WrappedImages(self.data, self._channels, self.stored_side, self.labels, self.classes)


def stored_labels(data: Any) -> Any:
    """Labels that a data set keeps beside its images, one an item, or None."""
    if isinstance(data, TorchSubset):
        whole = stored_labels(data.dataset)
        return None if whole is None else [whole[i] for i in data.indices]
    if isinstance(data, ConcatDataset):
        parts = [stored_labels(part) for part in data.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part]
    if isinstance(data, TensorDataset):
        return data.tensors[1] if len(data.tensors) > 1 else None
    columns = getattr(data, "column_names", None)  # a data set of the library `datasets`
    if isinstance(columns, list) and (column := usual(columns, LABELS)) is not None:
        return list(data[column])
    for name in ("targets", "labels"):
        labels = getattr(data, name, None)
        if isinstance(labels, list | tuple | Tensor | np.ndarray):
            return labels
    return None


def _length(data: Dataset[Any]) -> int:
    """The number of items of a map-style data set.

    Raises:
        DataError: it has no length, no items or no fixed order.
    """
    kind = type(data).__name__
    if isinstance(data, IterableDataset):
        raise DataError(
            f"data: {kind} is an IterableDataset, whose images cannot be shuffled or read twice in one order. "
            f"Pass a map-style Dataset (with __len__ and __getitem__), or a folder."
        )
    try:
        count = len(data)  # type: ignore[arg-type]  # torch leaves __len__ to its subclasses
    except TypeError as error:
        raise DataError(f"data: {kind} has no length. Give it a __len__ method.") from error
    if count == 0:
        raise DataError(f"data: {kind} is empty.")
    return count

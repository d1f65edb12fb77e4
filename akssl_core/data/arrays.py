"""Images that lie in memory: an array or a tensor, alone or with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.schema import Schema
from ..errors import DataError
from .base import HoldOutSource, ImageSet, Pixels
from .convert import Layout, as_tensor, channels_first, find_layout, to_uint8
from .labels import encode_labels


class TensorImages(ImageSet):
    """Images (N, C, H, W) uint8 in memory, with labels (N,) int64 where there are any. Nothing is copied."""

    loading = "direct"

    def __init__(self, images: Tensor, labels: Tensor | None = None, classes: tuple[str, ...] | None = None) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        self.channels = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order."""
        return Pixels(self.images.index_select(0, torch.as_tensor(index, dtype=torch.int64)))


class Arrays(HoldOutSource):
    """An array or tensor of images: uint8, or float in [0, 1]; [N, H, W, C], [N, C, H, W] or gray [N, H, W].

    Args:
        images: the images; numpy memory maps are read as training goes on.
        labels: one an image: whole numbers or texts, -1 for "unknown"; None where there are none.
        layout: "CHW" or "HWC", needed only when the shape does not tell.
        image_size: the side of view that the run asks for, if it does.

    Raises:
        DataError: a wrong shape, type or number of labels; the text says how to mend it.
    """

    name = "arrays"

    def __init__(
        self, images: Any, labels: Any = None, *, layout: Layout | None = None, image_size: int | None = None
    ) -> None:
        super().__init__(Schema(), image_size)
        raw = as_tensor(images)
        self._pixels = to_uint8(self._in_order(raw, layout))
        if self._pixels.dtype != raw.dtype:
            self.notes.append("float images in [0, 1] were converted to uint8")
        self.shorter = min(self._pixels.shape[-2:])
        if labels is not None:
            self.labels, self.classes = encode_labels(labels, len(raw))
        self.note_split()

    def _in_order(self, images: Tensor, layout: Layout | None) -> Tensor:
        """The images as (N, C, H, W), whatever their axes."""
        check_axes(images)
        if images.ndim == 3:
            return images[:, None]
        found = layout or find_layout(images.shape)
        self.notes.append(f"the array is read as [N, {', '.join(found or '')}]")
        return channels_first(images, found)

    def make_images(self) -> ImageSet:
        """All images."""
        return TensorImages(self._pixels, self.labels, self.classes)


def check_axes(images: Tensor) -> None:
    """Refuse what is not a stack of images.

    Raises:
        DataError: no image, an empty axis, another number of axes, or one image alone.
    """
    shape = tuple(images.shape)
    if images.ndim not in (3, 4) or 0 in shape:
        raise DataError(
            f"images: expected [N, H, W, C], [N, C, H, W] or [N, H, W] with at least one image, got the shape {shape}."
        )
    if images.ndim == 3 and shape[-1] <= 4:
        raise DataError(f"images: the shape {shape} looks like one image [H, W, C]; expected many, [N, H, W, C].")

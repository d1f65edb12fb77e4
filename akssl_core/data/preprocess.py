"""From images as people have them to the batch that a backbone expects, and the statistics it is normalised with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError
from . import convert
from .base import LARGEST, ImageSet, ImageSpec, Pixels
from .convert import Layout, Limits, Square

SAMPLE = 512  # images; the mean of so many is good to about a percent of the standard deviation
_TOGETHER = 32  # images fetched at a time


@dataclass(frozen=True, slots=True)
class Preprocess(ImageSpec):
    """Resize the shorter side, cut out the centre, scale to [0, 1] and normalise.

    Call it with a Pillow image or a list of them, or a uint8 tensor or array: (C, H, W), (H, W, C), (H, W) or
    many of the first two; the result is (N, channels, size, size) float32. Images that are exactly
    size x size already are only normalised. Where the backbone has learned from images of more than 8 bits (`limits`),
    arrays of other types than uint8 hold the values of such images.
    """

    resize: Annotated[int, Field(ge=1, le=LARGEST)]
    """The shorter side before the centre crop, at least `size`."""
    limits: Limits | None = None
    """Which values of images with more than 8 bits are black and white; None: the backbone has seen no such images."""

    @classmethod
    def of(cls, image: ImageSpec, limits: Limits | None = None) -> Preprocess:
        """The usual evaluation transform for a backbone's input: 256 then 224, no margin below 96 px."""
        resize = Square.of(image.size, image.channels).resize
        return cls(image.size, image.channels, image.mean, image.std, resize, limits)

    def __call__(self, images: Any) -> Tensor:
        """Any images as one normalised batch (N, channels, size, size) float32.

        Raises:
            DataError: not an image, or its channels cannot be turned into those of the backbone.
        """
        parts = [self.pixels(pixels) for pixels in self._batches(images)]
        if not parts:
            raise DataError("preprocess: expected at least one image, got an empty list.")
        return torch.cat(parts)

    @property
    def square(self) -> Square:
        """The part before the values are normalised."""
        return Square(self.size, self.channels, self.resize)

    def fetch(self, images: ImageSet, index: Sequence[int]) -> Pixels:
        """The images at these positions as `pixels` would cut them out of the originals, (N, channels, size, size)."""
        return images.squares(index, self.square)

    def pixels(self, pixels: Pixels) -> Tensor:
        """A batch of raw pixels, ragged or not, as (N, channels, size, size) float32 on the same device."""
        return self._normalise(pixels.squares(self.square).images)

    def _batches(self, images: Any) -> Iterator[Pixels]:
        """Split the images that the caller gave into batches of pixels."""
        if isinstance(images, list | tuple):
            for image in images:
                yield from self._batches(image)
        elif isinstance(images, Image.Image):
            yield Pixels(convert.pil_to_tensor(images, self.channels, limits=self.limits)[None])
        else:
            planes = self._planes(_tensor_of(images, self.limits))
            yield Pixels(planes if planes.ndim == 4 else planes[None])

    def _planes(self, images: Tensor) -> Tensor:
        """A tensor of one or many images with the channels before height and width."""
        if images.ndim not in (2, 3, 4):
            raise DataError(f"preprocess: expected one image or a batch of them, got the shape {tuple(images.shape)}.")
        return images[None] if images.ndim == 2 else convert.channels_first(images, self._layout(images))

    def _layout(self, images: Tensor) -> Layout | None:
        """The axis that has the backbone's number of channels is the channel axis, if only one has."""
        first, last = images.shape[-3] == self.channels, images.shape[-1] == self.channels
        if first != last:
            return "CHW" if first else "HWC"
        return convert.find_layout(images.shape)

    def _normalise(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self.mean)[:, None, None]
        std = images.new_tensor(self.std)[:, None, None]
        return (images / 255 - mean) / std

    @property
    def rule(self) -> str:
        """The same in words, for who prepares images by other means."""
        return (
            f"{self.channels} channel(s); shorter side to {self.resize} px (bilinear, antialiased), then the centre of "
            f"{self.size} x {self.size} px; images of exactly that size as they are; {self._scale}, minus mean, over "
            f"std"
        )

    @property
    def _scale(self) -> str:
        if self.limits is None:
            return "values / 255"
        black, white = self.limits
        return f"values of more than 8 bits from {black:g} to {white:g} as 0 to 1 (of 8 bits / 255)"

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers and lists, fit for JSON."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in plain.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """Make it again from what `to_dict` has written."""
        own: dict[str, Any] = {name: tuple(of) if isinstance(of, list) else of for name, of in data.items()}
        return cls(**own)


def view_as(images: Tensor, shown: ImageSpec, wanted: ImageSpec) -> Tensor:
    """The same pixels as another network expects them: images (B, C, H, W), normalised as `shown` says, as `wanted`.

    Gray images are repeated for a network of more channels. Where they are not of its side they are resized (bilinear,
    antialiased). Images that are as wanted already are returned as they are.

    Raises:
        DataError: there is no way from these channels to those.
    """
    if wanted.channels != shown.channels and shown.channels != 1:
        raise DataError(f"images of {shown.channels} channels cannot be shown to a network of {wanted.channels}.")
    if (shown.mean, shown.std) != (wanted.mean, wanted.std):
        mean, std, new_mean, new_std = (
            images.new_tensor(values)[:, None, None] for values in (shown.mean, shown.std, wanted.mean, wanted.std)
        )
        images = (images * std + mean - new_mean) / new_std
    if images.shape[-1] != wanted.size:
        size = (wanted.size, wanted.size)
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images


def _tensor_of(images: Any, limits: Limits | None) -> Tensor:
    """An array or tensor as uint8; of more bits as float32 in 0..255.

    Raises:
        DataError: something else.
    """
    if not isinstance(images, Tensor | np.ndarray):
        raise DataError(f"preprocess: expected Pillow images, or uint8 tensors or arrays, got {type(images).__name__}.")
    found = convert.as_tensor(images)
    if limits is None or found.dtype == torch.uint8:
        return convert.to_uint8(found)
    return torch.from_numpy(convert.scaled_values(found.cpu().numpy(), limits))


def measure(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel for values in [0, 1], over at most 512 evenly spaced images, to four digits.

    Each image counts alike, whatever its size. A channel that never changes gets the deviation 1.
    """
    count = min(SAMPLE, len(images))
    index = [i * len(images) // count for i in range(count)]
    moments = torch.zeros(2, images.channels, dtype=torch.float64)
    for start in range(0, count, _TOGETHER):
        pixels = images.fetch(index[start : start + _TOGETHER])
        for i in range(len(pixels)):
            values = pixels.image(i).flatten(1).double() / 255
            moments += torch.stack([values.mean(1), values.square().mean(1)])
    mean, square = moments / count
    std = (square - mean.square()).clamp_(min=0).sqrt()
    return _rounded(mean), tuple(value or 1.0 for value in _rounded(std))


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())

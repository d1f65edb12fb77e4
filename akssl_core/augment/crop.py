"""Random-resized crop and horizontal flip of a batch: uint8 canvases in, float32 views in [0, 1] out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Parameters
from .random import Draws

TRIES = 10  # boxes tried before the centre of the image is taken, as torchvision does

# Where `crop_each` overtakes `crop_together` on a CPU, in products per channel. Measured on one core (us an image,
# together / each): 32 -> 32 px 8 / 24, 48 -> 48 23 / 35, 64 -> 64 52 / 48, 96 -> 96 142 / 95, 256 -> 224 1760 / 410;
# on two cores: 9 / 25, 15 / 37, 32 / 51, 91 / 87, 1000 / 220.
TOGETHER_UP_TO = 64 * 64 * (64 + 64)


@dataclass(frozen=True, slots=True)
class Crops(Parameters):
    """What part of each image a view shows."""

    boxes: Tensor  # (B, 4) int64: top, left, height, width in pixels
    flip: Tensor  # (B,) bool: mirrored left to right


class RandomResizedCrop:
    """Cuts a box of random area and aspect out of each image, resizes it (antialiased bilinear), may mirror it.

    Boxes are drawn as by torchvision's `RandomResizedCrop`: the area is uniform in `scale` (fractions of the
    image), the aspect ratio log-uniform in `ratio`; resizing equals its `resized_crop(antialias=True)`.
    """

    def __init__(self, size: int, scale: tuple[float, float], ratio: tuple[float, float], flip: float) -> None:
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.flip = flip

    def sample(self, draws: Draws, sizes: Tensor) -> Crops:
        """Boxes inside images of `sizes` (B, 2), height and width in pixels."""
        numbers = draws.uniform("crop", 2 * TRIES + 3)
        areas, aspects, (top, left, flip) = numbers[:, :TRIES], numbers[:, TRIES:-3], numbers[:, -3:].unbind(1)
        limits = sizes.to(torch.float32)
        height, width = limits[:, :1], limits[:, 1:]
        heights, widths = self._candidates(areas, aspects, height, width)
        fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
        first = fits.to(torch.int32).argmax(1, keepdim=True)  # the last one, the fallback, always fits
        box = torch.cat([heights.gather(1, first), widths.gather(1, first)], 1)
        free = limits - box
        anywhere = (torch.stack([top, left], 1) * (free + 1)).floor()
        corner = torch.where(first == TRIES, (free / 2).floor(), anywhere)
        return Crops(torch.cat([corner, box], 1).to(torch.int64), flip < self.flip)

    def _candidates(self, areas: Tensor, aspects: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Heights and widths of all tries (B, TRIES + 1); the last is the largest box of an allowed aspect."""
        low, high = self.ratio
        area = height * width * torch.lerp(*_ends(areas, self.scale), areas)
        aspect = torch.lerp(*_ends(aspects, (math.log(low), math.log(high))), aspects).exp()
        fallback_height = torch.minimum(height, (width / low).round().clamp(min=1))
        fallback_width = torch.minimum(width, (height * high).round().clamp(min=1))
        heights = torch.cat([(area / aspect).sqrt().round(), fallback_height], 1)
        widths = torch.cat([(area * aspect).sqrt().round(), fallback_width], 1)
        return heights, widths

    def apply(self, images: Tensor, parameters: Crops) -> Tensor:
        """Views (B, C, size, size) of images (B, C, H, W) uint8."""
        height, width = images.shape[2:]
        return kernel_of(images.device, height, width, self.size)(images, parameters, self.size)


def _ends(like: Tensor, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(interval, dtype=like.dtype, device=like.device)
    return low, high


def kernel_of(device: torch.device, height: int, width: int, size: int) -> Callable[[Tensor, Crops, int], Tensor]:
    """The faster of two kernels for a canvas of height x width; their pixels agree within 1e-5."""
    products = size * height * (width + size)
    return crop_each if device.type == "cpu" and products > TOGETHER_UP_TO else crop_together


def crop_each(images: Tensor, crops: Crops, size: int) -> Tensor:
    """The views one image after another: reads the boxes alone, best for large images on a CPU."""
    views = torch.empty(*images.shape[:2], size, size, device=images.device)
    for image, (top, left, height, width), flip, view in zip(
        images, crops.boxes.tolist(), crops.flip.tolist(), views, strict=True
    ):
        box = image[None, :, top : top + height, left : left + width].to(torch.float32)
        resized = F.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0]
        torch.div(resized.flip(2) if flip else resized, 255, out=view)
    return views


def crop_together(images: Tensor, crops: Crops, size: int) -> Tensor:
    """The views of all images at once, as row weights times image times column weights."""
    count, channels, height, width = images.shape
    boxes, flip = crops.boxes.to(images.device, torch.float32), crops.flip.to(images.device)
    rows = resampling(boxes[:, 0:1], boxes[:, 2:3], torch.zeros_like(flip), size, height).div_(255)
    columns = resampling(boxes[:, 1:2], boxes[:, 3:4], flip, size, width)
    pixels = images.to(torch.float32).reshape(count, channels * height, width)
    narrow = torch.bmm(pixels, columns.transpose(1, 2)).view(count, channels, height, size)
    return torch.matmul(rows[:, None], narrow)


def resampling(start: Tensor, length: Tensor, mirror: Tensor, outputs: int, inputs: int) -> Tensor:
    """Weights (B, outputs, inputs) that resize the interval [start, start + length) of a line to `outputs` pixels.

    `start` and `length` are (B, 1) in pixels; `mirror` (B,) reverses the outputs. A triangle as wide as two input
    pixels, or two output pixels where these are larger (that is the antialiasing), cut off at the interval's ends.
    """
    scale = length / outputs
    place = torch.arange(outputs, device=start.device) + 0.5
    place = torch.where(mirror[:, None], outputs - place, place)
    centre = (start + place * scale)[:, :, None]
    pixel = torch.arange(inputs, device=start.device) + 0.5
    weights = (pixel - centre).abs_().mul_(-1 / scale.clamp(min=1)[:, :, None]).add_(1).clamp_(min=0)
    inside = ((pixel > start) & (pixel < start + length)).to(torch.float32)
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))

"""Random-resized crop and horizontal flip of a batch: uint8 images in, float32 views in [0, 1] out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.pixels import Pixels, sent
from ..draws import Draws
from .base import Parameters

Interpolation = Literal["bilinear", "bicubic"]
TRIES = 10  # boxes tried before the centre of the image is taken, as torchvision does

# Which kernel is fastest on a CPU. Boxes that are enlarged: `crop_enlarged`; us an image on two cores, together / each
# / enlarged: 32 -> 32 px 7 / 40 / 4, 96 -> 96 100 / 130 / 49. Boxes that are shrunk: products per channel say where
# `crop_each` overtakes `crop_together`; on one core, together / each: 32 -> 32 px 8 / 24, 48 -> 48 23 / 35,
# 64 -> 64 52 / 48, 96 -> 96 142 / 95, 256 -> 224 1760 / 410; on two: 9 / 25, 15 / 37, 32 / 51, 91 / 87, 1000 / 220.
REACH = 256  # pixels from the corner within which `crop_enlarged` is exact
TOGETHER_UP_TO = 64 * 64 * (64 + 64)


@dataclass(frozen=True, slots=True)
class Crops(Parameters):
    """The part of each image that a view shows."""

    boxes: Tensor  # (B, 4) int64: top, left, height, width in pixels
    flip: Tensor  # (B,) bool: mirrored left to right


@dataclass
class RandomResizedCrop:
    """Cuts a box of random area and aspect out of each image, resizes it (antialiased), may mirror it.

    Boxes are drawn as by torchvision's `RandomResizedCrop`: the area is uniform in `scale` (fractions of the
    image), the aspect ratio log-uniform in `ratio`; resizing equals its `resized_crop(antialias=True)`.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    interpolation: Interpolation = "bilinear"

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

    def prepare(self, pixels: Pixels, parameters: Crops) -> tuple[Pixels, Crops]:
        """What `apply` cuts from: on a GPU the boxes of a strip are copied out of it, so that all have one canvas."""
        if pixels.images.is_cpu or pixels.sizes is None:
            return pixels, parameters
        images, alone = boxes_of_strip(pixels, parameters)
        return Pixels(images), alone

    def apply(self, pixels: Pixels, parameters: Crops, sides: tuple[int, int] | None = None) -> Tensor:
        """Views (V B, C, size, size) of B images, V is 1 on a CPU; `sides` are those of the batch that these are of."""
        if not pixels.images.is_cpu:
            return crop_often(pixels.images, parameters, self.size, self.interpolation)
        sides = sides or pixels.sides
        if self.interpolation == "bicubic":
            return self._shrunk(pixels, parameters, sides)
        corner, box = parameters.boxes[:, :2], parameters.boxes[:, 2:]
        enlarged = ((box <= self.size) & (corner + box <= REACH)).all(1)
        shares = ((enlarged, self._enlarged), (~enlarged, self._shrunk))
        views = torch.empty(len(pixels), pixels.channels, self.size, self.size)
        for chosen, cut in shares:
            if chosen.all():
                return cut(pixels, parameters, sides)
            if chosen.any():
                rows = chosen.nonzero().squeeze(1)
                views[rows] = cut(pixels.part(rows), parameters.rows(rows), sides)
        return views

    def _enlarged(self, pixels: Pixels, crops: Crops, sides: tuple[int, int]) -> Tensor:
        return crop_enlarged(pixels.canvas(min(sides[0], REACH), min(sides[1], REACH)), crops, self.size)

    def _shrunk(self, pixels: Pixels, crops: Crops, sides: tuple[int, int]) -> Tensor:
        kernel = cpu_kernel_of(*sides, self.size)
        images = pixels.each() if kernel is crop_each else pixels.canvas(*sides)
        return kernel(images, crops, self.size, self.interpolation)


def boxes_of_strip(pixels: Pixels, crops: Crops) -> tuple[Tensor, Crops]:
    """Each box of images in a strip alone, in the top left corner of a canvas that holds the largest box, uint8.

    The canvas is on the device of the pixels; on it, what lies beyond a box may be anything. Of the strip, lines as
    wide as the canvas are copied, from wherever those of the boxes begin.
    """
    assert pixels.sizes is not None
    assert pixels.starts is not None
    top, left, tall, _ = crops.boxes.T[:, :, None]
    height, width = crops.boxes[:, 2:].amax(0).tolist()
    line = torch.arange(height).minimum(tall - 1)  # (B, height)
    begin = pixels.starts[:, None] + left + (top + line) * pixels.sizes[:, 1:]
    channels, length = pixels.images.shape
    windows = pixels.images.as_strided((length - width + 1, channels, width), (1, length, 1))
    alone = Crops(crops.boxes * torch.tensor([0, 0, 1, 1]), crops.flip)
    return windows[sent(begin, windows.device)].transpose(1, 2), alone


def _ends(like: Tensor, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(interval, dtype=like.dtype, device=like.device)
    return low, high


def cpu_kernel_of(height: int, width: int, size: int) -> Callable[..., Tensor]:
    """The faster of the two kernels that shrink, for a canvas of height x width on a CPU."""
    return crop_each if size * height * (width + size) > TOGETHER_UP_TO else crop_together


def crop_enlarged(images: Tensor, crops: Crops, size: int) -> Tensor:
    """The views of boxes no larger than a view, within REACH pixels of the corner: four pixels make one, none averaged.

    Pixels are the same on any canvas. Sampled places are multiples of 2^-16 pixels, and images are shown as if their
    sides were REACH, a power of two: so no place is rounded on its way through grid_sample's coordinates of -1 to 1.
    """
    top, left, tall, wide = (line[:, None] for line in crops.boxes.to(torch.float32).unbind(1))
    place = (torch.arange(size) + 0.5) / size
    rows = _within(top, tall, place)
    columns = _within(left, wide, torch.where(crops.flip[:, None], 1 - place, place))
    points = torch.empty(len(images), size, size, 2)
    points[..., 0] = columns[:, None, :]
    points[..., 1] = rows[:, :, None]
    return F.grid_sample(_shown_larger(images), points, mode="bilinear", align_corners=False)


def _within(start: Tensor, length: Tensor, place: Tensor) -> Tensor:
    """Where views sample an interval (B, 1) of a line, from the middle of its first pixel to that of its last."""
    exact = (start + place * length).clamp(start + 0.5, start + length - 0.5)
    return exact.mul_(2**16).round_().mul_(2**-15 / REACH).sub_(1)


def _shown_larger(images: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 in [0, 1], with sides that say REACH: what lies beyond H and W must not be read."""
    channels, height, width = images.shape[1:]
    beyond = torch.zeros(REACH * (width + 1))
    pixels = torch.empty(images.numel() + len(beyond))
    torch.div(images, 255, out=pixels[: -len(beyond)].view(images.shape))
    pixels[-len(beyond) :] = beyond  # pixels next to the last ones are read, and weighted with zero
    area = height * width
    return pixels.as_strided((len(images), channels, REACH, REACH), (channels * area, area, width, 1))


def crop_each(
    images: Tensor | Sequence[Tensor], crops: Crops, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """The views of images of any sizes one after another: reads the boxes alone, best for large images on a CPU."""
    views = torch.empty(len(images), len(images[0]), size, size, device=images[0].device)
    for image, (top, left, height, width), flip, view in zip(
        images, crops.boxes.tolist(), crops.flip.tolist(), views, strict=True
    ):
        box = image[None, :, top : top + height, left : left + width].to(torch.float32)
        resized = F.interpolate(box, size=(size, size), mode=interpolation, antialias=True)[0]
        torch.div(resized.flip(2) if flip else resized, 255, out=view)
    return _cut_off(views, interpolation)


def crop_together(images: Tensor, crops: Crops, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """The views of all images at once, as row weights times image times column weights."""
    count, channels, height, width = images.shape
    rows, columns = _weights(images, crops, size, interpolation)
    pixels = images.to(torch.float32).reshape(count, channels * height, width)
    narrow = torch.bmm(pixels, columns.transpose(1, 2)).view(count, channels, height, size)
    return _cut_off(torch.matmul(rows[:, None], narrow), interpolation)


def crop_often(images: Tensor, crops: Crops, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """V views (V B, C, size, size) of all images (B, C, H, W) at once: all rows of an image's views by one product."""
    count, channels, height, width = images.shape
    by_image = Crops(*(part.view(-1, count, *part.shape[1:]).transpose(0, 1).flatten(0, 1) for part in crops.tensors()))
    rows, columns = _weights(images, by_image, size, interpolation)  # (B V, size, H), (B V, size, W)
    lines = torch.empty(count, height, channels, width, device=images.device).copy_(images.transpose(1, 2))
    short = torch.bmm(rows.view(count, -1, height), lines.flatten(2)).view(-1, size * channels, width)
    views = torch.bmm(short, columns.transpose(1, 2)).view(count, -1, size, channels, size)
    return _cut_off(views.permute(1, 0, 3, 2, 4).reshape(-1, channels, size, size), interpolation)


def _weights(images: Tensor, crops: Crops, size: int, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """The weights (B, size, H) of rows, to values in [0, 1], and (B, size, W) of columns."""
    boxes, kernel = crops.boxes.to(torch.float32), triangle if interpolation == "bilinear" else cubic
    height, width = images.shape[2:]
    rows = resampling(boxes[:, 0:1], boxes[:, 2:3], torch.zeros_like(crops.flip), size, height, kernel).div_(255)
    return rows, resampling(boxes[:, 1:2], boxes[:, 3:4], crops.flip, size, width, kernel)


def _cut_off(views: Tensor, interpolation: Interpolation) -> Tensor:
    """A cubic overshoots beyond black and white."""
    return views if interpolation == "bilinear" else views.clamp_(0, 1)


def triangle(distance: Tensor) -> Tensor:
    """Bilinear weights by the distance in pixels, in place."""
    return distance.abs_().mul_(-1).add_(1).clamp_(min=0)


def cubic(distance: Tensor) -> Tensor:
    """Bicubic weights by the distance in pixels, with a = -1/2 as in Pillow (Keys 1981)."""
    x = distance.abs_()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def resampling(
    start: Tensor,
    length: Tensor,
    mirror: Tensor,
    outputs: int,
    inputs: int,
    kernel: Callable[[Tensor], Tensor] = triangle,
) -> Tensor:
    """Weights (B, outputs, inputs) that resize the interval [start, start + length) of a line to `outputs` pixels.

    `start` and `length` are (B, 1) in pixels; `mirror` (B,) reverses the outputs. The kernel is measured in input
    pixels, or in output pixels where these are larger (that is the antialiasing), and cut off at the interval's ends.
    """
    scale = length / outputs
    place = torch.arange(outputs, device=start.device) + 0.5
    place = torch.where(mirror[:, None], outputs - place, place)
    centre = (start + place * scale)[:, :, None]
    pixel = torch.arange(inputs, device=start.device) + 0.5
    weights = kernel((pixel - centre).mul_(1 / scale.clamp(min=1)[:, :, None]))
    inside = ((pixel > start) & (pixel < start + length)).to(torch.float32)
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))

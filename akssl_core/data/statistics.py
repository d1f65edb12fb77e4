"""Mean and standard deviation per channel, measured on a sample of the images."""

from __future__ import annotations

import torch

from .base import ImageSet

SAMPLE = 512  # images; the mean of so many is good to about a percent of the standard deviation
_CHUNK = 32  # fetched at a time


def measure(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel for values in [0, 1], over at most 512 evenly spaced images, to four digits.

    Each image counts alike, whatever its size. A channel that never changes gets the deviation 1.
    """
    count = min(SAMPLE, len(images))
    index = [i * len(images) // count for i in range(count)]
    moments = torch.zeros(2, images.channels, dtype=torch.float64)
    for start in range(0, count, _CHUNK):
        pixels = images.fetch(index[start : start + _CHUNK])
        for i in range(len(pixels)):
            values = pixels.image(i).flatten(1).double() / 255
            moments += torch.stack([values.mean(1), values.square().mean(1)])
    mean, square = moments / count
    std = (square - mean.square()).clamp_(min=0).sqrt()
    return _rounded(mean), tuple(value or 1.0 for value in _rounded(std))


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())

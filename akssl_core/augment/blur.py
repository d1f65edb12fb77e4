"""Gaussian blur of a batch, with another width for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..draws import Draws
from .base import Operation, Parameters
from .color import positions


@dataclass(frozen=True, slots=True)
class Blurs(Parameters):
    """How wide each image is blurred."""

    on: Tensor  # (B,) bool
    sigma: Tensor  # (B,) pixels


def kernel_size(size: int, widest: float = 2.0) -> int:
    """Taps for views of `size` px: a tenth, 23 at 224 px (SimCLR, arXiv 2002.05709), or what holds the widest sigma.

    A tenth alone would cut a sigma of 2 to 0.8 at 32 px. Always odd; reflection allows 2 size - 1.
    """
    tenth, wide = 2 * round((size / 10 - 1) / 2) + 1, 2 * math.ceil(3 * widest) + 1
    return min(max(3, tenth, wide), 2 * size - 1)


class GaussianBlur(Operation[Blurs]):
    """Blurs with a Gaussian whose sigma is uniform in a range, cut to `kernel` taps, on reflected borders."""

    def __init__(self, probability: float, kernel: int, sigma: tuple[float, float]) -> None:
        self.probability = probability
        self.kernel = kernel
        self.sigma = sigma

    def sample(self, draws: Draws) -> Blurs:
        """Draw which images are blurred and how wide."""
        chosen, width = draws.uniform("blur", 2).unbind(1)
        low, high = self.sigma
        return Blurs(chosen < self.probability, low + (high - low) * width)

    def apply(self, images: Tensor, parameters: Blurs) -> Tensor:
        """Blur the chosen images in place."""
        rows = positions(parameters.on)
        if not len(rows):
            return images
        taps = gaussian(parameters.sigma[rows], self.kernel).to(images.device)
        rows = rows.to(images.device)
        work = convolve(images.index_select(0, rows), taps, dim=2)
        return images.index_copy_(0, rows, convolve(work, taps, dim=3))


def gaussian(sigma: Tensor, kernel: int) -> Tensor:
    """Weights (B, kernel) of Gaussians with these sigmas (B,), each summing to one."""
    distance = torch.arange(kernel, device=sigma.device) - (kernel - 1) / 2
    return torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, 1)


def convolve(images: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Convolve images (B, C, H, W) along `dim` (2 or 3) with symmetric taps (B, k) on reflected borders.

    A sum of shifted images; faster than a grouped convolution, and its cost does not jump with the batch.
    """
    middle, side = taps.shape[1] // 2, images.shape[dim]
    border = (0, 0, middle, middle) if dim == 2 else (middle, middle, 0, 0)
    padded = F.pad(images, border, mode="reflect")
    weights = taps[:, :, None, None, None]
    result = images * weights[:, middle]
    for i in range(middle):
        pair = padded.narrow(dim, i, side) + padded.narrow(dim, 2 * middle - i, side)
        result.addcmul_(pair, weights[:, i])
    return result

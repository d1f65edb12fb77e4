"""Operations on the pixels of a batch: jitter, grayscale, solarize, normalise, blur. Formulas are torchvision's."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..draws import Draws
from .base import Operation, Parameters

LUMINANCE = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True, slots=True)
class Chosen(Parameters):
    """Which images an operation without a strength acts on."""

    on: Tensor  # (B,) bool


@dataclass(frozen=True, slots=True)
class Jitters(Parameters):
    """How the colours of each image change."""

    on: Tensor  # (B,) bool
    factors: Tensor  # (B, 4): factors of brightness, contrast, saturation (1: unchanged); hue shift in turns (0)
    order: Tensor  # (B, 4) int64: which of the four comes first, second, third, last


@dataclass(frozen=True, slots=True)
class Blurs(Parameters):
    """How wide each image is blurred."""

    on: Tensor  # (B,) bool
    sigma: Tensor  # (B,) pixels


def positions(on: Tensor) -> Tensor:
    """Where a mask (B,) is true, as indices (n,)."""
    return on.nonzero().squeeze(1)


def gray(images: Tensor) -> Tensor:
    """Brightness of each pixel, (B, H, W): the luminance of RGB, the mean of any other channels."""
    if images.shape[1] != 3:
        return images.mean(1)
    red, green, blue = images.unbind(1)
    return red.mul(LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


class ColorJitter(Operation[Jitters]):
    """Changes brightness, contrast, saturation and hue by random amounts in random order.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the hue shift in [-hue, hue] turns. Values are
    clamped to [0, 1] after each change. Contrast pulls towards the image's mean brightness.
    """

    def __init__(
        self, probability: float, brightness: float, contrast: float, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        self.probability = probability
        strengths = (brightness, contrast, saturation)
        self.low = torch.tensor([*(max(0.0, 1 - s) for s in strengths), -hue])
        self.high = torch.tensor([*(1 + s for s in strengths), hue])
        self.channels = frozenset({3}) if saturation or hue else None

    def sample(self, draws: Draws) -> Jitters:
        """Draw who changes, by how much, and in which order."""
        numbers = draws.uniform("jitter", 9)
        device = numbers.device
        factors = torch.lerp(self.low.to(device), self.high.to(device), numbers[:, 1:5])
        return Jitters(numbers[:, 0] < self.probability, factors, numbers[:, 5:].argsort(1))

    def prepare(self, parameters: Jitters) -> tuple[Tensor, ...]:
        """Which images, by when their hue turns; the weights of three blends; and the hues that turn around each."""
        rows, bounds = _by_hue_position(parameters)
        factors, order = parameters.factors[rows], parameters.order[rows]
        turns = [factors[start:end, HUE] for start, end in pairwise(bounds)]
        return rows, _blends(factors, order), *map(primaries, turns)

    def change(self, images: Tensor, rows: Tensor, *how: Tensor) -> Tensor:
        """Jitter the chosen images in place."""
        if not len(rows):
            return images
        work, done = images.index_select(0, rows), 0
        blends, *turning = how
        for position, of_hue in enumerate(turning):
            if len(of_hue):
                shift_hue(work[done : done + len(of_hue)], of_hue)
                done += len(of_hue)
            if position < len(blends):
                blend(work, Blend(*blends[position]))
        return images.index_copy_(0, rows, work)


def _by_hue_position(parameters: Jitters) -> tuple[Tensor, list[int]]:
    """The chosen images sorted by when their hue turns, so that each position's hue images are one slice.

    Returns the indices, and five bounds: images bounds[p] to bounds[p + 1] turn their hue after p blends.
    """
    place = (parameters.order == HUE).to(torch.int32).argmax(1)
    place = place.masked_fill(parameters.factors[:, HUE] == 0, 4)  # a hue that does not turn has no position
    rows = positions(parameters.on)
    place, rank = place[rows].sort(stable=True)
    return rows[rank], [0, *torch.bincount(place, minlength=5).cumsum(0)[:4].tolist()]


class Blend(NamedTuple):
    """Weights, one an image, of clamp(factor x + of_pixel gray(x) + of_mean mean(gray(x)))."""

    factor: Tensor  # (B,)
    of_pixel: Tensor
    of_mean: Tensor


def _blends(factors: Tensor, order: Tensor) -> Tensor:
    """The three steps of every image that are no turn of the hue, as blends (3, 3, n).

    Brightness, contrast and saturation are all f x + (1 - f) reference: the reference is 0, the mean gray of the
    image and the gray of the pixel. So one blend serves all images, whichever of the three is their turn.
    """
    order = order.gather(1, (order == HUE).to(torch.int8).argsort(dim=1, stable=True)[:, :3])
    factor = factors.gather(1, order)
    rest = 1 - factor
    return torch.stack([factor, rest * (order == SATURATION), rest * (order == CONTRAST)]).permute(2, 0, 1)


def blend(images: Tensor, weights: Blend) -> None:
    """Mix images (B, C, H, W) with their grays, in place, and clamp to [0, 1]."""
    flat = images.flatten(2)
    reference = gray(images).flatten(1)
    of_mean = weights.of_mean * reference.mean(1)
    reference.mul_(weights.of_pixel[:, None]).add_(of_mean[:, None])
    torch.addcmul(reference[:, None], flat, weights.factor[:, None, None], out=flat).clamp_(0, 1)


def shift_hue(images: Tensor, of_hue: Tensor) -> None:
    """Turn the hue of RGB images to new `primaries` (B, 3), in place, keeping value and saturation of HSV.

    With maximum V, minimum m and C = V - m, the hue in sixths of a turn lies in [-3, 3]: its size is
    1 + (g + b - r - m) / C and its sign that of g - b. A channel whose primary stands at hue k is
    V + C clamp(|3 - |hue - k|| - 2, -1, 0), right for |hue - k| <= 7. No comparison of channels is needed.
    """
    flat = images.flatten(2)
    red, green, blue = flat.unbind(1)
    value = torch.maximum(red, green).maximum(blue)
    low = torch.minimum(red, green).minimum(blue)
    chroma = value - low
    size = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1)
    hue = size.copysign_(green - blue)
    away = hue[:, None] + of_hue[:, :, None]
    ramp = away.abs_().sub_(3).abs_().sub_(2).clamp_(-1, 0)
    torch.addcmul(value[:, None], ramp, chroma[:, None], out=flat)


def primaries(turns: Tensor) -> Tensor:
    """Offsets (B, 3) from a hue turned by (B,) in [-0.5, 0.5] to its distances from red, green and blue, in sixths."""
    after, before = torch.tensor([0.0, -2.0, -4.0]), torch.tensor([0.0, 4.0, 2.0])
    return torch.where(turns[:, None] > 0, after, before) + 6 * turns[:, None]


class Grayscale(Operation[Chosen]):
    """Replaces all three channels by the luminance."""

    channels = frozenset({3})

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def sample(self, draws: Draws) -> Chosen:
        """Draw which images turn gray."""
        return Chosen(draws.uniform("grayscale", 1)[:, 0] < self.probability)

    def prepare(self, parameters: Chosen) -> tuple[Tensor, ...]:
        """Which images turn gray."""
        return (positions(parameters.on),)

    def change(self, images: Tensor, rows: Tensor, *how: Tensor) -> Tensor:
        """Make the chosen images gray in place."""
        work = gray(images.index_select(0, rows))
        return images.index_copy_(0, rows, work[:, None].expand(-1, 3, -1, -1))


@dataclass
class Solarize(Operation[Chosen]):
    """Inverts the values at or above a threshold."""

    probability: float
    threshold: float = 0.5

    def sample(self, draws: Draws) -> Chosen:
        """Draw which images are solarized."""
        return Chosen(draws.uniform("solarize", 1)[:, 0] < self.probability)

    def prepare(self, parameters: Chosen) -> tuple[Tensor, ...]:
        """Which images are solarized."""
        return (positions(parameters.on),)

    def change(self, images: Tensor, rows: Tensor, *how: Tensor) -> Tensor:
        """Solarize the chosen images in place."""
        work = images.index_select(0, rows)
        bright = torch.ge(work, self.threshold, out=torch.empty_like(work))
        # |1 - x| inverts and |0 - x| keeps, exactly; a masked choice is ten times slower
        return images.index_copy_(0, rows, bright.sub_(work).abs_())


class Normalize:
    """Subtracts the mean and divides by the standard deviation of each channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std

    def apply(self, images: Tensor, out: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) with values in [0, 1] as (x - mean) / std."""
        mean, std = (_channels(values, images.device) for values in (self.mean, self.std))
        return torch.sub(images, mean, out=out).div_(std)


@functools.lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One value a channel, (C, 1, 1), sent to a device once."""
    return torch.tensor(values, device=device)[:, None, None]


def kernel_size(size: int, widest: float = 2.0) -> int:
    """Taps for views of `size` px: a tenth, 23 at 224 px (SimCLR, arXiv 2002.05709), or what holds the widest sigma.

    A tenth alone would cut a sigma of 2 to 0.8 at 32 px. Always odd; reflection allows 2 size - 1.
    """
    tenth, wide = 2 * round((size / 10 - 1) / 2) + 1, 2 * math.ceil(3 * widest) + 1
    return min(max(3, tenth, wide), 2 * size - 1)


@dataclass
class GaussianBlur(Operation[Blurs]):
    """Blurs with a Gaussian whose sigma is uniform in a range, cut to `kernel` taps, on reflected borders."""

    probability: float
    kernel: int
    sigma: tuple[float, float]

    def sample(self, draws: Draws) -> Blurs:
        """Draw which images are blurred and how wide."""
        chosen, width = draws.uniform("blur", 2).unbind(1)
        low, high = self.sigma
        return Blurs(chosen < self.probability, low + (high - low) * width)

    def prepare(self, parameters: Blurs) -> tuple[Tensor, ...]:
        """Which images are blurred, and the taps (n, kernel) of each."""
        rows = positions(parameters.on)
        return rows, gaussian(parameters.sigma[rows], self.kernel)

    def change(self, images: Tensor, rows: Tensor, *how: Tensor) -> Tensor:
        """Blur the chosen images in place."""
        if not len(rows):
            return images
        blurred = by_shifts if images.is_cpu else by_products
        return images.index_copy_(0, rows, blurred(images.index_select(0, rows), *how))


def gaussian(sigma: Tensor, kernel: int) -> Tensor:
    """Weights (B, kernel) of Gaussians with these sigmas (B,), each summing to one."""
    distance = torch.arange(kernel, device=sigma.device) - (kernel - 1) / 2
    return torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, 1)


def by_shifts(images: Tensor, taps: Tensor) -> Tensor:
    """Images (B, C, H, W) convolved with symmetric taps (B, k) along both sides: the fastest way on a CPU."""
    return convolve(convolve(images, taps, dim=2), taps, dim=3)


def by_products(images: Tensor, taps: Tensor) -> Tensor:
    """The same for square images, as products with a banded matrix from both sides: few calls."""
    side = images.shape[2]
    band = (taps @ _meetings(side, taps.shape[1], taps.device)).view(-1, side, side)
    lines = torch.matmul(band[:, None], images).flatten(1, 2)
    return torch.bmm(lines, band.transpose(1, 2)).view(images.shape)


@functools.lru_cache(maxsize=8)
def _meetings(side: int, kernel: int, device: torch.device) -> Tensor:
    """Where each tap meets a line of `side` pixels on reflected borders: (kernel, side * side), made once a device."""
    middle = kernel // 2
    padded = F.pad(torch.eye(side)[None], (middle, middle), mode="reflect")[0]  # (side, side + kernel - 1)
    return padded.unfold(1, side, 1).permute(1, 2, 0).reshape(kernel, side * side).to(device)


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

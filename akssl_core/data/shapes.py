"""Drawn shapes: a synthetic, labelled data source that needs no download.

An image shows two to four objects of one kind on a soft background. Kind aside, all is drawn at random and
tells nothing of it: colours, places, sizes, tilts, the number of objects and the background. The objects of
an image share nothing but their kind, so two crops of it agree on the kind above all; and pixels hold
different colours at different places, so nearest neighbours among raw pixels find the kind rarely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..config import Schema
from .arrays import TensorImages
from .base import DatasetSource, ImageSet, Pixels
from .shape_kinds import KINDS
from .splitmix import mix, shift

SIDE = 32  # of an image when the run asks for none
IN_MEMORY = 2**30  # bytes of images that are kept; a larger set is drawn batch by batch
PIXELS_AT_ONCE = 2**19  # drawn together: some 30 MB of temporaries
TRAIN, TEST = 0, 1
CLASSES = tuple(KINDS)

_CELLS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))  # rough centres of the four objects
_LATTICE = 6  # the background's texture is a random lattice of so many points a side, interpolated
_SCENE, _OBJECT = 16, 8  # random numbers for the background, and for each object
_COUNT = _SCENE + _LATTICE**2 + _OBJECT * len(_CELLS)


def draw(index: Tensor, side: int, *, seed: int = 0, split: int = TRAIN) -> Tensor:
    """The images at `index` (N,) as uint8 (N, 3, side, side).

    Image i of a split is a function of (seed, split, i) and the side alone: the same in any batch and order,
    and on any number of threads. Its kind is i modulo ten, so every stretch of images is balanced.
    """
    images = torch.empty(len(index), 3, side, side, dtype=torch.uint8)
    step = max(1, PIXELS_AT_ONCE // side**2)
    for start in range(0, len(index), step):
        part = slice(start, start + step)
        images[part] = _draw(index[part], side, _uniform(index[part], seed, split))
    return images


def _uniform(index: Tensor, seed: int, split: int) -> Tensor:
    """(N, _COUNT) float32 in [0, 1): a hash of seed, split, image and number."""
    key = mix(mix(torch.tensor(seed)) ^ split)
    bits = mix(mix(index.to(torch.int64) ^ key)[:, None] ^ torch.arange(_COUNT))
    return shift(bits, 40).to(torch.float32) * 2.0**-24


def _draw(index: Tensor, side: int, u: Tensor) -> Tensor:
    """One chunk of images: the background, then each object over it."""
    scene, lattice, objects = u.split([_SCENE, _LATTICE**2, _OBJECT * len(_CELLS)], dim=1)
    images = _background(scene, lattice, side)
    shown = _shown(scene)
    shift = 0.2 * (scene[:, 8:10] - 0.5)
    rows = [(index % len(CLASSES) == kind).nonzero()[:, 0] for kind in range(len(CLASSES))]
    for number, (cell, o) in enumerate(zip(_CELLS, objects.split(_OBJECT, dim=1), strict=True)):
        centre = torch.tensor(cell) + shift + 0.14 * (o[:, 1:3] - 0.5)
        cover = _cover(rows, centre, 0.15 + 0.09 * o[:, 0], math.radians(25) * (2 * o[:, 3] - 1), side)
        # A third to two thirds of the way round from the background's luminance: lighter or darker, never alike.
        luminance = (_luminance(scene) + 0.35 + 0.3 * o[:, 4]) % 1
        cover = cover * shown[:, number, None, None]
        images += (_color(luminance, o[:, 5:8]) - images) * cover[:, None]
    return images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _luminance(scene: Tensor) -> Tensor:
    """(N,) of the background: a middle one, so that objects may be lighter or darker."""
    return 0.3 + 0.4 * scene[:, 0]


def _color(luminance: Tensor, u: Tensor) -> Tensor:
    """(N, 3, 1, 1): a colour of about this luminance."""
    tint = 0.5 * (u - u.mean(1, keepdim=True))
    return (0.1 + 0.8 * luminance[:, None] + tint)[:, :, None, None]


def _background(scene: Tensor, lattice: Tensor, side: int) -> Tensor:
    """(N, 3, side, side) float32: a colour, a ramp in some direction and a soft texture."""
    across = (torch.arange(side) + 0.5) / side - 0.5
    slope = 0.3 * (2 * scene[:, 4:6] - 1)
    ramp = slope[:, 0, None, None] * across + slope[:, 1, None, None] * across[:, None]
    points = 0.08 * (2 * lattice - 1).reshape(-1, 1, _LATTICE, _LATTICE)
    texture = F.interpolate(points, (side, side), mode="bilinear", align_corners=True)
    return _color(_luminance(scene), scene[:, 1:4]) + ramp[:, None] + texture


def _shown(scene: Tensor) -> Tensor:
    """(N, 4) 0 or 1: which of the four objects an image has; half of the images lack two neighbouring ones."""
    first = (len(_CELLS) * scene[:, 6]).long()
    missing = (first[:, None] + torch.arange(len(_CELLS))) % len(_CELLS) < 2
    return (~(missing & (scene[:, 7:8] < 0.5))).to(torch.float32)


def _cover(rows: Sequence[Tensor], centre: Tensor, radius: Tensor, tilt: Tensor, side: int) -> Tensor:
    """(N, side, side) in [0, 1]: how much of each pixel the object covers; `rows` are the images of each kind."""
    # In float64, so that another platform's cosine rounds to the same float32.
    cos, sin = (f(tilt.double()).float()[:, None, None] for f in (torch.cos, torch.sin))
    grid = (torch.arange(side) + 0.5) / side
    right = (grid - centre[:, :1])[:, None, :] / radius[:, None, None]
    up = (centre[:, 1:] - grid)[:, :, None] / radius[:, None, None]
    x, y = right * cos + up * sin, up * cos - right * sin
    distance = torch.empty(x.shape)
    for of_kind, row in zip(KINDS.values(), rows, strict=True):
        distance[row] = of_kind(x[row], y[row])
    return (0.5 - distance * (radius * side)[:, None, None]).clamp_(0, 1)


class DrawnImages(ImageSet):
    """Shapes that are drawn when they are fetched, for sets too large to keep."""

    classes = CLASSES

    def __init__(self, size: int, side: int, *, seed: int, split: int) -> None:
        self.size, self.side, self.seed, self.split = size, side, seed, split
        self.labels = torch.arange(size) % len(CLASSES)

    def __len__(self) -> int:
        return self.size

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order."""
        return Pixels(draw(torch.as_tensor(index, dtype=torch.int64), self.side, seed=self.seed, split=self.split))


class ShapesConfig(Schema):
    """Settings of the data source `shapes`."""

    size: int = Field(10_000, gt=0, description="number of training images")
    test_size: int = Field(2_000, gt=0, description="number of images of the labelled test split")
    seed: int = Field(0, ge=0, lt=2**63, description="another seed draws other images")


class Shapes(DatasetSource):
    """Ten kinds of drawn objects with their labels, at any image size, made in seconds from a seed."""

    name = "shapes"
    Config = ShapesConfig
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    natural_size = SIDE

    def __init__(self, config: Any, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.notes.append(
            f"{config.size} training and {config.test_size} test images were drawn from seed {config.seed}"
        )

    def train(self) -> ImageSet:
        """The training images; their labels are for probes."""
        return self._train

    def probe(self) -> tuple[ImageSet, ImageSet]:
        """The training images as the bank, and a test split of other images as queries."""
        return self._train, self._images(self.config.test_size, TEST)

    @cached_property
    def _train(self) -> ImageSet:
        return self._images(self.config.size, TRAIN)

    def _images(self, size: int, split: int) -> ImageSet:
        """One split, kept in memory where it fits."""
        side = self.asked_size or SIDE
        drawn = DrawnImages(size, side, seed=self.config.seed, split=split)
        if 3 * side**2 * size > IN_MEMORY:
            return drawn
        images = draw(torch.arange(size), side, seed=self.config.seed, split=split)
        return TensorImages(images, drawn.labels, CLASSES)

"""Drawn shapes: a synthetic, labelled data source that needs no download.

An image is a window at a random place into an endless patchwork of cells. Each cell has a background of its own
and one object, and all objects of an image are of one kind. Colours, places, sizes, tilts, the width of the cells
and where the window lies are drawn at random and tell nothing of the kind. So two crops of an image share little
but the kind, and two images of a kind share few pixels: nearest neighbours among raw pixels find it rarely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..config.schema import Schema
from ..draws import fold, mix, uniform
from .arrays import TensorImages
from .base import DatasetSource, ImageSet, Pixels
from .convert import Square

SIDE = 32  # of an image when the run asks for none
IN_MEMORY = 2**30  # bytes of images that are kept; a larger set is drawn batch by batch
MOST = 10**8  # images: their labels and their order take 16 bytes each
PIXELS_AT_ONCE = 2**19  # drawn together: some 60 MB of temporaries
TRAIN, TEST = 0, 1

# Found on seed 1. Small objects, patches of strong contrast and cells of one width for all images made the kind
# hard to learn; with these a default run learns it, and raw pixels stay under a third of the way.
PERIOD = (0.42, 0.58)  # width of a cell, in sides of the image
GRID = 4  # the patchwork repeats after so many cells: more than any window shows
RADIUS = (0.36, 0.48)  # of an object, in cells
PLACE = 0.12  # range of an object's centre, in cells
TILT = math.radians(25)
BACKGROUND = (0.35, 0.65)  # range of the backgrounds' luminance; the cells of an image share it out evenly
TINT = 0.4  # range of each colour channel around the luminance

_CELLS = GRID**2
_WINDOW, _OBJECT = 4, 11  # random numbers for the window, and for each cell
_COUNT = _WINDOW + _CELLS * (1 + _OBJECT)


# -- the ten kinds, as signed distances: negative inside, in units of the object's radius ----------
# Each takes coordinates x (to the right) and y (up) of the same shape, with the object's centre at 0. Distances are
# exact at the outline and at most too short farther off, which is what anti-aliasing needs.
def _union(*parts: Tensor) -> Tensor:
    return reduce(torch.minimum, parts)


def _common(*parts: Tensor) -> Tensor:
    return reduce(torch.maximum, parts)


def _round(x: Tensor, y: Tensor, radius: float, at: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """A disc."""
    return ((x - at[0]).square() + (y - at[1]).square()).sqrt() - radius


def _box(x: Tensor, y: Tensor, width: float, height: float, at: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """An upright rectangle of half that width and height."""
    return torch.maximum((x - at[0]).abs() - width, (y - at[1]).abs() - height)


def _edge(x: Tensor, y: Tensor, degrees: float, distance: float) -> Tensor:
    """The half-plane that ends at this distance in this direction (0: right, 90: up)."""
    angle = math.radians(degrees)
    return x * math.cos(angle) + y * math.sin(angle) - distance


def _star(x: Tensor, y: Tensor) -> Tensor:
    """A pentagram: the points that lie within at least four of the five edges of its inner pentagon."""
    outside = inside = torch.full_like(x, -math.inf)
    for k in range(5):  # the two largest distances, kept in order
        edge = _edge(x, y, 90 + 72 * k, 0.32)
        outside, inside = torch.maximum(outside, edge), torch.maximum(inside, torch.minimum(outside, edge))
    return inside


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a disc on both upper sides."""
    u, v = (math.sqrt(0.5) * (x + y + 0.1), math.sqrt(0.5) * (x - y - 0.1))
    return _union(_box(u, v, 0.5, 0.5), _round(u, v, 0.5, (0.5, 0.0)), _round(u, v, 0.5, (0.0, -0.5)))


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    """An arrow that points up."""
    head = _common(-(y + 0.05), _edge(x, y, 45, 0.6), _edge(x, y, 135, 0.6))
    return _union(head, _box(x, y, 0.2, 0.5, (0.0, -0.4)))


SHAPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: _round(x, y, 0.8),  # a filled circle
    "ring": lambda x, y: _round(x, y, 0.62).abs() - 0.2,  # a circle drawn with a broad pen
    "square": lambda x, y: _box(x, y, 0.7, 0.7),
    "triangle": lambda x, y: _common(*(_edge(x, y, side, 0.5) for side in (30, 150, 270))),  # equal sides, one below
    "cross": lambda x, y: _union(_box(x, y, 0.26, 0.9), _box(x, y, 0.9, 0.26)),  # a plus sign
    "star": _star,
    "crescent": lambda x, y: _common(_round(x, y, 0.85), -_round(x, y, 0.7, (0.45, 0.0))),  # a disc without another
    "heart": _heart,
    "arrow": _arrow,
    "bars": lambda x, y: _union(*(_box(x, y, 0.24, 0.85, (at, 0.0)) for at in (-0.5, 0.5))),  # two, upright
}
CLASSES = tuple(SHAPES)


# -- from random numbers to images ----------------------------------------------------------------
def draw(index: Tensor, side: int, *, seed: int = 0, split: int = TRAIN) -> Tensor:
    """The images at `index` (N,) as uint8 (N, 3, side, side).

    Image i of a split is a function of (seed, split, i) and the side alone: the same in any batch and order,
    and on any number of threads. Its kind is i modulo ten, so every stretch of images is balanced.
    """
    images = torch.empty(len(index), 3, side, side, dtype=torch.uint8)
    for rows, part, _ in _parts(index, side, seed, split):
        images[rows] = part
    return images


def draw_masks(index: Tensor, side: int, *, seed: int = 0, split: int = TRAIN) -> Tensor:
    """The classes (N, side, side) uint8 of their pixels: 0 for backgrounds, 1 + i modulo ten where an object is."""
    inside = torch.cat([part for _, _, part in _parts(index, side, seed, split)])
    return inside * (1 + index % len(CLASSES)).to(torch.uint8)[:, None, None]


def _parts(index: Tensor, side: int, seed: int, split: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Stretches of the index, their images, and which pixels are of an object."""
    step = max(1, PIXELS_AT_ONCE // side**2)
    for start in range(0, len(index), step):
        rows = slice(start, start + step)
        part = index[rows].to(torch.int64)
        yield rows, *_draw(part, side, uniform(mix(part ^ fold(seed, split)), _COUNT))


def _draw(index: Tensor, side: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk of images from random numbers u (N, _COUNT): the cell under each pixel, then what it shows there."""
    window, order, objects = u[:, :_WINDOW], u[:, _WINDOW : _WINDOW + _CELLS], u[:, _WINDOW + _CELLS :]
    period = _between(window[:, 0], PERIOD)
    place = (torch.arange(side) + 0.5) / side - 0.5
    x = place / period[:, None] + GRID * window[:, 1:2]  # (N, side) in cells, to the right
    y = -place / period[:, None] + GRID * window[:, 2:3]  # upwards
    column, row = x.floor(), y.floor()
    cell = (column[:, None, :] % GRID * GRID + row[:, :, None] % GRID).long().flatten(1)  # (N, side * side)
    o = objects.reshape(len(u), _CELLS, _OBJECT)
    background, color = _colors(order, o)
    centre, turn, radius = _poses(o)

    def under(values: Tensor) -> Tensor:
        """Values of the cells (N, cells, ...) at each pixel (N, side, side, ...)."""
        rows = torch.arange(len(u))[:, None]
        return values[rows, cell].reshape(len(u), side, side, *values.shape[2:])

    right = (x - column)[:, None, :] - under(centre[..., 0])
    up = (y - row)[:, :, None] - under(centre[..., 1])
    cos, sin = under(turn[..., 0]), under(turn[..., 1])
    distance = _distance(index, right * cos + up * sin, up * cos - right * sin)
    cover = (0.5 - distance * under(radius * period[:, None]) * side).clamp_(0, 1)[..., None]
    images = torch.lerp(under(background), under(color), cover)
    return images.permute(0, 3, 1, 2).clamp(0, 1).mul_(255).round_().to(torch.uint8), cover[..., 0] > 0.5


def _between(u: Tensor, interval: tuple[float, float]) -> Tensor:
    return interval[0] + (interval[1] - interval[0]) * u


def _colors(order: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """(N, cells, 3) each: colours of backgrounds and objects."""
    levels = (order.argsort(1) + 0.5) / _CELLS  # every image has all levels: its mean says nothing
    luminance = _between(levels, BACKGROUND)
    # A third to two thirds of the way round from the background's: lighter or darker, never alike.
    other = (luminance + 0.35 + 0.3 * o[..., 0]) % 1
    return _color(luminance, o[..., 1:4]), _color(other, o[..., 4:7])


def _color(luminance: Tensor, u: Tensor) -> Tensor:
    """(..., 3): a colour of about this luminance."""
    return 0.1 + 0.8 * luminance[..., None] + TINT * (u - u.mean(-1, keepdim=True))


def _poses(o: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (N, cells, 2) in the cell, cosine and sine of the tilts over the radius, radii (N, cells) in cells."""
    radius = _between(o[..., 7], RADIUS)
    tilt = (TILT * (2 * o[..., 8] - 1)).double()
    # In float64, so that another platform's cosine rounds to the same float32.
    turn = torch.stack([tilt.cos(), tilt.sin()], -1).float() / radius[..., None]
    return 0.5 + PLACE * (o[..., 9:11] - 0.5), turn, radius


def _distance(index: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The signed distance of each pixel (N, side, side) from the nearest outline, in radii."""
    distance = torch.empty_like(x)
    for number, kind in enumerate(SHAPES.values()):
        rows = (index % len(CLASSES) == number).nonzero()[:, 0]
        distance[rows] = kind(x[rows], y[rows])
    return distance


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

    def masks(self, index: Sequence[int], square: Square) -> Tensor:
        """0 for backgrounds, 1 + the number of the kind for objects."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        return square.nearest(draw_masks(rows, self.side, seed=self.seed, split=self.split))


class KeptImages(TensorImages):
    """The same, drawn once and kept in memory."""

    def __init__(self, drawn: DrawnImages) -> None:
        images = draw(torch.arange(drawn.size), drawn.side, seed=drawn.seed, split=drawn.split)
        super().__init__(images, drawn.labels, CLASSES)
        self.drawn = drawn

    def masks(self, index: Sequence[int], square: Square) -> Tensor:
        """0 for backgrounds, 1 + the number of the kind for objects."""
        return self.drawn.masks(index, square)


class ShapesConfig(Schema):
    """Settings of the data source `shapes`."""

    size: int = Field(10_000, gt=0, le=MOST, description="number of training images")
    test_size: int = Field(2_000, gt=0, le=MOST, description="number of images of the labelled test split")
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
        return drawn if 3 * side**2 * size > IN_MEMORY else KeptImages(drawn)

"""The ten kinds of drawn objects, as signed distances: negative inside, in units of the object's radius.

Each function takes coordinates x (to the right) and y (up) of the same shape, with the object's centre at 0.
Distances are exact at the outline and at most too short farther off, which is what anti-aliasing needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor


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


def disc(x: Tensor, y: Tensor) -> Tensor:
    """A filled circle."""
    return _round(x, y, 0.8)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A circle drawn with a broad pen."""
    return _round(x, y, 0.62).abs() - 0.2


def square(x: Tensor, y: Tensor) -> Tensor:
    """Four equal sides."""
    return _box(x, y, 0.7, 0.7)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Three equal sides, one of them below."""
    return _common(*(_edge(x, y, degrees, 0.5) for degrees in (30, 150, 270)))


def cross(x: Tensor, y: Tensor) -> Tensor:
    """A plus sign."""
    return _union(_box(x, y, 0.26, 0.9), _box(x, y, 0.9, 0.26))


def star(x: Tensor, y: Tensor) -> Tensor:
    """A pentagram: the points that lie within at least four of the five edges of its inner pentagon."""
    outside = inside = torch.full_like(x, -math.inf)
    for k in range(5):  # the two largest distances, kept in order
        edge = _edge(x, y, 90 + 72 * k, 0.32)
        outside, inside = torch.maximum(outside, edge), torch.maximum(inside, torch.minimum(outside, edge))
    return inside


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disc without another disc on its right."""
    return _common(_round(x, y, 0.85), -_round(x, y, 0.7, (0.45, 0.0)))


def heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a disc on both upper sides."""
    u, v = (math.sqrt(0.5) * (x + y + 0.1), math.sqrt(0.5) * (x - y - 0.1))
    return _union(_box(u, v, 0.5, 0.5), _round(u, v, 0.5, (0.5, 0.0)), _round(u, v, 0.5, (0.0, -0.5)))


def arrow(x: Tensor, y: Tensor) -> Tensor:
    """An arrow that points up."""
    head = _common(-(y + 0.05), _edge(x, y, 45, 0.6), _edge(x, y, 135, 0.6))
    return _union(head, _box(x, y, 0.2, 0.5, (0.0, -0.4)))


def bars(x: Tensor, y: Tensor) -> Tensor:
    """Two upright bars side by side."""
    return _union(_box(x, y, 0.24, 0.85, (-0.5, 0.0)), _box(x, y, 0.24, 0.85, (0.5, 0.0)))


KINDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    kind.__name__: kind for kind in (disc, ring, square, triangle, cross, star, crescent, heart, arrow, bars)
}

"""What an augmentation is: groups of views, each view made from raw pixels with draws of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..config import Component
from ..data.base import ImageSpec, Pixels, Views
from .random import Draws


class Transform(Protocol):
    """Makes one view of every image of a batch; each image has its own parameters."""

    def __call__(self, pixels: Pixels, draws: Draws) -> Tensor:
        """(B, C, size, size) float32, normalised."""


@dataclass(frozen=True, slots=True)
class ViewGroup:
    """Views of one size under one name; two transforms may differ (BYOL) or agree (SwAV's crops)."""

    name: str  # "global", "local"
    size: int
    transforms: tuple[Transform, ...]  # one per view


class Augmentation(Component, ABC):
    """Turns a batch of raw pixels into named groups of views, on the device the pixels are on."""

    kind = "augmentation"

    def __init__(self, config: Any, image: ImageSpec) -> None:
        self.config = config
        self.image = image

    @abstractmethod
    def groups(self) -> Sequence[ViewGroup]:
        """The views this augmentation offers, in the order in which a method sees them."""

    def __call__(self, pixels: Pixels, draws: Draws) -> Views:
        """All views of one batch. View v of the run draws from `draws.view(v)`."""
        views, v = Views(), 0
        for group in self.groups():
            views[group.name] = []
            for transform in group.transforms:
                views[group.name].append(transform(pixels, draws.view(v)))
                v += 1
        return views

    @property
    def notes(self) -> list[str]:
        """What was left out or decided, with the reason (colour operations on non-RGB images, say)."""
        return []

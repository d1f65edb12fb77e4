"""The base of augmentations: groups of views, each view made from raw pixels with draws of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ..config.schema import Component
from ..data.base import ImageSpec, Pixels, Views
from ..draws import Draws

P = TypeVar("P", bound="Parameters")

TOGETHER_UP_TO = 2**24  # bytes of pixels, repeated for each view


class Transform(Protocol):
    """Makes one view of every image of a batch; each image has its own parameters."""

    def __call__(self, pixels: Pixels, draws: Draws) -> Tensor:
        """(B, C, size, size) float32, normalised."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The drawn parameters of one operation: fields are tensors with one row an image."""

    def rows(self: P, part: slice | Tensor) -> P:
        """The parameters of some of the images."""
        return type(self)(*(getattr(self, field.name)[part] for field in fields(self)))


class Operation(ABC, Generic[P]):
    """One random change of images. Drawing its parameters and applying them are separate, pure steps."""

    channels: frozenset[int] | None = None  # the channel counts it makes sense for; None: any

    @abstractmethod
    def sample(self, draws: Draws) -> P:
        """Parameters of every image, a function of the draws alone."""

    @abstractmethod
    def apply(self, images: Tensor, parameters: P) -> Tensor:
        """Change images (B, C, H, W), float32 in [0, 1], in place and return them; the others keep every bit."""


@dataclass(frozen=True, slots=True)
class ViewGroup:
    """Views of one size under one name; two transforms may differ (BYOL) or agree (SwAV's crops)."""

    name: str
    """"global" or "local"."""
    size: int
    """The side of the views in pixels."""
    transforms: tuple[Transform, ...]
    """One for each view."""


class Augmentation(Component, ABC):
    """Turns a batch of raw pixels into named groups of views, on the device the pixels are on.

    Call it outside mixed-precision regions: views are made in float32.
    """

    kind = "augmentation"

    def __init__(self, config: Any, image: ImageSpec) -> None:
        self.config = config
        self.image = image

    @abstractmethod
    def groups(self) -> Sequence[ViewGroup]:
        """The views this augmentation offers, in the order in which a method sees them."""

    def fit_patches(self, side: int) -> None:
        """Told before the first batch that the backbone sees patches of so many pixels, for sizes that are open."""

    def __call__(self, pixels: Pixels, draws: Draws) -> Views:
        """All views of one batch. View v of the run draws from `draws.view(v)`.

        Views by one transform are made in one go where the images are small: calls cost more than pixels there.
        """
        views, v = Views(), 0
        for group in self.groups():
            made: list[Tensor] = []
            for transform, alike in groupby(group.transforms):
                each = [draws.view(v + i) for i in range(len(list(alike)))]
                if pixels.images.numel() * len(each) > TOGETHER_UP_TO:
                    made += [transform(pixels, of_one) for of_one in each]
                else:
                    made += transform(pixels.repeat(len(each)), Draws.join(each)).chunk(len(each))
                v += len(each)
            views[group.name] = made
        return views

    @property
    def notes(self) -> list[str]:
        """Operations left out and values decided, with the reason (no colour operations on non-RGB images, say)."""
        return []

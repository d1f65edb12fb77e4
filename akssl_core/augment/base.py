"""The base of augmentations: groups of views, each view made from raw pixels with draws of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import Component
from ..data.base import ImageSpec, Pixels, Views, sent
from ..draws import Draws

P = TypeVar("P", bound="Parameters")


class Transform(Protocol):
    """Makes one view of every image of a batch; each image has its own parameters."""

    def __call__(self, pixels: Pixels, draws: Draws) -> Tensor:
        """(B, C, size, size) float32, normalised."""


class ManyViews(ABC):
    """A transform that makes several views of every image in one go."""

    @abstractmethod
    def many(self, pixels: Pixels, draws: Sequence[Draws]) -> Sequence[Tensor]:
        """One view (B, C, size, size) of every image for each of the draws."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The drawn parameters of one operation: fields are tensors with one row a view, on the host."""

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def rows(self: P, part: slice | Tensor) -> P:
        """The parameters of some of the views."""
        return type(self)(*(tensor[part] for tensor in self.tensors()))


class Operation(ABC, Generic[P]):
    """One random change of images: drawing, preparing on the host and changing are separate, pure steps.

    The host knows what is drawn, and so every shape: on a GPU nobody waits for an answer.
    """

    channels: frozenset[int] | None = None  # the channel counts it makes sense for; None: any

    @abstractmethod
    def sample(self, draws: Draws) -> P:
        """Parameters of every image, a function of the draws alone."""

    @abstractmethod
    def prepare(self, parameters: P) -> tuple[Tensor, ...]:
        """What `change` needs: which images change, as indices (n,), and tensors that say how."""

    @abstractmethod
    def change(self, images: Tensor, rows: Tensor, *how: Tensor) -> Tensor:
        """Change images (B, C, H, W), float32 in [0, 1], in place and return them; the others keep every bit."""

    def apply(self, images: Tensor, parameters: P) -> Tensor:
        """Change images in place by drawn parameters."""
        return self.change(images, *together([self.prepare(parameters)], images.device)[0])


def together(groups: Sequence[Sequence[Tensor]], device: torch.device) -> list[list[Tensor]]:
    """The same tensors of the host on a device, by one copy that the host does not wait for."""
    tensors = [tensor.contiguous() for group in groups for tensor in group]
    flat = [F.pad(tensor.flatten().view(torch.uint8), (0, -tensor.nbytes % 8)) for tensor in tensors]  # aligned
    parts = torch.split(sent(torch.cat(flat), device), [len(part) for part in flat])
    there = iter([p[: t.nbytes].view(t.dtype).view(t.shape) for p, t in zip(parts, tensors, strict=True)])
    return [[next(there) for _ in group] for group in groups]


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
        """All views of one batch. View v of the run draws from `draws.view(v)`."""
        views, v = Views(), 0
        for group in self.groups():
            made: list[Tensor] = []
            for transform, alike in groupby(group.transforms):
                each = [draws.view(v + i) for i in range(len(list(alike)))]
                if isinstance(transform, ManyViews):
                    made += transform.many(pixels, each)
                else:
                    made += [transform(pixels, of_one) for of_one in each]
                v += len(each)
            views[group.name] = made
        return views

    @property
    def notes(self) -> list[str]:
        """Operations left out and values decided, with the reason (no colour operations on non-RGB images, say)."""
        return []

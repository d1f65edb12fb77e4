"""Views of images: operations drawn per image and per view, and the augmentations made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..draws import Draws
from ..hookspecs import hookimpl
from .base import Augmentation, Operation, Parameters, Transform, ViewGroup
from .blur import GaussianBlur
from .color import ColorJitter, Grayscale, Normalize, Solarize
from .crop import RandomResizedCrop
from .per_image import PerImage, PerImageAugmentation
from .policy import PolicyTransform, ViewPolicy
from .views import Asymmetric, MultiCrop, Pair

if TYPE_CHECKING:
    from ..config.registry import Registry

__all__ = [
    "Asymmetric",
    "Augmentation",
    "ColorJitter",
    "Draws",
    "GaussianBlur",
    "Grayscale",
    "MultiCrop",
    "Normalize",
    "Operation",
    "Pair",
    "Parameters",
    "PerImage",
    "PerImageAugmentation",
    "PolicyTransform",
    "RandomResizedCrop",
    "Solarize",
    "Transform",
    "ViewGroup",
    "ViewPolicy",
]


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the augmentations that a config can name."""
    registry.add(Pair)
    registry.add(Asymmetric)
    registry.add(MultiCrop)

"""Views of images: operations drawn per image and per view, and the augmentations made of them."""

from __future__ import annotations

from ..config.registry import Registry
from ..hookspecs import hookimpl
from .base import Augmentation, Operation, Parameters, Transform, ViewGroup
from .color import ColorJitter, GaussianBlur, Grayscale, Normalize, Solarize
from .crop import RandomResizedCrop
from .policy import PolicyTransform, ViewPolicy
from .views import Asymmetric, MultiCrop, NamedViews, Pair, PerImage, PerImageAugmentation

__all__ = [
    "Asymmetric", "Augmentation", "ColorJitter", "GaussianBlur", "Grayscale", "MultiCrop", "NamedViews", "Normalize",
    "Operation", "Pair", "Parameters", "PerImage", "PerImageAugmentation", "PolicyTransform", "RandomResizedCrop",
    "Solarize", "Transform", "ViewGroup", "ViewPolicy",
]  # fmt: skip


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the augmentations that a config can name."""
    for augmentation in (Pair, NamedViews, Asymmetric, MultiCrop):
        registry.add(augmentation)

"""Backbones: networks from images to features, ready-made or around a module of your own."""

from __future__ import annotations

from ..config.registry import Registry
from ..hookspecs import hookimpl
from .base import Backbone, Counterpart, Features, Keys, Stock, TokenBackbone
from .resnet import SMALL, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, ResNetTiny, ResNeXt50, WideResNet50
from .vit import TOKEN_DIALECTS, ViTBase, ViTMicro, ViTSmall, ViTTiny
from .wrap import WrappedBackbone

__all__ = [
    "TOKEN_DIALECTS", "Backbone", "Counterpart", "Features", "Keys", "Stock", "TokenBackbone", "WrappedBackbone",
    "default_backbone",
]  # fmt: skip

READY_MADE = (
    ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, WideResNet50, ResNeXt50, ResNetTiny,
    ViTMicro, ViTTiny, ViTSmall, ViTBase,
)  # fmt: skip


def default_backbone(accepts: type[Backbone], image_size: int) -> tuple[str, str]:
    """The backbone for a run whose user names none, and the reason."""
    if not issubclass(ResNet18, accepts):
        return ViTTiny.name, "the method works on patch tokens"
    if image_size <= SMALL:
        return ResNetTiny.name, f"{image_size} px is at most {SMALL} px, where a narrow network is enough to start"
    return ResNet18.name, f"{image_size} px is over {SMALL} px"


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register the ready-made backbones."""
    for component in READY_MADE:
        registry.add(component)

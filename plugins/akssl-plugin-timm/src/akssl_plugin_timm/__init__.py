"""Every backbone of timm by its name: `timm/resnet18`, `timm/vit_tiny_patch16_224`, `timm/convnext_atto`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akssl_core import hookimpl

if TYPE_CHECKING:
    from akssl_core import Component


@hookimpl
def akssl_resolve(kind: str, name: str) -> type[Component] | None:
    """Answer for every backbone whose name begins with `timm/`."""
    family, _, model = name.partition("/")
    if kind != "backbone" or family.strip().lower() != "timm":
        return None
    from .models import component  # here, because timm and torch take seconds and most commands build no network

    return component(model)

"""Small networks of timm, and small pictures for them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import akssl_core
from akssl_core import ImageSpec


class Headless(nn.Module):
    """What some encoders of timm lack."""

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 4, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Buffered(Headless):
    """A buffer of its own, beside those of its layers."""

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__(in_chans, num_classes)
        self.register_buffer("scale", torch.ones(4, 1, 1))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3))


@timm.models.register_model
def akssl_headless(pretrained: bool = False, in_chans: int = 3, num_classes: int = 0, **_: Any) -> nn.Module:
    return Headless(in_chans, num_classes)


@timm.models.register_model
def akssl_buffered(pretrained: bool = False, in_chans: int = 3, num_classes: int = 0, **_: Any) -> nn.Module:
    return Buffered(in_chans, num_classes)


@pytest.fixture(scope="session")
def build():
    """A network in evaluation mode, the same weights at every call."""

    def made(model: str, size: int = 32, channels: int = 3, **settings: Any) -> Any:
        torch.manual_seed(0)
        image = ImageSpec(size, channels, (0.5,) * channels, (0.2,) * channels)
        return akssl_core.build("backbone", f"timm/{model}", image, **settings).eval()

    return made


@pytest.fixture(scope="session")
def pictures():
    """Noise, the same at every call."""

    def made(size: int = 32, channels: int = 3, count: int = 2) -> Tensor:
        return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))

    return made


@pytest.fixture(scope="module")
def vit(build):
    """A ViT of 4 x 4 patches; nobody may change it."""
    return build("vit_tiny_patch16_224", patch_size=8)

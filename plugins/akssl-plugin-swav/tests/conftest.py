"""A small SwAV over a small backbone, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from akssl_plugin_swav import SwAV
from torch import Tensor, nn

import akssl_core
from akssl_core import Backbone, Batch, Features, ImageSpec, Schema, Views


class Toy(Backbone):
    """A backbone of width 12 over images of any size, without batch norm; it counts what passes."""

    name = "toy"
    embed_dim = 12

    def __init__(self) -> None:
        super().__init__(Schema(), ImageSpec(8, 3, (0.5,) * 3, (0.25,) * 3))
        self.conv = nn.Conv2d(3, 12, 3)
        self.seen: list[tuple[int, ...]] = []

    def features(self, images: Tensor) -> Features:
        self.seen.append((len(images), images.shape[-1]))
        return Features(self.conv(images).relu().mean((2, 3)))


class Recorder(nn.Module):
    """The loss, remembering what it was given."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, scores: list[Tensor], codes: list[Tensor]) -> Tensor:
        self.scores, self.codes = scores, codes
        return self.loss(scores, codes)


@pytest.fixture
def make() -> Callable[..., SwAV]:
    def build(backbone: Backbone | None = None, **settings: Any) -> SwAV:
        torch.manual_seed(0)
        small = {"hidden_dim": 20, "out_dim": 16, "prototypes": 5, "queue_size": 0, **settings}
        method = akssl_core.build("method", "swav", backbone or Toy(), **small)
        assert isinstance(method, SwAV)
        method.loss = Recorder(method.loss)
        return method

    return build


@pytest.fixture
def batch() -> Callable[..., Batch]:
    def draw(size: int = 6, local: int = 3, seed: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        views = Views({"global": [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(2)]})
        if local:
            views["local"] = [torch.randn(size, 3, 5, 5, generator=generator) for _ in range(local)]
        return Batch(views, torch.arange(size))

    return draw

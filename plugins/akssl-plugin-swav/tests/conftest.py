"""A small SwAV over a small backbone, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from akssl_plugin_swav import SwAV
from torch import Tensor, nn

import akssl_core
from akssl_core import Backbone, Batch
from akssl_core.testing import ToyBackbone, toy_batch


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
        method = akssl_core.build("method", "swav", backbone or ToyBackbone(batch_norm=False), **small)
        assert isinstance(method, SwAV)
        method.loss = Recorder(method.loss)
        return method

    return build


@pytest.fixture
def batch() -> Callable[..., Batch]:
    def draw(size: int = 6, local: int = 3, seed: int = 1) -> Batch:
        return toy_batch(size, local=local, local_size=5, seed=seed)

    return draw

"""What an encoder has learned: features, k-NN accuracy, and whether they have collapsed. Nothing here trains.

Probing leaves no trace: the encoder's mode, its statistics and the random state are as they were before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone.base import Backbone
from .data.base import ImageSet
from .errors import DataError

if TYPE_CHECKING:
    from .data.preprocess import Preprocess

RAW_SIDE = 32  # raw pixels are compared at this side at most: 224 px would be 150 528 numbers an image
QUERIES_AT_ONCE, BANK_AT_ONCE = 512, 8192  # one block of similarities: 16 MiB, and 32 MiB of sort keys
_STEPS = 2**20  # similarities closer than 1e-6 count as equal, so that rounding errors decide no tie
_INDICES = 2**32  # low half of a sort key


# -- features -------------------------------------------------------------------------------------
def embed(
    encoder: Backbone, images: ImageSet, preprocess: Preprocess, *, batch_size: int = 256, device: torch.device
) -> Tensor:
    """Features (N, D) of all images in their order, float32 on the CPU.

    The encoder, which must be on `device`, runs in eval mode without gradients and in float32; afterwards each
    of its modules is back in the mode it was in.
    """
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format

    def features(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        return encoder(batch.contiguous(memory_format=layout) if batch.ndim == 4 else batch)

    with _eval_mode(encoder), torch.no_grad():
        return _rows(features, images, preprocess, batch_size, encoder.embed_dim)

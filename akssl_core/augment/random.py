"""Counter-based randomness: a draw is a hash of (seed, epoch, image index, view, operation, number).

Nothing is consumed and nothing is stored, so batches are the same for any worker count, batch split,
process count and after a resume.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..hashing import fold, mix, uniform


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of one batch: one key an image, told apart by view and operation."""

    keys: Tensor  # (B,) int64

    @classmethod
    def of(cls, seed: int, epoch: int, index: Tensor) -> Draws:
        """The draws for images `index` (B,) in this epoch of a run with this seed."""
        return cls(mix(mix(index.to(torch.int64)) ^ fold(seed, epoch)))

    def view(self, v: int) -> Draws:
        """The draws for view v of the same images."""
        return replace(self, keys=mix(self.keys ^ fold(1, v)))

    @classmethod
    def join(cls, draws: Sequence[Draws]) -> Draws:
        """The draws for several batches, one after the other."""
        return cls(torch.cat([part.keys for part in draws]))

    def uniform(self, op: str, count: int) -> Tensor:
        """(B, count) float32, uniform in [0, 1), for one named operation."""
        return uniform(mix(self.keys ^ fold(2, zlib.crc32(op.encode()))), count)

    def seeds(self, op: str) -> Tensor:
        """(B,) int64, not negative: seeds for generators that one named operation drives itself."""
        return mix(self.keys ^ fold(3, zlib.crc32(op.encode()))) & ((1 << 63) - 1)

"""Counter-based randomness: a draw is a hash of (seed, epoch or step, image index, view, operation, number).

Nothing is consumed and nothing is stored, so batches are the same for any worker count, batch split,
process count and after a resume.

The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators),
on int64, elementwise. It gives the same numbers on every platform, device and number of threads.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64
_MIX1 = -4658895280553007687
_MIX2 = -7723592293110705685


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """The hash of each int64: every input bit reaches every output bit."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@functools.lru_cache(maxsize=1024)  # a batch asks for the same few keys, and one takes 100 us
def fold(*parts: int) -> int:
    """One int64 from several integers, order-sensitive; the key of a run, an epoch or a step."""
    key = torch.zeros((), dtype=torch.int64)
    for part in parts:
        key = mix(key ^ mix(torch.tensor(part, dtype=torch.int64)))
    return int(key)


def uniform(keys: Tensor, count: int) -> Tensor:
    """(N, count) float32, uniform in [0, 1), for keys (N,) int64."""
    numbers = torch.arange(count, device=keys.device, dtype=torch.int64)
    bits = mix(keys[:, None] ^ mix(numbers)[None, :])
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of one batch: one key an image, told apart by view and operation."""

    keys: Tensor
    """(B,) int64, one an image."""

    @classmethod
    def of(cls, seed: int, epoch: int, index: Tensor) -> Draws:
        """The draws for images `index` (B,) in this epoch of a run with this seed."""
        return cls(mix(mix(index.to(torch.int64)) ^ fold(seed, epoch)))

    @classmethod
    def of_step(cls, seed: int, step: int, index: Tensor) -> Draws:
        """The draws for images `index` (B,) inside an optimizer step, unlike those of any view."""
        return cls(mix(mix(index.to(torch.int64)) ^ fold(4, seed, step)))

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

    def normal(self, op: str, count: int) -> Tensor:
        """(B, count) float32, from a standard normal distribution, for one named operation (Box and Muller 1958)."""
        radius, angle = self.uniform(op, 2 * count).chunk(2, 1)
        return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()

    def seeds(self, op: str) -> Tensor:
        """(B,) int64, not negative: seeds for generators that one named operation drives itself."""
        return mix(self.keys ^ fold(3, zlib.crc32(op.encode()))) & ((1 << 63) - 1)


_STEP: ContextVar[tuple[Draws, Iterator[int]] | None] = ContextVar("step", default=None)


@contextmanager
def drawing(draws: Draws) -> Iterator[None]:
    """While it lasts, layers draw `for_rows` of these images: those of a training step."""
    token = _STEP.set((draws, itertools.count()))
    try:
        yield
    finally:
        _STEP.reset(token)


def for_rows(rows: int, op: str, count: int, device: torch.device) -> Tensor:
    """(rows, count) float32, uniform in [0, 1), for a layer that sees images of a step and not which they are.

    They follow from seed, step and image where `rows` are whole views of the batch, one after the other; each call in
    a step has others. Else, and outside of a step, they are from torch's generator.
    """
    step = _STEP.get()
    if step is None or rows % len(step[0].keys):
        return torch.rand(rows, count, device=device)
    draws, calls = step
    views = [draws.view(v) for v in range(rows // len(draws.keys))]
    return Draws.join(views).uniform(f"{op} {next(calls)}", count)

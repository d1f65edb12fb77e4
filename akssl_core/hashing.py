"""Random numbers that are a function of their place: a hash of keys instead of a generator with a state.

The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators),
on int64, elementwise. It gives the same numbers on every platform, device and number of threads.
"""

from __future__ import annotations

import functools

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

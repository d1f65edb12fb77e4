"""SplitMix64's mixing function on tensors: the hash under every draw that is a function of its place."""

from __future__ import annotations

from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64 (the SplitMix64 increment)
_MIX1 = -4658895280553007687  # SplitMix64's multipliers (Steele, Lea, Flood 2014), as int64
_MIX2 = -7723592293110705685


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, elementwise: every input bit reaches every output bit."""
    x = x + _GOLDEN
    x = (x ^ shift(x, 30)) * _MIX1
    x = (x ^ shift(x, 27)) * _MIX2
    return x ^ shift(x, 31)

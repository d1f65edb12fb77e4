"""Two losses on the same inputs: values and gradients compared, for `test_parity.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-5  # relative: of the value, and of the length of each gradient
LossFunction = Callable[..., Tensor]


def graded(loss: LossFunction, inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[float, list[Tensor | None]]:
    """The value of a loss of `inputs` in some precision, and its gradient for each of them."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    value = loss(*leaves).squeeze()
    return value.item(), list(torch.autograd.grad(value, leaves, allow_unused=True))


def assert_parity(
    ours: LossFunction,
    theirs: LossFunction,
    inputs: Sequence[Tensor],
    *,
    factor: float = 1.0,
    offset: float = 0.0,
    targets: Collection[int] = (),
) -> None:
    """`ours = factor * theirs + offset`, with the gradients that belong to it, and none of ours for the targets."""
    value, gradients = graded(ours, inputs, torch.float32)
    expected, expected_gradients = graded(theirs, inputs, torch.float64)
    assert value == pytest.approx(factor * expected + offset, rel=TOLERANCE)
    for i, (gradient, wanted) in enumerate(zip(gradients, expected_gradients, strict=True)):
        if i in targets:
            assert gradient is None, f"target {i} receives a gradient"
            continue
        assert gradient is not None, f"input {i} receives no gradient"
        assert wanted is not None
        wanted = factor * wanted
        assert wanted.norm() > 0
        assert (gradient - wanted).norm() <= TOLERANCE * wanted.norm()


def rows(*shape: int, count: int, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    """`count` random float32 tensors of a shape."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for _ in range(count)]


def unit_rows(count: int, dim: int, seed: int = 1) -> Tensor:
    """Random unit rows (count, dim)."""
    return F.normalize(rows(count, dim, count=1, seed=seed)[0], dim=1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of a (N, D) with each row of b (M, D), (N, M), by the definition."""
    return (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None, :])

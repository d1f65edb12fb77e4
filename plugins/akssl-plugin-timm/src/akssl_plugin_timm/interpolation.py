"""Interpolation of positions whose gradient is the same every time, on a GPU too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ByMatrices(TorchFunctionMode):
    """While it lasts, bicubic interpolation is a product with a matrix for each side.

    The gradient of torch's own has no deterministic kernel on CUDA, and timm calls it inside of its models.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        bicubic = func is F.interpolate and kwargs.get("mode") == "bicubic" and kwargs.get("size") is not None
        return by_matrices(*args, **kwargs) if bicubic else func(*args, **kwargs)


def by_matrices(images: Tensor, size: Sequence[int], **how: Any) -> Tensor:
    """Images (B, C, H, W) at another size, as `torch.nn.functional.interpolate` makes them."""
    with torch.no_grad():
        rows, columns = (_matrix(side, out, images, how) for side, out in zip(images.shape[2:], size, strict=True))
    return torch.einsum("hi,wj,bcij->bchw", rows, columns, images)


def _matrix(side: int, out: int, like: Tensor, how: dict[str, Any]) -> Tensor:
    """Weights (out, side) along one side."""
    identity = torch.eye(side, device=like.device, dtype=like.dtype)[None, None]
    return F.interpolate(identity, size=(out, side), **how)[0, 0]

"""Batch norms whose statistics are those of the whole batch, over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .collectives import gather, world

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def shared_statistics(module: nn.Module) -> Iterator[None]:
    """Every plain batch norm in a module shares its statistics with the other processes, while this lasts.

    Two processes with B images each then normalise as one with 2B. Classes are exchanged, nothing else; a class of a
    user's own keeps what it does, and in one process nothing happens at all.
    """
    parts = [part for part in module.modules() if type(part) in PLAIN] if world() > 1 else []
    kinds = [type(part) for part in parts]
    for part in parts:
        part.__class__ = _Synchronised
    try:
        yield
    finally:
        for part, kind in zip(parts, kinds, strict=True):
            part.__class__ = kind


class _Synchronised(_BatchNorm):
    """A batch norm over (N, C, ...) of all ranks, each with as many rows. Runs on a CPU too, unlike torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.dim())]
        exact = x.float()
        here = torch.stack([exact.mean(over), exact.var(over, correction=0)])
        means, variances = gather(here[None]).unbind(1)  # (world, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        self._remember(mean, variance, world() * x.numel() // x.shape[1])
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return torch.addcmul(shift.view(shape), exact, scale.view(shape)).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)

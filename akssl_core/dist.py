"""Collectives over the processes of a run. In one process each of them is the identity.

Every process holds as many rows as every other. Gradients follow one rule: the backward pass of a collective
sums over ranks, and DDP then averages, so that a loss over gathered rows has the gradient of one process that
holds the whole batch.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _grouped() else 0


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _grouped() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; backward sums the gradients that all ranks have for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0]).chunk(world())[rank()]


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


def _summed(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def gather(x: Tensor) -> Tensor:
    """The rows (n, ...) of all ranks, (world * n, ...), in rank order. Differentiable: backward sums over ranks."""
    if world() == 1:
        return x
    rows: Tensor = _Gather.apply(x)
    return rows


def mean(x: Tensor) -> Tensor:
    """The average over ranks of a floating tensor of any shape. Differentiable."""
    if world() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total / world()


def start(device: str | torch.device, *, init_method: str = "env://") -> None:
    """Join the process group that torchrun describes in the environment: nccl on CUDA, gloo on CPU.

    A process that was not started by torchrun, or that has joined already, is left as it is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _grouped():
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(local_rank())
    number = int(os.environ["RANK"])
    distributed.init_process_group(backend, init_method=init_method, rank=number, world_size=size)


def stop() -> None:
    """Leave the process group, if there is one."""
    if _grouped():
        distributed.destroy_process_group()


def wrap(module: nn.Module) -> nn.Module:
    """The module under DDP; in one process the module itself.

    Every trainable parameter must take part in the loss. Buffers are equal on all ranks because they are fed from
    `gather` and `mean` alone, so DDP does not send them before each forward pass.
    """
    if world() == 1:
        return module
    model = DistributedDataParallel(module)
    # The argument of this name is deprecated since torch 2.13; the attribute works in all versions.
    model.broadcast_buffers = False
    return model


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside this context a wrapped module keeps its gradients to itself: for all but the last micro-batch."""
    if isinstance(module, DistributedDataParallel):
        context: AbstractContextManager[None] = module.no_sync()
        return context
    return nullcontext()

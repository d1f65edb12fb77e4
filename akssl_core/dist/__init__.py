"""Collectives over the processes of a run. In one process each of them is the identity.

Every process holds as many rows as every other. Gradients follow one rule: the backward pass of a collective
sums over ranks, and DDP then averages, so that a loss over gathered rows has the gradient of one process that
holds the whole batch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Group(Protocol):
    """The part of a process group that these functions need."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def world(self) -> int:
        """How many ranks there are."""

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """The tensor of every rank, in rank order."""

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, as a tensor of its own."""


class _Torch:
    """The group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def all_gather(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.world)]
        distributed.all_gather(parts, x.contiguous())
        return parts

    def all_sum(self, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class Imagined:
    """The first of several ranks of which none was started: how a run of several processes is looked at in one."""

    rank = 0

    def __init__(self, world: int) -> None:
        self.world = world

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """As if every rank had the same."""
        return [x] * self.world

    def all_sum(self, x: Tensor) -> Tensor:
        """As if every rank had the same."""
        return x * self.world


_thread = threading.local()


@contextmanager
def acting_in(group: Group) -> Iterator[None]:
    """Within this context the collectives of this thread go to `group`: how a test plays several ranks at once."""
    _thread.group = group
    try:
        yield
    finally:
        del _thread.group


def _group() -> Group:
    """The group this thread is in; a process that trains alone is one by itself."""
    stand_in: Group | None = getattr(_thread, "group", None)
    return stand_in or (_Torch() if _grouped() else Imagined(1))


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return _group().rank


def world() -> int:
    """How many processes train together."""
    return _group().world


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """How many of the processes are on this machine: all, unless a launcher says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world()))


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; backward sums the gradients that all ranks have for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat(_group().all_gather(x.detach()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _group().all_sum(grads[0].detach()).chunk(world())[rank()]


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _group().all_sum(x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _group().all_sum(grads[0].detach())


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


def any_rank(flag: bool) -> bool:
    """Whether any process says yes. The answer travels from CPU to CPU, so that no GPU is waited for."""
    return flag if world() == 1 else bool(gather(torch.tensor([float(flag)])).any())


def from_main(text: str) -> str:
    """The main process's text, in every process; at most a few thousand bytes."""
    if world() == 1:
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    longest = int(gather(torch.tensor([len(data)])).max())
    rows = gather(torch.nn.functional.pad(data, (0, longest - len(data)))[None])
    return bytes(rows[0].tolist()).rstrip(b"\0").decode()


def lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process of the group is gone."""
    kind = getattr(distributed, "DistError", ())  # which a torch without torch.distributed lacks
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(error, kind) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def start(device: str | torch.device, *, init_method: str = "env://") -> bool:
    """Join the process group that torchrun describes in the environment: nccl for tensors on CUDA, gloo for the CPU's.

    A process that was not started by torchrun, or that has joined already, is left as it is. Returns whether it joined.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _grouped():
        return False
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_rank())
    backend, number = "cpu:gloo,cuda:nccl" if on_gpu else "gloo", int(os.environ["RANK"])
    distributed.init_process_group(backend, init_method=init_method, rank=number, world_size=size)
    return True


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
    model.broadcast_buffers = False  # the argument is deprecated since torch 2.13; this works in all versions
    return model


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside this context a wrapped module keeps its gradients to itself: for all but the last micro-batch."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def shared_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """Every plain batch norm in a module shares its statistics with the other processes, while this lasts.

    Two processes with B images each then normalise as one with 2B. Classes are exchanged, nothing else; a class of a
    user's own keeps what it does, and in one process nothing happens at all.
    """
    return exchanged(module, dict.fromkeys(PLAIN, _Synchronised) if world() > 1 else {})


@contextmanager
def exchanged(module: nn.Module, kinds: Mapping[type, type]) -> Iterator[None]:
    """Parts of a module that are of exactly these classes have the others, while this lasts."""
    parts = [(part, type(part)) for part in module.modules() if type(part) in kinds]
    for part, kind in parts:
        part.__class__ = kinds[kind]
    try:
        yield
    finally:
        for part, kind in parts:
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

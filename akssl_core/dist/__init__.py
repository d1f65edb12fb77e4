"""Collectives over the processes of a run. In one process each of them is the identity.

Every process holds as many rows as every other. Gradients follow one rule: the backward pass of a collective
sums over ranks, and DDP then averages, so that a loss over gathered rows has the gradient of one process that
holds the whole batch.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, shown

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
WAIT = timedelta(hours=1)  # at a collective, before a process counts as lost; the main one alone writes and searches
SETTLE = 0.2  # seconds in which threads let go of what they have computed
LAUNCHERS = "torchrun, srun and --devices set these variables; without them, unset WORLD_SIZE."
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Group(Protocol):
    """The part of a process group that these functions need."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def world(self) -> int:
        """How many ranks there are."""

    def all_gather(self, x: Tensor) -> Tensor:
        """The rows (n, ...) of every rank in rank order, (world * n, ...)."""

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, as a tensor of its own."""


def _gather_into(rows: Tensor, x: Tensor) -> None:
    """One collective into one tensor, under the name that it has since torch 2.14 or the one before."""
    newest = getattr(distributed, "all_gather_single", None)
    (newest or distributed.all_gather_into_tensor)(rows, x)


class _Torch:
    """The group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def all_gather(self, x: Tensor) -> Tensor:
        rows = x.new_empty(self.world * len(x), *x.shape[1:])
        _gather_into(rows, x.contiguous())
        return rows

    def all_sum(self, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class Imagined:
    """The first of several ranks of which none was started: how a run of several processes is looked at in one."""

    rank = 0

    def __init__(self, world: int) -> None:
        self.world = world

    def all_gather(self, x: Tensor) -> Tensor:
        """As if every rank had the same."""
        return torch.cat([x] * self.world)

    def all_sum(self, x: Tensor) -> Tensor:
        """As if every rank had the same."""
        return x * self.world


_thread = threading.local()


@contextmanager
def acting_in(group: Group) -> Iterator[None]:
    """Within this context the collectives of this thread go to `group`: how a test plays several ranks at once."""
    before: Group | None = getattr(_thread, "group", None)
    _thread.group = group
    try:
        yield
    finally:
        _thread.group = before


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
    """The number of this process on its machine, which is the number of its GPU; 0 without a launcher."""
    return _number("LOCAL_RANK", "0")


def _number(name: str, otherwise: str) -> int:
    """A number that a launcher sets, or what holds without it."""
    text = os.environ.get(name, otherwise)
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ConfigError(f"{name}: expected a launcher's whole number, got {shown(text)}. {LAUNCHERS}")
    return int(text)


def expected() -> int:
    """How many processes train together, once all that a launcher has started have joined."""
    return max(world(), _number("WORLD_SIZE", "1"))


def local_world() -> int:
    """How many of them are on this machine: all, unless a launcher says otherwise."""
    return _number("LOCAL_WORLD_SIZE", str(expected()))


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; backward sums the gradients that all ranks have for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _group().all_gather(x.detach())

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


_met: dict[str, Any] = {}  # where processes meet stays open: one may begin its next run while another ends its last
_starts = itertools.count()


def start(device: str | torch.device, *, init_method: str = "env://") -> bool:
    """Join the process group that a launcher describes in the environment: gloo for tensors on the CPU, beside it nccl
    for those on CUDA and xccl for those on XPU.

    A process that was started alone, or that has joined already, is left as it is. Returns whether it joined.

    Raises:
        ConfigError: RANK, WORLD_SIZE or MASTER_PORT is not what a launcher sets.
    """
    size = _number("WORLD_SIZE", "1")
    if size == 1 or _grouped():
        return False
    if (number := _number("RANK", "")) >= size:
        raise ConfigError(f"RANK: process {number} of WORLD_SIZE={size}, counted from 0, cannot be. {LAUNCHERS}")
    port = os.environ.get("MASTER_PORT", "1")
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 2**16:
        raise ConfigError(f"MASTER_PORT: expected a free port, a whole number from 1 to 65535, got {shown(port)}.")
    kind, backend, own = torch.device(device).type, "gloo", None
    if kind in BACKENDS:
        own = torch.device(kind, local_rank())
        getattr(torch, kind).set_device(own)
        backend = f"cpu:gloo,{kind}:{BACKENDS[kind]}"
    if init_method not in _met:
        _met[init_method] = next(distributed.rendezvous(init_method, number, size))[0]  # type: ignore[attr-defined]
    store = distributed.PrefixStore(str(next(_starts)), _met[init_method])  # type: ignore[attr-defined] # torch's lists
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=size, timeout=WAIT, device_id=own
    )
    return True


def stop() -> None:
    """Leave the process group, if there is one.

    A thread of gloo's may still hold the tensors of its last collective, and needs Python to let go of them. A process
    that ends before that is aborted (pytorch/pytorch#190489), and DDP and FSDP keep the group that would wait for it.
    """
    if _grouped():
        distributed.destroy_process_group()
        time.sleep(SETTLE)


def wrap(module: nn.Module) -> nn.Module:
    """The module under DDP; in one process the module itself.

    Every trainable parameter must take part in the loss. Buffers are equal on all ranks because they are fed from
    `gather` and `mean` alone, so DDP does not send them before each forward pass.
    """
    if world() == 1:
        return module
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)  # gradients are reduced where they lie
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
        if _has_kernels(x):
            statistics = self.running_mean, self.running_var, self._share(), self.eps
            out: Tensor = _Fused.apply(x, self.weight, self.bias, *statistics)
            return out
        over = [0, *range(2, x.dim())]
        exact = x.float()
        here = torch.stack([exact.mean(over), exact.var(over, correction=0)])
        means, variances = gather(here[None]).unbind(1)  # (world, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        self._remember(mean, variance, world() * x.numel() // x.shape[1], self._share())
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return torch.addcmul(shift.view(shape), exact, scale.view(shape)).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""

    def _share(self) -> float:
        """The part of the running statistics that a batch replaces; one more batch has been seen."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return 0.0 if self.num_batches_tracked is None else 1 / float(self.num_batches_tracked)
        return self.momentum

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int, share: float) -> None:
        """Move the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)


def _has_kernels(x: Tensor) -> bool:
    """Whether torch's kernels for batch norms over several processes take a tensor: on CUDA alone."""
    return x.is_cuda


class _Fused(torch.autograd.Function):
    """`_Synchronised` in five kernels and two collectives, without a wait of the host; every rank has as many rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        share: float,
        eps: float,
    ) -> Tensor:
        ctx.layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        x = x.contiguous(memory_format=ctx.layout)
        here = torch.stack(torch.batch_norm_stats(x, eps))
        means, scales = _group().all_gather(here[None]).unbind(1)  # (world, C) each; a scale is 1 / deviation
        rows = means.new_full((len(means),), x.numel() // x.shape[1])
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            x, means, scales, running_mean, running_var, share, eps, rows
        )
        ctx.save_for_backward(x, weight, mean, scale, rows.to(torch.int32))
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, rows = ctx.saved_tensors
        grad, (_, *wanted) = grads[0].contiguous(memory_format=ctx.layout), ctx.needs_input_grad[:3]
        sums, products, *own = torch.batch_norm_backward_reduce(grad, x, mean, scale, weight, True, *wanted)
        sums, products = _group().all_sum(torch.stack([sums, products])).unbind()
        of_x = torch.batch_norm_backward_elemt(grad, x, mean, scale, weight, sums, products, rows)
        of_weight, of_bias = (one if asked else None for one, asked in zip(own, wanted, strict=True))
        return of_x, of_weight, of_bias, None, None, None, None

"""Parameters shared out over the processes (FSDP2), for networks that are too large for one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .. import dist


def shard(module: nn.Module, chains: Iterable[Sequence[nn.Module]], device: torch.device, dtype: torch.dtype) -> None:
    """Leave this process its share of every parameter; each part of a chain is put together only while it computes.

    The parts of a chain run one after the other, so each is asked for while the one before computes. They travel and
    compute in `dtype`, all else, batch norms above all, in its own; shares, and sums of gradients, stay in float32.
    Gradients are averaged over the processes, as DDP does. Buffers stay whole.
    """
    mesh = init_device_mesh(device.type, (dist.world(),))
    short = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for chain in chains:
        for part in chain:
            normed = any(isinstance(inner, _BatchNorm) for inner in part.modules())
            fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy() if normed else short)
        for part, following in pairwise(chain):
            part.set_modules_to_forward_prefetch([following])  # type: ignore[operator] # which `fully_shard` has added
    fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters of a module are shared out."""
    return isinstance(module, FSDPModule)


def are_whole(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all parameters of an optimizer's groups are whole: torch's fused SGD takes no shares."""
    return not any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])


def sync_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass averages gradients over the processes."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)


def gathered(tensors: Mapping[str, Tensor], *, everywhere: bool = False) -> dict[str, Tensor]:
    """The tensors put together, in the main process; {} in the others, which all must call this too."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if everywhere or dist.is_main():
            found[name] = whole
    return found


def share_of(tensor: Tensor) -> Tensor:
    """The share of a tensor that this process holds; all of it where it is whole."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def share_as(like: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as the share that this process has of one like `like`; whole where that is whole."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

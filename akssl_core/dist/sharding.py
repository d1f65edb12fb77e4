"""Parameters shared out over the processes (FSDP2), for networks that are too large for one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .. import dist


def shard(module: nn.Module, parts: Iterable[nn.Module], device: torch.device) -> None:
    """Leave this process its share of every parameter; each of `parts` is put together only while it computes.

    Gradients are averaged over the processes, as DDP does. Buffers stay whole.
    """
    mesh = init_device_mesh(device.type, (dist.world(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters of a module are shared out."""
    return isinstance(module, FSDPModule)


def are_whole(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all parameters of an optimizer's groups are whole: torch's fused kernels take no shares."""
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

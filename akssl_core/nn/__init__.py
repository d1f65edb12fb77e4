"""Blocks that methods are made of: state that moves after the step, heads, and a few pure functions."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .. import dist
from ..schedule import Now, Schedule
from .heads import CosineHead as CosineHead
from .heads import WeightNormLinear as WeightNormLinear
from .heads import across_views as across_views
from .heads import mlp as mlp
from .transformer import Attention as Attention
from .transformer import Block as Block
from .transformer import Trunk as Trunk
from .transformer import initialise as initialise


class StepState(nn.Module, ABC):
    """A module whose state moves once per optimizer step, never inside forward.

    All of the state is in persistent buffers or parameters, and it is the same on every rank.
    """

    @abstractmethod
    def after_step(self, now: Now) -> None:
        """Move the state. The engine calls it once after each real optimizer step, with that step's `now`."""

    def skip_step(self) -> None:
        """Forget what the step has pushed. Called in place of `after_step` after a step that fp16 had to skip."""


def relative_distance(tensors: list[Tensor], others: list[Tensor]) -> Tensor:
    """`|tensors - others| / |others|` over all of them, a scalar."""
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(tensors, others))).norm()
    distance: Tensor = apart / torch.stack(torch._foreach_norm(others)).norm().clamp(min=1e-12)
    return distance


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, in hexadecimal: of their names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Frozen(nn.Module):
    """A network that a method reads and nothing changes: `self.teacher = Frozen(network)`, called as the network is.

    It computes in eval mode and without gradients whatever mode the method is in, and moves between devices with it.
    The weights are no part of the method: not of its parameters, its checkpoints, DDP or slow copies. Checkpoints
    hold `sha256` (32,) uint8 in their place, and a run goes on with the same weights alone.

    `about` says in words where the weights come from and under which licence; it is kept with the run and its backbone.
    """

    sha256: Tensor

    def __init__(self, module: nn.Module, about: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._held = (module.requires_grad_(False).eval(),)  # in a tuple, so that it is not registered
        self.about = dict(about or {})
        if "sha256" not in self.about:
            self.about["sha256"] = state_digest(module.state_dict())
        self.register_buffer("sha256", torch.tensor(list(bytes.fromhex(self.about["sha256"])), dtype=torch.uint8))

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self._held[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network makes of this."""
        return self.module(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch leaves it so
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class EMA(StepState):
    """A slow copy of some modules: `EMA(momentum, backbone=b, head=h)` has `.backbone` and `.head`.

    After each step every parameter becomes `m * slow + (1 - m) * fast` with `m = momentum(now)` (Mean Teacher,
    Tarvainen and Valpola 2017, arXiv 1703.01780). Buffers are not averaged: batch norms of the copy stay in
    training mode and keep running statistics of their own. All else in it is in evaluation mode, so that a
    target has no dropout and no stochastic depth.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, momentum: Schedule, **modules: nn.Module) -> None:
        super().__init__()
        self.momentum = momentum
        self._tracked = modules  # in a dict, so that they are not registered a second time
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))
        self.train()

    def train(self, mode: bool = True) -> EMA:
        """Set the mode of the batch norms alone."""
        super().train(mode)
        for copied in self.children():
            for module in copied.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """Move every parameter of the copies towards the tracked one."""
        slow, fast = self._pairs()
        torch._foreach_lerp_(slow, fast, 1 - self.momentum(now))

    def catch_up(self) -> None:
        """Make the copies exact ones, buffers too."""
        for name, module in self._tracked.items():
            self.get_submodule(name).load_state_dict(module.state_dict())

    @torch.no_grad()
    def distance(self) -> Tensor:
        """How far the copies are behind, a scalar: `|slow - fast| / |fast|` over all parameters; 0 after a copy."""
        return relative_distance(*self._pairs())

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters of the copies, and those they follow, in the same order."""
        slow: list[Tensor] = [p for name in self._tracked for p in self.get_submodule(name).parameters()]
        fast: list[Tensor] = [p for module in self._tracked.values() for p in module.parameters()]
        return slow, fast


class Queue(StepState):
    """The newest `size` keys of width `dim`, the oldest first: MoCo's dictionary (He et al. 2020, arXiv 1911.05722).

    `rows` (size, dim) starts as random unit rows, `filled` counts the rows that have been replaced by keys.
    """

    rows: Tensor
    filled: Tensor  # () int64

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._pushed: list[Tensor] = []
        self._known: int | None = None  # what `filled` holds, once it was asked

    @property
    def full(self) -> bool:
        """Whether keys have replaced all rows; a GPU is asked once, and no step waits for it after that."""
        self._known = int(self.filled) if self._known is None else self._known
        return self._known == len(self.rows)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._known = None

    def push(self, keys: Tensor) -> None:
        """Remember keys (n, dim) of this rank, and those of all others; they are written after the step."""
        if self.training:
            self._pushed.append(dist.gather(keys.detach().float()))

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """Append what was pushed, in that order."""
        if self._pushed:
            rows = torch.cat([self.rows, *self._pushed])
            more = len(rows) - len(self.rows)
            self.filled.add_(more).clamp_(max=len(self.rows))
            self._known = None if self._known is None else min(self._known + more, len(self.rows))
            self.rows.copy_(rows[-len(self.rows) :])
            self._pushed.clear()

    def skip_step(self) -> None:
        """Forget the keys that were pushed."""
        self._pushed.clear()


class Center(StepState):
    """A running mean of rows, `value` (dim,), from zero: DINO's centre (Caron et al. 2021, arXiv 2104.14294)."""

    value: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))
        self._pushed: list[tuple[Tensor, int]] = []  # sums of rows and their numbers

    def push(self, rows: Tensor) -> None:
        """Remember rows (n, dim) of this rank."""
        if self.training:
            self._pushed.append((rows.detach().float().sum(0), len(rows)))

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """`c = m c + (1 - m) mean` over all rows that were pushed on all ranks."""
        if self._pushed:
            sums, counts = zip(*self._pushed, strict=True)
            mean = dist.mean(torch.stack(sums).sum(0) / sum(counts))
            self.value.lerp_(mean, 1 - self.momentum)
            self._pushed.clear()

    def skip_step(self) -> None:
        """Forget the rows that were pushed."""
        self._pushed.clear()


class Prototypes(StepState):
    """Trainable unit vectors, `weight` (count, dim): SwAV's prototypes (Caron et al. 2020, arXiv 2006.09882)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, rows: Tensor) -> Tensor:
        """Cosines (n, count) of unit rows (n, dim) with every prototype."""
        return F.linear(rows, self.weight)

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        """Bring every prototype back to unit length."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int = 3, *, all_ranks: bool = False) -> Tensor:
    """Soft assignments (N, K) of samples to prototypes that use every prototype about equally.

    Scores (N, K) are cosines; each row of the result sums to 1, each column to about N / K. Computed on
    logarithms in float32, since exp(1 / epsilon) overflows shorter formats. The columns are balanced over what is
    given; with `all_ranks` over the rows of all ranks, each of which gives its own, as many as it has, even none: a
    row of K numbers is exchanged in each iteration, and no scores are. (Cuturi 2013, arXiv 1306.0895; SwAV, arXiv
    2006.09882; DINOv2, arXiv 2304.07193.)
    """
    log = scores.float() / epsilon
    for _ in range(iterations):
        columns = log.logsumexp(0, keepdim=True)
        log = log - (dist.gather(columns).logsumexp(0, keepdim=True) if all_ranks else columns)
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp()


@torch.no_grad()
def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of rows (N, K) that sum to 1, a scalar: log K where they are even, 0 where certain."""
    mean: Tensor = torch.special.entr(probabilities.float()).sum(1).mean()
    return mean


@torch.no_grad()
def std_ratio(z: Tensor) -> Tensor:
    """Standard deviation of unit rows of z (N, D), averaged over channels, times sqrt(D): a scalar.

    1 where the rows point everywhere, 0 where they are all the same (Chen and He 2021, arXiv 2011.10566, figure 2b).
    """
    ratio: Tensor = F.normalize(z.float(), dim=1).std(0, correction=0).mean() * z.shape[1] ** 0.5
    return ratio


@torch.no_grad()
def patch_std(h: Tensor) -> Tensor:
    """`std_ratio` over the patches of each image of h (B, N, D), averaged over images: a scalar."""
    ratio: Tensor = F.normalize(h.float(), dim=2).std(1, correction=0).mean() * h.shape[2] ** 0.5
    return ratio


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens by their positions: x (B, N, D), index (B, n) int64 -> (B, n, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D positions (rows * columns, dim) of a grid (rows, columns), row-major; `dim` is a multiple of 4.

    A quarter of the channels each is sin x, cos x, sin y, cos y at frequencies 10000^(-4k/dim)
    (Chen, Xie and He 2021, arXiv 2104.02057).
    """
    assert dim % 4 == 0, dim
    frequencies = 10000.0 ** -(torch.arange(dim // 4) * 4 / dim)
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)

"""The base of losses, which always compute in float32. Losses of one method live in its plugin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config.schema import Component


@dataclass(frozen=True)
class KnownValue:
    """A value that a loss has by its formula; the conformance kit computes it again."""

    args: tuple[Any, ...]
    """The arguments of the call: tensors, or lists of them."""
    value: float
    """The loss of these arguments by the formula."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the loss; the others are its defaults."""
    tolerance: float = 1e-5
    """The absolute difference that is allowed."""


class Loss(nn.Module, Component, ABC):
    """A loss. It always runs in float32, whatever autocast does around it.

    Rows of other ranks are its own business: a loss that compares rows calls `dist.gather`.
    """

    kind = "loss"
    partly_detached: ClassVar[bool] = False
    """A part of an argument is a target, so that gradients are no slopes; the kit then does not compare them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Closed forms of this loss: calls whose value follows from the formula by hand."""
        return ()

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a scalar; floating tensors arrive as float32, also those inside lists."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """`forward` in float32."""
        device = next(_tensors([*args, *kwargs.values()])).device.type
        with torch.autocast(device, enabled=False):
            named = {key: _float32(value) for key, value in kwargs.items()}
            loss: Tensor = super().__call__(*map(_float32, args), **named)
            return loss


def _tensors(values: list[Any] | tuple[Any, ...]) -> Iterator[Tensor]:
    """All tensors among the values and inside their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _float32(value: Any) -> Any:
    """The value with floating tensors as float32; lists and tuples become lists."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return [_float32(item) for item in value] if isinstance(value, list | tuple) else value

"""Which operators of torch compute on a device, and with which number formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Operators(TorchDispatchMode):
    """While it is entered, `seen` counts the calls by (operator, dtypes of its tensors on the device)."""

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.seen: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_iter((args, kwargs, out)) if isinstance(part, Tensor)]
        if dtypes := {str(tensor.dtype) for tensor in tensors if tensor.device.type == self.device}:
            self.seen[str(func), tuple(sorted(dtypes))] += 1
        return out

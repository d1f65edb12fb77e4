"""Blocks computed twice: what they keep for the backward pass is dropped, and made again when that reaches them.

Chen et al. 2016, arXiv 1604.06174, by torch.utils.checkpoint. A step then holds the input of every block and the
insides of one. The second pass repeats the draws of the first (torch's, of no other library), and buffers move in the
first alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ..backbone import Backbone


def twice(method: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    """The trained blocks of a method's backbones, each with the forward pass that takes the place of its own."""
    backbones = [part for part in method.modules() if isinstance(part, Backbone)]
    blocks = [block for backbone in backbones for block in backbone.parts()]
    return {block: _twice(block) for block in blocks if any(p.requires_grad for p in block.parameters())}


def _twice(block: nn.Module) -> Callable[..., Any]:
    inner = block.forward
    norms = [part for part in block.modules() if isinstance(part, _NormBase)]
    own = {id(buffer) for norm in norms for buffer in norm.buffers()}
    buffers = [buffer for buffer in block.buffers() if id(buffer) not in own]

    def passes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still(norms, buffers)

    return partial(checkpoint, inner, use_reentrant=False, context_fn=passes)


@contextmanager
def _still(norms: Sequence[_NormBase], buffers: Sequence[Tensor]) -> Iterator[None]:
    """Norms compute as before and leave their running statistics as they are, and so are other buffers afterwards."""
    kept = [buffer.clone() for buffer in buffers]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)

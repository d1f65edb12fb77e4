"""What stays of a backbone that begins from weights: all of it while new heads learn, or some parts for good.

New heads send gradients without meaning through a trained network, which distorts its features (Kumar et al. 2022,
arXiv 2202.10054); so they learn first. Everything here is a function of the settings and of `now`.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ..backbone import Backbone
from ..method import Method
from ..nn import EMA
from ..optim import matching
from ..schedule import Now
from ..settings import StartSpec


class Kept:
    """The parameters, statistics and modes of a method's backbones that stay, for a time or for good.

    While heads learn alone, parameters of the backbone need no gradient, so that its forward pass keeps nothing for
    the backward one, and all its modules are in evaluation mode; so are the backbones of slow copies.
    """

    def __init__(self, method: Method, start: StartSpec | None) -> None:
        backbone = method.backbone
        self.method = method
        self.epochs = (start.warm_heads or 0.0) if start else 0.0
        self._frozen = matching(backbone, start.freeze, "start.freeze: '{}'") if start else set()
        also = matching(backbone, start.warm_with or (), "start.warm_with: '{}'") if start else set()
        named = backbone.named_parameters()
        self._waiting = [parameter for name, parameter in named if parameter.requires_grad and name not in also]

    def settle(self, now: Now) -> bool:
        """Set modes and gradients as they are at `now`; whether other parameters than before need a gradient."""
        alone = now.epoch < self.epochs
        self.method.train()
        for part in self.method.modules():
            if isinstance(part, Backbone) and (alone or self._frozen):
                _rest(part, self._frozen, whole=alone)
        changed = any(parameter.requires_grad is alone for parameter in self._waiting)
        for parameter in self._waiting:
            parameter.requires_grad_(not alone)
        return changed

    def begins_whole(self, now: Now) -> bool:
        """Whether `now` is the first step that trains the backbone after one of the heads alone."""
        return (now.step - 1) / now.steps_per_epoch < self.epochs <= now.epoch

    def catch_up(self) -> None:
        """Make slow copies exact ones: they are behind the heads, and their backbones have not moved."""
        for part in self.method.modules():
            if isinstance(part, EMA):
                part.catch_up()


def _rest(backbone: Backbone, frozen: Collection[str], *, whole: bool) -> None:
    """Put a backbone into evaluation mode, or those of its modules that hold frozen parameters alone."""
    for path, module in backbone.named_modules():
        if whole or _holds_only(module, path, frozen):
            module.eval()


def _holds_only(module: nn.Module, path: str, frozen: Collection[str]) -> bool:
    names = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
    return bool(names) and all(name in frozen for name in names)

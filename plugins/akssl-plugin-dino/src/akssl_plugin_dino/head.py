"""DINO's head: an MLP to a narrow bottleneck, unit length, and a layer of unit directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akssl_core.nn import mlp


class WeightNormLinear(nn.Module):
    """A linear map without bias whose rows are `gain * direction / |direction|` (arXiv 1602.07868).

    With `fixed_gain` the gain is 1 and no parameter, so that outputs for unit rows are cosines. Else it is
    trained from 1: `gain` is (width_out, 1), beside `direction` (width_out, width_in). Always computed in float32,
    for a teacher's temperature of 0.04 makes the rounding of bf16 logits 25 times as large.
    """

    def __init__(self, width_in: int, width_out: int, *, fixed_gain: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(width_out, width_in))
        self.gain = None if fixed_gain else nn.Parameter(torch.ones(width_out, 1))
        nn.init.kaiming_uniform_(self.direction, a=math.sqrt(5))  # the start of nn.Linear

    def forward(self, rows: Tensor) -> Tensor:
        """(n, width_in) -> (n, width_out)."""
        with torch.autocast(rows.device.type, enabled=False):
            weight = F.normalize(self.direction, dim=1)
            return F.linear(rows.float(), weight if self.gain is None else self.gain * weight)


class Head(nn.Module):
    """Features (n, width) to logits (n, out_dim): appendix C of arXiv 2104.14294.

    Linear layers with GELU (after a batch norm, if wanted) lead to the bottleneck, whose rows get unit length;
    the last layer is weight-normalised. `project` and `last` are the two halves.
    """

    def __init__(
        self,
        width: int,
        hidden_dim: int,
        bottleneck_dim: int,
        out_dim: int,
        *,
        layers: int = 3,
        batch_norm: bool = False,
        last_batch_norm: bool = False,
        init_std: float | None = 0.02,
        fixed_gain: bool = True,
    ) -> None:
        super().__init__()
        hidden = [hidden_dim] * (layers - 1)
        self.mlp = mlp(
            width,
            *hidden,
            bottleneck_dim,
            batch_norm=batch_norm,
            last_batch_norm="plain" if last_batch_norm else None,
            activation=nn.GELU,
        )
        self.last = WeightNormLinear(bottleneck_dim, out_dim, fixed_gain=fixed_gain)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear) and init_std is not None:
                nn.init.trunc_normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)

    def project(self, features: Tensor) -> Tensor:
        """The bottleneck's unit rows (n, bottleneck_dim) in float32."""
        return F.normalize(self.mlp(features).float(), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, out_dim)."""
        logits: Tensor = self.last(self.project(features))
        return logits

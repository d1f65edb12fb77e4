"""Heads on features, and the cross-entropy between what two of them say of several views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(
    *widths: int,
    batch_norm: bool = True,
    bias: bool = True,
    last_bias: bool = True,
    last_batch_norm: Literal["affine", "scale", "plain"] | None = None,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A head `widths[0] -> ... -> widths[-1]` with Linear, BatchNorm1d and activation in each hidden layer.

    Args:
        *widths: of the input, the hidden layers and the output.
        batch_norm: whether hidden layers have a batch norm.
        bias: whether the Linear of a hidden layer has one.
        last_bias: whether the last Linear has one.
        last_batch_norm: after the last Linear: "affine" (trainable scale and shift), "scale" (the shift stays
            zero), "plain" (neither) or None (no batch norm).
        activation: module class between the layers.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        norm = [nn.BatchNorm1d(width_out)] if batch_norm else []
        layers += [nn.Linear(width_in, width_out, bias=bias), *norm, activation()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_batch_norm is not None:
        last = nn.BatchNorm1d(widths[-1], affine=last_batch_norm != "plain")
        if last_batch_norm == "scale":
            last.bias.requires_grad_(False)
        layers.append(last)
    return nn.Sequential(*layers)


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


class CosineHead(nn.Module):
    """Features (n, width) to logits (n, out_dim), cosines with directions: DINO's (arXiv 2104.14294, appendix C).

    Linear layers with GELU (after a batch norm, if wanted) lead to the bottleneck, whose rows get unit length;
    the last layer is weight-normalised. `project` and `last` are the two halves.

    Args:
        width: of the features.
        hidden_dim: width inside.
        bottleneck_dim: width before the last layer.
        out_dim: number of outputs.
        layers: linear layers before the last one.
        batch_norm: batch norms inside.
        last_batch_norm: one behind the bottleneck, without scale and shift.
        init_std: standard deviation of the first weights, with biases 0; None: torch's default.
        fixed_gain: the last layer's rows have unit length.
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


def across_views(targets: Sequence[Tensor], predictions: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of predictions under targets of other views, a mean over all such pairs and rows.

    Targets are probabilities (N, K) of the first views, predictions logarithms of probabilities (N, K) of all views; no
    view is compared with itself (DINO, arXiv 2104.14294, equation 3; SwAV's and DINOv2's have the same pairs).
    """
    pairs = [(p, q) for u, p in enumerate(targets) for v, q in enumerate(predictions) if u != v]
    return torch.stack([-(p * q).sum(1).mean() for p, q in pairs]).mean()

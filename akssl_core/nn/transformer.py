"""Blocks of transformers over tokens: those of the vision transformers here, for decoders and predictors too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..draws import for_rows

BITS = 24  # of a draw; as a whole number, since FSDP would round a fraction to bf16
DropKind = Literal["sample", "subset"]
FirstWeights = Literal["normal", "xavier", "xavier_joint"]


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self._queries_keys_values(x)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor) -> Tensor:
        """How much each of the N tokens attends to each: (B, heads, N, N), rows sum to 1."""
        q, k, _ = self._queries_keys_values(x)
        weights: Tensor = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return weights

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each (B, heads, N, d)."""
        parts: Tensor = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return parts.unbind()


class MLP(nn.Module):
    """The two linear layers of a block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A factor for each channel of a branch, small at first (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: leaves out a branch for some images of a batch (Huang et al. 2016, arXiv 1603.09382).

    `kind` "sample" drops each image's branch with probability `rate`; "subset" computes the branch of a random share
    of `1 - rate` of the images alone (Oquab et al. 2023, arXiv 2304.07193, section 5). Both scale up what is left.
    """

    def __init__(self, rate: float, kind: DropKind = "sample") -> None:
        super().__init__()
        self.rate, self.kind = rate, kind

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], draws: Tensor | None = None) -> Tensor:
        """`x + branch(x)` for tokens (B, N, D), in training without the branch of some images.

        `draws` (B,) int32 of 24 bits decide; without them torch's generator does.
        """
        if not self.training or self.rate == 0:
            return x + branch(x)
        draws = torch.randint(1 << BITS, (len(x),), device=x.device) if draws is None else draws
        if self.kind == "sample":
            kept = (draws >= int(self.rate * (1 << BITS)))[:, None, None]
            return x + branch(x) * kept / (1 - self.rate)
        rows = draws.argsort()[: max(int(len(x) * (1 - self.rate)), 1)]
        return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=len(x) / len(rows))


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and with a shortcut.

    Args:
        width: D of the tokens.
        heads: of the attention; they divide the width.
        mlp_ratio: hidden width of the MLP over D.
        layer_scale: first value of `LayerScale`; None: the branches have none.
        drop_path: rate of `DropPath`.
        drop_path_kind: its kind.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        drop_path_kind: DropKind = "sample",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path, drop_path_kind)

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `draws` (B, 2), as `DropPath` takes them, are for attention and MLP."""
        first, second = (None, None) if draws is None else draws.unbind(1)
        x = self.drop_path(x, lambda part: self.ls1(self.attn(self.norm1(part))), first)
        out: Tensor = self.drop_path(x, lambda part: self.ls2(self.mlp(self.norm2(part))), second)
        return out


class Trunk(nn.Sequential):
    """Blocks one after the other, without a norm at the end: `Trunk(192, 12, 3)` are those of a ViT-Ti.

    Args:
        width: D of the tokens.
        depth: blocks.
        heads: of each block; they divide the width.
        mlp_ratio: hidden width of the MLPs over D.
        layer_scale: first value of `LayerScale`; None: the branches have none.
        drop_path: rate of stochastic depth in the last block. In a training step it follows from seed, step and image,
            as `batch.draws` do, if a forward pass is of all images of the batch, view by view.
        drop_path_shape: "linear", from 0 in the first block to that rate; "uniform", the same in all.
        drop_path_kind: of `DropPath`; with "subset" the drawn images depend on those of the process.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        drop_path_shape: Literal["linear", "uniform"] = "linear",
        drop_path_kind: DropKind = "sample",
    ) -> None:
        inner: dict[str, Any] = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale, "drop_path_kind": drop_path_kind}
        shares = [i / (depth - 1) if drop_path_shape == "linear" and depth > 1 else 1.0 for i in range(depth)]
        super().__init__(*(Block(width, heads, drop_path=drop_path * share, **inner) for share in shares))
        self._for_rows = None
        if drop_path:  # its hashes are not traced
            self._for_rows = torch.compiler.disable(for_rows)  # type: ignore[no-untyped-call] # torch leaves it so

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.states(x, 1)[0]

    def states(self, x: Tensor, last: int) -> list[Tensor]:
        """What comes out of each of the last blocks, each (B, N, D), in their order."""
        found, depth = [], len(self)
        draws = self._draws(x) if self.training else None
        for i, block in enumerate(self):
            x = block(x) if draws is None else block(x, draws[:, i])
            found += [x] if i >= depth - last else []
        return found

    def _draws(self, x: Tensor) -> Tensor | None:
        """(B, depth, 2) int32, where branches are left out."""
        if self._for_rows is None:
            return None
        drawn: Tensor = self._for_rows(len(x), "drop_path", 2 * len(self), x.device)
        return (drawn * (1 << BITS)).int().reshape(len(x), len(self), 2)


def initialise(module: nn.Module, first_weights: FirstWeights = "normal") -> None:
    """Give linear layers in a module their first weights, and biases of zero.

    "normal": a truncated normal of 0.02. "xavier": Glorot and Bengio's uniform, patch projections too; q, k and v are
    matrices of their own (MoCo v3). "xavier_joint": the same with these as one matrix (MAE).
    """
    for name, layer in module.named_modules():
        if first_weights != "normal" and isinstance(layer, nn.Linear | nn.Conv2d):
            _xavier(layer, parts=3 if first_weights == "xavier" and name.endswith("qkv") else 1)
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def _xavier(layer: nn.Linear | nn.Conv2d, parts: int = 1) -> None:
    """Glorot and Bengio's uniform weights for a layer as a matrix, or as several below one another; a bias of zeros."""
    for matrix in layer.weight.flatten(1).chunk(parts):
        nn.init.xavier_uniform_(matrix)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

"""What MAE puts behind the encoder: images as patches of pixels, and the decoder that fills in the hidden ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from akssl_core import ConfigError
from akssl_core.nn import Trunk, initialise, sincos

Grid = tuple[int, int]  # rows and columns of patches, which count row by row


def whole_patches(side: int, patch: int) -> None:
    """Refuse images whose patches would reach over the edge.

    Raises:
        ConfigError: `side` px are no whole number of patches of `patch` px.
    """
    if side % patch:
        below, above = side // patch * patch, -(-side // patch) * patch
        sides = f"{below} or {above}" if below else f"{above}"
        divisors = ", ".join(str(n) for n in range(2, side // 2 + 1) if side % n == 0)
        raise ConfigError(
            f"train.image_size: {side} px are no whole number of patches of {patch} px, so that mae would have to fill "
            f"in padding. Use {sides} px{f', or backbone.patch_size of {divisors}' if divisors else ''}."
        )


def patchify(images: Tensor, patch: int) -> Tensor:
    """The pixels of each patch: images (B, C, H, W) -> (B, N, P), P in the order row, column, channel.

    Raises:
        ConfigError: a side is no whole number of patches.
    """
    for side in images.shape[2:]:
        whole_patches(side, patch)
    count, channels, height, width = images.shape
    cells = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: Grid, channels: int) -> Tensor:
    """The images (B, C, H, W) of a grid of patches (B, N, P)."""
    side = round((patches.shape[2] / channels) ** 0.5)
    cells = patches.reshape(len(patches), *grid, side, side, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Decoder(nn.Module):
    """Pixels of all patches from the features of some: one shared token stands where a patch is hidden.

    Section 3 of arXiv 2111.06377; positions are fixed sines and cosines, first weights are Xavier's.

    Args:
        features: width D of the encoder's tokens.
        grid: rows and columns of the patches.
        pixels: P of a patch.
        dim: width of the decoder's own tokens.
        depth: blocks.
        heads: of each block; they divide `dim`.
    """

    positions: Tensor

    def __init__(self, features: int, grid: Grid, pixels: int, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(features, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.register_buffer("positions", sincos(grid, dim), persistent=False)
        self.blocks = Trunk(dim, depth, heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, pixels)
        initialise(self, "xavier_joint")

    def forward(self, visible: Tensor, cls: Tensor | None, keep: Tensor, grid: Grid) -> Tensor:
        """(B, N, P) of tokens (B, n, D) at positions `keep` (B, n) of N, and of the class token (B, D) if there is one.

        The class token has no position, and nothing is predicted from it.
        """
        positions = self.positions if grid == self.grid else sincos(grid, self.positions.shape[1]).to(keep.device)
        tokens = self.embed(visible) + positions[keep]
        hidden = (self.mask_token + positions).to(tokens.dtype).expand(len(keep), -1, -1)
        x = hidden.scatter(1, keep[..., None].expand_as(tokens), tokens)
        if cls is None:
            return self._pixels(self.blocks(x))
        x = torch.cat([self.embed(cls)[:, None].to(x.dtype), x], 1)
        return self._pixels(self.blocks(x)[:, 1:])

    def _pixels(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.predict(self.norm(x))
        return pixels

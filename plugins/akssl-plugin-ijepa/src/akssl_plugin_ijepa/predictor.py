"""I-JEPA's predictor: the features of blocks of an image that it has not seen, from those of its context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from akssl_core.nn import Trunk, initialise, sincos

Grid = tuple[int, int]  # rows and columns of patches, which count row by row


class Predictor(nn.Module):
    """A narrow transformer over the context and over one shared token at each place that is asked for.

    Section 3 of arXiv 2301.08243; positions are fixed sines and cosines, first weights a truncated normal of 0.02.

    Args:
        features: width D of the encoder's tokens.
        grid: rows and columns of the patches.
        dim: width of the predictor's own tokens.
        depth: blocks.
        heads: of each block; they divide `dim`.
    """

    positions: Tensor

    def __init__(self, features: int, grid: Grid, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(features, dim)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.register_buffer("positions", sincos(grid, dim), persistent=False)
        self.blocks = Trunk(dim, depth, heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, features)
        initialise(self)

    def forward(self, context: Tensor, places: Tensor, wanted: Tensor, grid: Grid) -> Tensor:
        """The features (T, B, m, D) of T blocks of each image, which see the context and not each other.

        Args:
            context: (B, n, D), features of the patches that the encoder has seen.
            places: (B, n), their positions.
            wanted: (T, B, m), the positions of the blocks.
            grid: rows and columns of the images' patches.
        """
        positions = self.positions if grid == self.grid else sincos(grid, self.positions.shape[1]).to(wanted.device)
        asked = self.mask_token + positions[wanted]  # (T, B, m, d)
        seen = (self.embed(context) + positions[places]).to(asked.dtype).expand(len(wanted), -1, -1, -1)
        x = self.blocks(torch.cat([seen, asked], 2).flatten(0, 1))[:, places.shape[1] :]
        predicted: Tensor = self.predict(self.norm(x))
        return predicted.reshape(*wanted.shape[:2], *predicted.shape[1:])

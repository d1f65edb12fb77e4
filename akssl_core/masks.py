"""Which patches a method hides or predicts: masks that follow from draws alone.

A mask of an image is a function of the row that its draws have, whatever the batch around it, so it is the same for any
number of processes, workers and micro-batches and in a resumed run. On a GPU nobody waits for any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .draws import Draws

Grid = tuple[int, int]  # rows and columns of patches, which count row by row
Range = tuple[float, float]  # the smallest and the largest
ROUNDS, FAILURES = 64, 10  # blocks that are tried for a mask, at most, and one after the other without success
LONGEST = math.log(1 / 0.3)  # logarithm of the largest aspect of a block


def kept(tokens: int, ratio: float) -> int:
    """How many of `tokens` stay visible where a share `ratio` is hidden, rounded down."""
    return math.floor(tokens * (1 - ratio) + 1e-9)  # 100 x (1 - 0.9) is 9.999...


def shuffle_masks(draws: Draws, tokens: int, keep: int) -> Tensor:
    """The positions (B, keep) int64, ascending, of patches that stay visible: any are as likely as any others.

    Masked autoencoders (He et al. 2022, arXiv 2111.06377, section 3), for `features(x, keep=...)`.
    """
    return draws.uniform("mask.shuffle", tokens).argsort(dim=1, stable=True)[:, :keep].sort(1).values


def hidden(keep: Tensor, tokens: int) -> Tensor:
    """(B, tokens) bool, true for the patches whose positions are not in `keep` (B, n)."""
    return torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device).scatter_(1, keep, False)


def on_pixels(masks: Tensor, grid: Grid, size: Sequence[int], patch_size: int) -> Tensor:
    """Masks (B, rows * columns) of patches as those of pixels, (B, 1, height, width): `size` without padding."""
    whole = masks.reshape(-1, 1, *grid).repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return whole[..., : size[0], : size[1]]


def mask_ratios(draws: Draws, chance: float, ratio: Range) -> Tensor:
    """(B,) float32: the share to hide of each image, uniform within `ratio` with probability `chance`, else 0.

    iBOT (Zhou et al. 2022, arXiv 2111.07832, section 3.3), whose `chance` is 0.5 and `ratio` (0.1, 0.5).
    """
    drawn = draws.uniform("mask.apply", 2)
    return (ratio[0] + (ratio[1] - ratio[0]) * drawn[:, 1]) * (drawn[:, 0] < chance)


def block_masks(draws: Draws, grid: Grid, wanted: Tensor, *, least: int, most: int | None = None) -> Tensor:
    """(B, rows * columns) bool, true where a patch is hidden: rectangles are added until there are enough patches.

    BEiT's blockwise masking (Bao et al. 2022, arXiv 2106.08254, algorithm 1). With draws of the host (`batch.host`) it
    ends when all masks are done; on a GPU, which nobody asks, it tries all rounds.

    Args:
        draws: of one view, or of several joined.
        grid: rows and columns.
        wanted: (B,) how many patches to hide; a mask has a few less, never more. iBOT: ratio * patches; DINOv2 takes
            the whole part of that.
        least: patches of the smallest rectangle. iBOT: (min(grid) // 3)^2; DINOv2: 4.
        most: patches of the largest. iBOT: None, no bound; DINOv2: half of all.
    """
    rows, columns = grid
    y, x = (torch.arange(side, device=wanted.device) for side in grid)
    masks = torch.zeros(len(wanted), rows, columns, dtype=torch.bool, device=wanted.device)
    count, failures = (torch.zeros_like(wanted, dtype=torch.int64) for _ in range(2))
    size, shape, top, left = draws.uniform("mask.block", 4 * ROUNDS).view(-1, ROUNDS, 4).unbind(2)
    shape = (LONGEST * (shape - 0.5)).exp()  # the root of height by width
    for k in range(ROUNDS):
        tried = (count < wanted) & (failures < FAILURES)
        if tried.is_cpu and not tried.any():
            break
        rest = (wanted - count).clamp(max=most or rows * columns)
        side = (least + size[:, k] * (rest - least)).sqrt()
        height, width = (side * shape[:, k]).round(), (side / shape[:, k]).round()
        inside = _within(y, top[:, k], height)[:, :, None] & _within(x, left[:, k], width)[:, None]
        new = (inside & ~masks).sum((1, 2))
        taken = tried & (height < rows) & (width < columns) & (new > 0) & (new <= rest)
        masks |= inside & taken[:, None, None]
        count, failures = count + new * taken, (failures + 1) * ~taken
    return masks.flatten(1)


def hidden_rows(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden patches among all patches of masks (B, N): their positions (n,) int64, and weights (n,) float32.

    Weights of an image sum to 1, so that a sum over rows divided by B is a mean over images of the mean in each, where
    an image without a mask counts as 0 (iBOT, arXiv 2111.07832, algorithm 1). In the host's memory nobody waits for it.
    """
    shares = (1 / masks.sum(1, keepdim=True).clamp(min=1)).expand(masks.shape)
    return masks.flatten().nonzero().squeeze(1), shares[masks]


def _within(places: Tensor, drawn: Tensor, length: Tensor) -> Tensor:
    """(B, side) bool: where an interval of each length lies whose start is drawn among all that fit into the side."""
    start = (drawn * (len(places) - length + 1)).floor()[:, None]
    return (places >= start) & (places < start + length[:, None])


# -- I-JEPA (Assran et al. 2023, arXiv 2301.08243) ------------------------------------------------
def jepa_blocks(
    draws: Draws,
    shared: Draws,
    grid: Grid,
    *,
    targets: int = 4,
    area: Range = (0.15, 0.2),
    aspect: Range = (0.75, 1.5),
    context: Range = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Positions of target blocks, (targets, B, h * w) int64, and of a context without them, (B, n) int64, ascending.

    As section 3 of the paper has it, but for three things in which the authors' code depends on the batch or leaves out
    places: blocks reach the last row and column, height and width are drawn independently, and the context is a random
    part of what the targets leave, of a length that is the same for all images of a step, `least_context` or more.

    Args:
        draws: of the images, in the host's memory: `batch.host.draws`.
        shared: one row for all images, which decides the sizes: `batch.host.shared_draws`.
        grid: rows and columns.
        targets: blocks to predict; they may overlap.
        area: of a target, as a share of the grid.
        aspect: height by width of a target.
        context: area of the square in which the context lies, as a share of the grid; the authors' is (0.85, 1).
    """
    sizes = shared.uniform("mask.size", 3)[0].tolist()
    bounds = zip(sizes, (area, aspect, context), strict=True)
    share, ratio, whole = (low + (high - low) * drawn for drawn, (low, high) in bounds)
    (height, width), square = block_size(grid, share, ratio), block_size(grid, whole, 1.0)
    starts = draws.uniform("mask.block", 2 * targets).view(-1, targets, 2)
    blocks = _places(grid, (height, width), starts)
    drawn = draws.uniform("mask.context", 2 + grid[0] * grid[1])
    free = ~hidden(_places(grid, square, drawn[:, :2]), grid[0] * grid[1])
    free.scatter_(1, blocks.flatten(1), False)
    length = square[0] * square[1] - targets * height * width
    assert length > 0, f"{targets} targets of {height} x {width} leave no context on a grid of {grid}"
    order = drawn[:, 2:].masked_fill(~free, 2.0).argsort(dim=1, stable=True)
    return blocks.transpose(0, 1), order[:, :length].sort(1).values


def block_size(grid: Grid, area: float, aspect: float) -> Grid:
    """Rows and columns of a block with this share of the grid and this height by width, cut to the grid."""
    patches = max(int(grid[0] * grid[1] * area), 1)
    height, width = round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))
    return min(max(height, 1), grid[0]), min(max(width, 1), grid[1])


def least_context(grid: Grid, *, targets: int, area: Range, aspect: Range, context: Range) -> int:
    """The fewest patches that `jepa_blocks` may leave to see, which is below 1 where it cannot work: for `check`."""
    patches = max(int(grid[0] * grid[1] * area[1]), 1)
    halves = [(m + 0.5) ** 2 for m in range(max(grid))]  # where the number of rows or columns changes
    edges = [edge for half in halves for edge in (half / patches, patches / half) if aspect[0] < edge < aspect[1]]
    ratios = [(one + next_one) / 2 for one, next_one in pairwise(sorted([*edges, *aspect]))]
    most = max(math.prod(block_size(grid, area[1], ratio)) for ratio in (*ratios, *aspect))
    return math.prod(block_size(grid, context[0], 1.0)) - targets * most


def _places(grid: Grid, block: Grid, drawn: Tensor) -> Tensor:
    """(..., h * w) int64: the positions in blocks of one size, by draws (..., 2) of where they start."""
    top, left = ((drawn[..., i] * (grid[i] - block[i] + 1)).long() for i in range(2))
    y, x = (torch.arange(side, device=drawn.device) for side in block)
    return (top * grid[1] + left)[..., None] + (y[:, None] * grid[1] + x).flatten()

"""Whether one image is a copy of another: recompressed, resized, cropped a little, brighter or darker.

Pure functions of pixels. Nothing is learnt but what little windows change in the images at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .nearest import nearest

SIDE = 32  # of thumbnails, in pixels: what recompression and resizing change is mostly finer than this
FEWEST = 8  # pixels a side with which a comparison means something
LIMIT = 1.0  # what `difference` is at most between copies
MARGIN = 0.12  # the most that a window is moved or narrowed, in halves of a side: 6 % of it
STEPS = 4  # of the search for a window; more move it by less than a hundredth of a pixel
FIRST_STEPS, HOPELESS = 2, 8.0  # what was left of planted copies after so many was up to 5.5 times what is allowed
COLOUR = 2.5  # a copy's colours may be off by so many times as much as its luminance: JPEG stores them at half the size
FAR = 3.0  # beyond which no filter of resizing is the reason
GAIN = 0.75  # the contrast of a copy is 1.25 times that of the original, give or take so much
PLAIN = 2.0  # gray levels of standard deviation below which an image shows nothing
STRETCHED = 1.13  # the most by which the aspects of copies differ: a crop of 6 % a side
NEAREST = 5  # thumbnails with which an image is compared
AT_ONCE = 1000  # pairs compared together

_SMALL = 12  # side of the images that are looked up
_SAMPLE = 2000  # images in which is measured what little windows change


def thumbnail(image: Tensor) -> Tensor:
    """An image (C, h, w) uint8 as a square (C, s, s) uint8 of its shorter side, from 8 to 32 pixels."""
    side = max(FEWEST, min(SIDE, *image.shape[1:]))
    return _resized(image[None].float(), side)[0].round_().clamp_(0, 255).to(torch.uint8)


def signatures(thumbnails: Sequence[Tensor]) -> Tensor:
    """Vectors (N, 144) float32 that are alike, by the cosine, for an image and a window that leaves out little of it.

    They are luminances at 12 x 12 px, of mean 0 and length 1, weighted by the inverse of what random windows of the
    images at hand change (whitening by the covariance within, as in linear discriminant analysis). Without the weights
    one in ten windows of alike images is not among the ten nearest to its original.
    """
    rows = torch.cat([_small(image[None].float()) for image in thumbnails])
    chosen = torch.linspace(0, len(thumbnails) - 1, min(_SAMPLE, len(thumbnails))).long().tolist()
    draw = torch.Generator().manual_seed(0)
    changes = []
    for i in chosen:
        cut = MARGIN / 2 * torch.rand(4, 2, generator=draw)
        moves = torch.cat([-cut, cut * (2 * torch.rand(4, 2, generator=draw) - 1)], 1)
        image = thumbnails[i][None].float().expand(4, -1, -1, -1)
        changes.append(_small(window(image, moves, image.shape[-1])) - rows[i])
    within = torch.cat(changes)
    spread, axes = torch.linalg.eigh(within.T @ within / len(within))
    return F.normalize((rows - rows.mean(0)) @ axes * (spread + 1e-5).rsqrt(), dim=1)


def copied(thumbnails: Sequence[Tensor], shapes: Tensor, among: int) -> Tensor:
    """Which images beyond the first `among` are copies of one of those, (N - among,) bool.

    `shapes` (N, 2) are height and width of the images. Each is compared with five whose thumbnails are most alike.
    """
    if among == len(thumbnails):
        return torch.zeros(0, dtype=torch.bool)
    rows = signatures(thumbnails)
    index = nearest(rows[:among], rows[among:], NEAREST)[1]
    queries = torch.arange(among, len(thumbnails))[:, None].expand_as(index)
    apart = differences(thumbnails, shapes, index.flatten(), queries.flatten())
    return (apart <= LIMIT).view_as(index).any(1)


def differences(thumbnails: Sequence[Tensor], shapes: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`difference` of the thumbnails at positions `first` (P,) and `second` (P,), (P,) float32, in either order.

    `shapes` (N, 2) are height and width of the images, in pixels: if one is much more stretched, both are infinitely
    far apart. If their shorter sides differ and a thumbnail has all pixels of its image, the other image may consist of
    pixels picked from it, in unequal steps, and the thumbnail is resized so too.
    """
    aspects, sides = (shapes[:, 1] / shapes[:, 0]).log(), shapes.amin(1)
    alike = torch.nonzero((aspects[first] - aspects[second]).abs() <= math.log(STRETCHED)).flatten()
    found = torch.full((len(first),), torch.inf)
    found[alike] = _apart(thumbnails, sides, first[alike], second[alike])
    return found


def _apart(thumbnails: Sequence[Tensor], sides: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`differences`, where no image is stretched."""
    own = torch.tensor([image.shape[-1] for image in thumbnails])
    found = torch.empty(len(first))
    for rows, (a, b) in _alike(thumbnails, own, first, second):
        side = min(a.shape[-1], b.shape[-1])
        found[rows] = _nearer(*(_resized(of, side) if of.shape[-1] > 1.1 * side else of for of in (a, b)))
    whole = sides[torch.stack([first, second])].amin(0) <= SIDE
    again = torch.nonzero(whole & (sides[first] != sides[second]) & (found > LIMIT) & (found <= FAR)).flatten()
    for chosen, pair in _alike(thumbnails, sides, first[again], second[again]):
        rows = again[chosen]
        to = sides[second[rows[0]]], sides[first[rows[0]]]
        for picked, other, side in zip(pair, reversed(pair), map(int, to), strict=True):
            if picked.shape[-1] <= SIDE:
                as_other = _resized(_picked(picked, side), other.shape[-1])
                found[rows] = found[rows].minimum(_nearer(as_other, other))
    return found


def _alike(
    thumbnails: Sequence[Tensor], sides: Tensor, first: Tensor, second: Tensor
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """The pairs in batches of which both images have one side each: rows (p,) and the thumbnails as float32."""
    kinds = sides[first] * (int(sides.max()) + 1) + sides[second]
    for kind in torch.unique(kinds):
        for rows in torch.split(torch.nonzero(kinds == kind).flatten(), AT_ONCE):
            a, b = (torch.stack([thumbnails[i] for i in of[rows].tolist()]).float() for of in (first, second))
            yield rows, (a, b)


def _nearer(a: Tensor, b: Tensor) -> Tensor:
    """`difference` of images (P, C, s, s) and (P, C, t, t), whichever is the original: the smaller can be no window."""
    ways = [difference(x, y) for x, y in ((a, b), (b, a)) if x.shape[-1] >= y.shape[-1]]
    return torch.stack(ways).amin(0)


def _picked(images: Tensor, side: int) -> Tensor:
    """Images (P, C, s, s) resized by a box filter (P, C, side, side): means of whole pixels, or the nearest one."""
    step = images.shape[-1] / side
    reach, at = max(step, 1) / 2, (torch.arange(side)[:, None] + 0.5) * step
    apart = torch.arange(images.shape[-1]) + 0.5 - at
    weights = ((apart > -reach) & (apart <= reach)).float()
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ images @ weights.T


def difference(original: Tensor, copy: Tensor) -> Tensor:
    """How far `copy` (P, C, t, t) in 0..255 is from a window of `original` (P, C, s, s), (P,); copies are within 1.

    The window that fits best is searched by least squares (Lucas and Kanade 1981), up to 6 % of a side narrower or
    wider and moved, along with a gain and an offset of the gray levels and a gain of the edges, which takes in what
    filters of resizing differ by. Values beyond 0 and 255 are cut off, as a brighter copy has them. What is left is
    smoothed over 3 x 3 px, for compression errs in fine detail, and where images differ they do in broad areas too.
    Its root mean square over luminances, or 2.5 times less that over the channels, is divided by what is allowed. Gray
    levels that are stretched to less than half or more than double are no copy's, nor are images of which half of the
    search has left eight times as much as is allowed: infinity. Images with hardly any contrast are compared as they
    are.
    """
    gray, wanted = original.mean(1, keepdim=True), copy.mean(1, keepdim=True)
    moves, left = _best_window(gray, wanted, torch.zeros(len(copy), 4), FIRST_STEPS)
    plain = _contrast(copy) < PLAIN
    apart = torch.where(plain, _rms(_resized(original, copy.shape[-1]) - copy), torch.inf)
    near = torch.nonzero(~plain & (left <= HOPELESS * allowed(copy))).flatten()
    if len(near):
        moves = _best_window(gray[near], wanted[near], moves[near], STEPS - FIRST_STEPS)[0]
        apart[near] = _through(moves, original[near], copy[near])
    return apart


def _through(moves: Tensor, original: Tensor, copy: Tensor) -> Tensor:
    """`difference` of images whose best windows are known."""
    side = copy.shape[-1]
    seen, wanted = window(original, moves, side), copy.flatten(1)
    values, factors = _fitted([seen, torch.ones_like(seen), edges(seen)], wanted, _inside(wanted))
    left = copy - values.clamp(0, 255).view_as(copy)
    smooth = F.avg_pool2d(F.pad(left, (1, 1, 1, 1), mode="replicate"), 3, 1)
    luminance, colours = _rms(smooth.mean(1, keepdim=True)), _rms(smooth)
    apart = torch.maximum(luminance, colours / COLOUR) / allowed(copy)
    return torch.where((factors[:, 0] - 1.25).abs() > GAIN, torch.inf, apart)


def allowed(image: Tensor) -> Tensor:
    """Gray levels (P,) by which copies of images (P, C, s, s) may be off: more where there are more edges.

    Two to five are usual. In images of little contrast it is a sixth of their standard deviation at most.
    """
    return torch.minimum(0.0215 * (_rms(edges(image.mean(1, keepdim=True))) + 80), _contrast(image) / 6)


def window(images: Tensor, moves: Tensor, side: int) -> Tensor:
    """Windows (P, C, side, side) of images (P, C, s, s): `moves` (P, 4) are zooms less 1 and shifts, along x and y."""
    maps = torch.zeros(len(images), 2, 3)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = 1 + moves[:, 0], 1 + moves[:, 1], moves[:, 2:]
    grid = F.affine_grid(maps, [*images.shape[:2], side, side], align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)


def edges(images: Tensor) -> Tensor:
    """The discrete Laplacian of images (P, C, s, s)."""
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    beside = wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:] + wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]
    return beside - 4 * images


def _best_window(original: Tensor, copy: Tensor, moves: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The moves (P, 4) of the window of gray images (P, 1, s, s) that is most like the copies (P, 1, t, t).

    They are searched from `moves` on. The second tensor (P,) is the root mean square of what is left before the last.
    """
    side, moves, wanted = copy.shape[-1], moves.clone(), copy.flatten(1)
    place, weights = (torch.arange(side) + 0.5) * 2 / side - 1, _inside(wanted)
    for _ in range(steps):
        seen = window(original, moves, side)
        across, down = (torch.gradient(seen, dim=dim)[0] * side / 2 for dim in (3, 2))
        columns = [seen, torch.ones_like(seen), edges(seen), across * place, down * place[:, None], across, down]
        values, factors = _fitted(columns, wanted, weights)
        moves += (factors[:, 3:] / factors[:, :1].clamp(min=0.3)).clamp(-MARGIN / 2, MARGIN / 2)
        moves.clamp_(-MARGIN, MARGIN)
    return moves, ((wanted - values).square() * weights).sum(1).div(weights.sum(1)).sqrt()


def _inside(values: Tensor) -> Tensor:
    """Weights of gray levels: what is cut off at 0 or 255 says little."""
    return ((values > 2) & (values < 253)).float() + 0.02


def _fitted(columns: list[Tensor], wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of images that is nearest to the wanted values (P, n), and the factors of the sum."""
    table = torch.stack(columns, -1).flatten(1, 3)
    weighted = (table * weights[..., None]).transpose(1, 2)
    squares = weighted @ table
    ridge = 1e-4 * squares.diagonal(dim1=1, dim2=2).mean(1) + 1e-2 if len(columns) > 3 else squares.new_tensor([1e-2])
    squares = squares + ridge[:, None, None] * torch.eye(len(columns))
    factors = torch.linalg.solve(squares, weighted @ wanted[..., None])
    return (table @ factors).squeeze(-1), factors.squeeze(-1)


def _small(images: Tensor) -> Tensor:
    gray = _resized(images.mean(1, keepdim=True), _SMALL).flatten(1)
    return F.normalize(gray - gray.mean(1, keepdim=True), dim=1)


def _resized(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)


def _contrast(images: Tensor) -> Tensor:
    return _rms(images - images.mean((1, 2, 3), keepdim=True))


def _rms(images: Tensor) -> Tensor:
    return images.square().mean((1, 2, 3)).sqrt()

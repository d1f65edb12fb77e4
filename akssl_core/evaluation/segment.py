"""Dense evaluation: a linear classifier of frozen patch features, judged by the pixels of masks.

After the protocol of CAPI (Darcet et al. 2025, arXiv 2502.08769) and, for the way from patches to pixels, of DINOv2
(Oquab et al. 2023, arXiv 2304.07193, section 7.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import TokenBackbone
from ..console import Progress
from ..data import ImageSet
from ..data.convert import Square
from ..data.masks import IGNORED
from ..draws import fold, mix, uniform
from ..errors import DataError
from ..metrics.features import patches_of, sample, spread
from ..metrics.linear import LARGE, linear_scores
from .protocols import System
from .result import TRAINED, Comparison, Evaluation, Score
from .split import Split

PATCHES = 100_000  # of the training images, at most
RESAMPLES = 1000  # of the test images, for the intervals
HELD_OUT = 10  # one training image in so many chooses the penalty
CELL = 8  # side of raw pixels within a patch, at most
AT_ONCE = 2**25  # scores of pixels in memory
MEANING = (
    "a linear classifier of frozen patch features (a CNN's last map): logistic regression on standardised features, "
    "each patch with the most frequent class of its pixels, by L-BFGS with the L2 penalty chosen on a tenth of the "
    "training images; its scores are brought to pixels bilinearly. The number is the mean intersection over union of "
    "all test pixels, in percent, over the classes that occur among them or among the guesses"
)
HOW = (
    f"95 %, of {RESAMPLES} resamples of the test images; differences are of the same resamples. What would be "
    "otherwise with other training images is not in it"
)


def segment(systems: Sequence[System], split: Split, batch_size: int, device: torch.device) -> Evaluation:
    """Judge systems, the trained one first, by images with masks; without file and the name of the data.

    Raises:
        DataError: features are not finite, or the masks hold fewer than two classes.
        ConfigError: the backbone gives no features of patches.
    """
    place = _Place(systems[0], split, batch_size, device)
    confusions = {}
    with Progress(len(systems), "fit", leave=False) as progress:
        for system in systems:
            confusions[system.name] = place.confusion(system)
            progress.update()
            progress.tell(f"segment: {system.name} is judged")
    resampled = {name: 100 * miou(_resamples(confusion)) for name, confusion in confusions.items()}
    images, scores, comparisons = len(place.train), [], []
    for name, confusion in confusions.items():
        mean = 100 * float(miou(confusion.sum(0)))
        scores.append(Score(name, 1.0, images, None, mean, *_bounds(resampled[name]), (mean,)))
        if name != TRAINED:
            low, high = _bounds(resampled[TRAINED] - resampled[name])
            comparisons.append(Comparison(name, 1.0, None, scores[0].accuracy - mean, low, high))
    return Evaluation(
        protocol="segment",
        meaning=MEANING,
        interval=HOW,
        data="",
        split=split.record() | {"train_images": images, "classes": len(place.classes)},
        k=None,
        scores=tuple(scores),
        comparisons=tuple(comparisons),
        notes=tuple(place.notes(confusions)),
    )


def miou(confusion: Tensor) -> Tensor:
    """The mean intersection over union (...,) of counts (..., truth, guess), over classes that occur in either."""
    hit = confusion.diagonal(dim1=-2, dim2=-1).double()
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    found = union > 0
    return (hit / union.clamp(min=1) * found).sum(-1) / found.sum(-1).clamp(min=1)


def _resamples(confusion: Tensor) -> Tensor:
    """Counts (RESAMPLES, truth, guess) of as many images as there are, drawn with repeats; the same for each system."""
    count = len(confusion)
    drawn = (uniform(mix(torch.arange(RESAMPLES) ^ fold(5)), count) * count).long().clamp(max=count - 1)
    times = torch.zeros(RESAMPLES, count, dtype=torch.double).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    return (times @ confusion.flatten(1).double()).reshape(-1, *confusion.shape[1:])


def batches(count: int, size: int) -> Iterator[range]:
    """The numbers below `count` in stretches."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _bounds(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


class _Place:
    """Where systems are judged: images, masks, and the grid of the trained backbone's patches, which all get."""

    def __init__(self, system: System, split: Split, batch_size: int, device: torch.device) -> None:
        feed, backbone, self.batch_size, self.device = system.preprocess, system.backbone, batch_size, device
        assert backbone is not None
        patches, self.grid = patches_of(backbone.to(device), feed.fetch(split.test, [0]), feed, device=device)
        backbone.to("cpu")
        most = min(PATCHES, LARGE // patches.shape[2]) // patches.shape[1]
        self.train, self.test = sample(split.train, max(2, most)), split.test
        covered = self.grid[0] * backbone.patch_size if isinstance(backbone, TokenBackbone) else 0
        self.side = max(feed.size, covered)  # of what the patches cover, from the image's upper left corner
        self.masks = [self._masks(images, feed.square) for images in (self.train, self.test)]
        seen = torch.unique(torch.cat([torch.unique(mask) for mask in self.masks])).long()
        self.classes = seen[seen != IGNORED]
        self.targets = self.majority(self.masks[0]).flatten() if len(self.classes) else self.classes
        if len(self.test) < 2:
            raise DataError(
                "masks: one test image has one. An interval takes at least two: give more, or others by --test-data."
            )
        if len(self.train) < 2 or len(torch.unique(self.targets[self.targets >= 0])) < 2:
            raise DataError(
                f"masks: those of the {len(self.train)} training images hold less than two classes. Give more."
            )

    def _masks(self, images: ImageSet, square: Square) -> Tensor:
        """(N, side, side) uint8; 255 counts nowhere."""
        parts = (images.masks(index, square) for index in batches(len(images), self.batch_size))
        whole = torch.cat([part for part in parts if part is not None])
        return F.pad(whole, (0, self.side - square.size) * 2, value=IGNORED)

    def majority(self, masks: Tensor) -> Tensor:
        """The most frequent class (N, L) of each patch by its place in `classes`, -1 where no pixel has one."""
        rows, columns = (torch.arange(self.side) * count // self.side for count in self.grid)
        cells = rows[:, None] * self.grid[1] + columns
        places, size = self.grid[0] * self.grid[1], len(self.classes)
        found = []
        for mask in masks:
            known = mask != IGNORED
            numbers = torch.searchsorted(self.classes, mask[known].long())
            counts = (cells[known] * size + numbers).bincount(minlength=places * size).view(places, size)
            found.append(torch.where(counts.sum(1) > 0, counts.argmax(1), -1))
        return torch.stack(found)

    def confusion(self, system: System) -> Tensor:
        """Counts (Q, K, K) of the test images' pixels, by truth and guess."""
        rows = torch.cat([features.flatten(0, 1) for features in self.features(system, self.train)])
        if not rows.isfinite().all():
            raise DataError(f"segment: features of '{system.name}' are not finite. The weights have diverged.")
        patches = self.grid[0] * self.grid[1]
        chosen = torch.zeros(len(self.train), dtype=torch.bool)
        chosen[spread(len(chosen), max(1, len(chosen) // HELD_OUT))] = True
        known = self.targets >= 0
        present, targets = torch.unique(self.targets[known], return_inverse=True)
        scores = linear_scores(rows[known], targets, chosen.repeat_interleave(patches)[known], _mark)
        found, start = [], 0
        for features in self.features(system, self.test):
            masks = self.masks[1][start : start + len(features)]
            found.append(self.counted(scores(features), masks, present))
            start += len(features)
        return torch.cat(found)

    def features(self, system: System, images: ImageSet) -> Iterator[Tensor]:
        """Those of the patches (b, L, D) on the CPU, batch by batch."""
        feed, backbone = system.preprocess, system.backbone
        for index in batches(len(images), self.batch_size):
            batch = feed.fetch(images, index)
            if backbone is None:
                yield self.pixels(feed.pixels(batch))
            else:
                yield patches_of(backbone.to(self.device), batch, feed, device=self.device)[0].cpu()
        if backbone is not None:
            backbone.to("cpu")

    def pixels(self, images: Tensor) -> Tensor:
        """The pixels of each patch as its features (b, L, D), averaged down to 8 x 8 where they are more."""
        rows, columns = (count * min(CELL, max(1, self.side // count)) for count in self.grid)
        whole = F.interpolate(F.pad(images, (0, self.side - images.shape[-1]) * 2), (rows, columns), mode="area")
        shape = (self.grid[0], rows // self.grid[0], self.grid[1], columns // self.grid[1])
        parts = whole.reshape(*whole.shape[:2], *shape).permute(0, 2, 4, 1, 3, 5)  # (b, rows, columns, C, h, w)
        return parts.flatten(3).flatten(1, 2)

    def counted(self, scores: Tensor, masks: Tensor, present: Tensor) -> Tensor:
        """Counts (b, K, K) by truth and guess, from scores (b, L, k) of the patches for the classes `present` (k,)."""
        size, found = len(self.classes), []
        step = max(1, AT_ONCE // (len(present) * self.side**2))
        for part, truth in zip(torch.split(scores, step), torch.split(masks, step), strict=True):
            maps = part.transpose(1, 2).reshape(len(part), -1, *self.grid)
            guesses = present[F.interpolate(maps, (self.side, self.side), mode="bilinear").argmax(1)]
            pairs = torch.searchsorted(self.classes, truth.long().clamp(max=int(self.classes[-1]))) * size + guesses
            pairs += torch.arange(len(part))[:, None, None] * size**2
            counts = pairs[truth != IGNORED].bincount(minlength=len(part) * size**2)
            found.append(counts.view(len(part), size, size))
        return torch.cat(found)

    def notes(self, confusions: Mapping[str, Tensor]) -> Iterator[str]:
        """Numbers to read the others by."""
        best = self.majority(self.masks[1])
        known = F.one_hot(best.clamp(min=0), len(self.classes)).float() * (best >= 0)[..., None]
        ceiling = 100 * float(miou(self.counted(known, self.masks[1], torch.arange(len(self.classes))).sum(0)))
        yield f"with the true class of each of the {self.grid[0]} x {self.grid[1]} patches it would be {ceiling:.1f} %"
        shares = {name: 100 * float(found.sum(0).trace() / found.sum()) for name, found in confusions.items()}
        yield f"pixels that are right: {', '.join(f'{name} {share:.1f} %' for name, share in shares.items())}"


def _mark(guesses: Tensor, targets: Tensor) -> float:
    """The mean intersection over union of patches."""
    size = int(torch.maximum(guesses.max(), targets.max())) + 1
    return float(miou((targets * size + guesses).bincount(minlength=size**2).view(size, size)))

"""The frozen teacher: a network that is shown the student's pixels, or what it made of them once, from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akssl_core import Backbone, BackboneSource, ConfigError, Features, ImageSpec, LoadedBackbone, view_as
from akssl_core.nn import Frozen

TRIED = 32  # images on which a teacher's features must differ
ALIKE = 1e-4  # deviation of a teacher's features, as a share of their length, below which they tell nothing


class Live(nn.Module):
    """A teacher that is asked: called with the student's images, it sees them as it was trained to."""

    def __init__(self, loaded: LoadedBackbone, shown: ImageSpec) -> None:
        super().__init__()
        self.backbone = loaded.backbone
        self.embed_dim = loaded.backbone.embed_dim
        self.shown, self.wanted = shown, loaded.image

    def forward(self, images: Tensor, index: Tensor, epoch: int) -> Features:
        """Its features of images (B, C, H, W); which images they are, and when, is the same to it."""
        return self.backbone.features(view_as(images, self.shown, self.wanted))


class Stored(nn.Module):
    """What a teacher made of some views of every image."""

    rows: Tensor  # (views, images, D)

    def __init__(self, rows: Tensor, teacher: str, identity: Mapping[str, Any]) -> None:
        super().__init__()
        self.embed_dim = rows.shape[2]
        self.teacher = teacher
        """SHA-256 of the teacher's weights."""
        self.identity = identity
        """What the pixels follow from, as `Shown` says."""
        self.register_buffer("rows", rows)

    def forward(self, images: Tensor, index: Tensor, epoch: int) -> Features:
        """The features (B, D) of the images at positions `index` (B,) in the view of an epoch."""
        return Features(self.rows[epoch % len(self.rows), index])


def live(source: BackboneSource, backbone: Backbone) -> Frozen:
    """The teacher with its weights, for a student.

    Raises:
        AksslError: it cannot be had, cannot see the student's images, or makes the same of all of them.
    """
    loaded = source.load("method.teacher", backbone.image)
    teacher = Frozen(Live(loaded, backbone.image), loaded.about)
    _refuse_constant(teacher, backbone.image)
    return teacher


def trial(image: ImageSpec, count: int = TRIED) -> Tensor:
    """Smooth images (count, C, size, size), unlike each other, normalised as those of a run are."""
    coarse = torch.rand(count, image.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(coarse, (image.size, image.size), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (image.mean, image.std))
    return (pixels - mean) / std


def _refuse_constant(teacher: Frozen, image: ImageSpec) -> None:
    """Refuse a teacher from which there is nothing to learn; a student would meet it at once."""
    features = teacher(trial(image), torch.arange(TRIED), 0).pooled.float()
    spread = float(features.std(0).norm() / features.norm(dim=1).mean().clamp(min=1e-12))
    if not spread > ALIKE:
        raise ConfigError(
            f"method.teacher: {teacher.about['source']} makes the same of {TRIED} unlike images (their features vary "
            f"by {spread:.1g} of their length): its weights are damaged, or not those of this network."
        )


def resized(tokens: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Tokens (B, N, D) of one grid on a finer one, row by row, bilinearly between the centres of patches."""
    if grid == to:
        return tokens
    places = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    return F.interpolate(places, to, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def aligned(tokens: Tensor, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """Predictions (B, N, D) of the teacher's tokens for each patch of the student, and those, on the finer grid."""
    assert student.grid is not None  # `_refuse_without_patches` has looked
    assert teacher.grid is not None
    assert teacher.patches is not None
    finer = max(student.grid, teacher.grid)
    return resized(tokens, student.grid, finer), resized(teacher.patches, teacher.grid, finer)

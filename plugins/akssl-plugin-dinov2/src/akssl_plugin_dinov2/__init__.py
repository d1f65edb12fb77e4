"""DINOv2: a student meets its own slow copy on whole crops and on hidden patches, and keeps images apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from akssl_core import (
    Batch,
    Choice,
    Curve,
    Facts,
    Landmark,
    LossRef,
    Method,
    Now,
    ParamRule,
    Registry,
    Schedule,
    Schema,
    TokenBackbone,
    cosine,
    dist,
    hookimpl,
    linear,
)
from akssl_core.draws import Draws
from akssl_core.masks import block_masks, hidden_rows, mask_ratios
from akssl_core.nn import EMA, Center, CosineHead, entropy, sinkhorn, std_ratio

from . import sizes
from .losses import GramLoss, ImageLoss, KoLeoLoss, PatchLoss
from .published import PUBLISHED
from .recipes import RECIPES

SMALLEST = 4  # patches of a rectangle that is hidden; the largest is half of all


class Gram(Schema):
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4): likeness of patches stays near that of an earlier teacher."""

    weight: float = Field(2.0, ge=0, description="of the loss, once it counts")
    snapshot: float = Field(0.2, ge=0, le=1, description="share of the run after which the earlier teacher is kept")
    begin: float = Field(0.8, ge=0, le=1, description="share of the run after which the loss counts")


class Until(Schedule):
    """The momentum of a copy that is exact up to a share `start` of the run, and then stays."""

    def __call__(self, now: Now) -> float:
        """0 up to there, then 1."""
        return float(now.step > self.start * now.total_steps)


class DINOv2(Method[TokenBackbone]):
    """Self-distillation of images and patches: a student meets its slow copy on crops and on hidden patches.

    The teacher sees the two global crops, whole; the student sees local crops, and global ones of which half have
    hidden patches. Targets are balanced over the outputs (Sinkhorn), and class tokens of unlike images are kept apart
    (KoLeo). The teacher's backbone is the product.
    """

    name = "dinov2"
    views: ClassVar[Mapping[str, int | range]] = {"global": 2, "local": range(17)}
    paper = (
        "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, "
        "https://arxiv.org/abs/2304.07193"
    )
    recipes = RECIPES
    published = PUBLISHED

    class Config(Schema):
        """The heads, what is hidden, the targets, and how the teacher moves."""

        hidden_dim: int = Field(2048, gt=0, description="width inside the heads")
        bottleneck_dim: int = Field(256, gt=1, description="width before the last layer, where rows have unit length")
        out_dim: int = Field(65536, gt=1, description="outputs of the head on images")
        patch_out_dim: int = Field(65536, gt=1, description="outputs of the head on patches, where it is another")
        separate_heads: bool = Field(True, description="patches have a head of their own; false: one head for both")
        head_layers: int = Field(3, ge=1, description="linear layers of a head before the last one")
        head_batch_norm: bool = Field(
            False, description="batch norms in a separate head on images, and behind its bottleneck (the paper: none)"
        )
        head_init_std: float | None = Field(
            0.02, gt=0, description="standard deviation of the heads' first weights; null: torch's default"
        )
        norm_last_layer: bool = Field(
            False, description="keep the last layers' rows at unit length (the paper: free)"
        )
        mask_chance: float = Field(0.5, ge=0, le=1, description="share of the global crops that have hidden patches")
        mask_ratio: tuple[float, float] = Field((0.1, 0.5), description="smallest and largest share that is hidden")
        targets: Literal["sinkhorn", "center"] = Field(
            "sinkhorn", description="how targets are kept from collapse: balanced over outputs and batch, or centred"
        )
        teacher_temperature: Schedule = Field(
            linear(0.04, 0.07, over=30), description="temperature of the teacher's targets; below the student's"
        )
        momentum: Schedule = Field(cosine(0.992, 1.0), description="share of the teacher kept each step, 0 to 1")
        freeze_last_layer_epochs: float = Field(1.0, ge=0, description="epochs in which the last layers stay")
        patch_weight: Schedule = Field(Schedule(start=1.0), description="weight of the loss on hidden patches")
        koleo_weight: float = Field(0.1, ge=0, description="weight of the loss that spreads out each global crop")
        gram: Gram | None = Field(None, description="Gram anchoring, for long runs of large networks; null: none")
        loss: LossRef = LossRef.field("dinov2", description="compares crops (V x (N, K)) with targets (2 x (N, K))")
        patch_loss: LossRef = LossRef.field(
            "dinov2_patches", description="compares hidden patches (n, K) with targets (n, K), by weights (n,)"
        )
        koleo: LossRef = LossRef.field("koleo", description="spreads out features (N, D) of a crop")

        @field_validator("teacher_temperature")
        @classmethod
        def _positive(cls, schedule: Schedule) -> Schedule:
            if min(schedule.corners) <= 0:
                raise ValueError("should be above 0 all the time (with a warmup, warmup_from as well)")
            return schedule

        @field_validator("momentum")
        @classmethod
        def _share(cls, schedule: Schedule) -> Schedule:
            if not all(0 <= value <= 1 for value in schedule.corners):
                raise ValueError("should stay between 0 and 1")
            return schedule

        @field_validator("mask_ratio")
        @classmethod
        def _ordered(cls, ratio: tuple[float, float]) -> tuple[float, float]:
            if not 0 <= ratio[0] <= ratio[1] <= 1:
                raise ValueError("should be two numbers from 0 to 1, the smaller one first")
            return ratio

    def __init__(self, config: Any, backbone: TokenBackbone) -> None:
        super().__init__(config, backbone)
        self.mask_token = nn.Parameter(torch.zeros(backbone.token_dim))
        self.head = self._head(backbone.embed_dim, config.out_dim, batch_norm=config.head_batch_norm)
        heads = {"head": self.head}
        if config.separate_heads:
            heads["patch_head"] = self.patch_head = self._head(backbone.token_dim, config.patch_out_dim)
        self.teacher = EMA(config.momentum, backbone=backbone, **heads)
        if config.targets == "center":
            self.center, self.patch_center = Center(config.out_dim), Center(sizes.patch_outputs(config))
        if config.gram is not None:
            self.earlier = EMA(Until(start=config.gram.snapshot), backbone=self.teacher.backbone)
            self.gram = GramLoss(GramLoss.Config())
        self.loss, self.patch_loss, self.koleo = (
            ref.build() for ref in (config.loss, config.patch_loss, config.koleo)
        )

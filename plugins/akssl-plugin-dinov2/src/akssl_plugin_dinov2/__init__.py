"""DINOv2: a student meets its own slow copy on whole crops and on hidden patches, and keeps images apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from akssl_core import (
    Artefacts,
    Batch,
    Choice,
    Curve,
    Draws,
    Facts,
    Features,
    FractionSchedule,
    Landmark,
    LossRef,
    Method,
    NonNegativeSchedule,
    Now,
    ParamRule,
    PositiveSchedule,
    Registry,
    Schedule,
    Schema,
    TokenBackbone,
    cosine,
    dist,
    hookimpl,
    linear,
)
from akssl_core.masks import block_masks, hidden_rows, mask_ratios, on_pixels
from akssl_core.nn import EMA, Center, CosineHead, entropy, patch_std, sinkhorn, std_ratio

from . import sizes
from .courses import COURSES
from .losses import GramLoss, ImageLoss, KoLeoLoss, PatchLoss
from .published import PUBLISHED
from .recipes import RECIPES

SMALLEST = 4  # patches of a rectangle that is hidden; the largest is half of all


class Gram(Schema):
    """Gram anchoring (arXiv 2508.10104, section 4): the likeness of patches stays near that of an earlier teacher."""

    weight: float = Field(2.0, ge=0, description="of the loss, once it counts")
    snapshot: float = Field(0.2, ge=0, le=1, description="share of the run after which the earlier teacher is kept")
    begin: float = Field(0.8, ge=0, le=1, description="share of the run after which the loss counts")

    def weight_at(self, now: Now) -> float:
        """The weight at a step: 0 up to where it begins."""
        return self.weight if now.step >= self.begin * now.total_steps else 0.0


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
    courses = COURSES["dinov2"]

    class Config(Schema):
        """The heads, what is hidden, the targets, and how the teacher moves."""

        hidden_dim: int = Field(2048, gt=0, description="width inside the heads")
        bottleneck_dim: int = Field(256, gt=1, description="width before the last layer, where rows have unit length")
        out_dim: int = Field(65536, gt=1, description="outputs of the head of class tokens")
        patch_out_dim: int = Field(65536, gt=1, description="outputs of the head of patches, where they have their own")
        shared_head: bool = Field(
            False, description="one head for class tokens and patches; false: patches have one of their own"
        )
        head_layers: int = Field(3, ge=1, le=256, description="linear layers of a head before the last one")
        head_batch_norm: bool = Field(
            False, description="batch norms in the head of class tokens, which patches must then not share"
        )
        projection_batch_norm: bool = Field(
            False, description="batch norm, without scale and shift, behind that head's bottleneck (the paper: none)"
        )
        head_init_std: float | None = Field(
            0.02, gt=0, description="standard deviation of the heads' first weights; null: torch's default"
        )
        norm_last_layer: bool = Field(False, description="keep the last layers' rows at unit length (the paper: free)")
        mask_chance: float = Field(0.5, ge=0, le=1, description="share of the global crops that have hidden patches")
        mask_ratio: tuple[float, float] = Field((0.1, 0.5), description="smallest and largest share that is hidden")
        targets: Literal["sinkhorn", "center"] = Field(
            "sinkhorn", description="how targets are kept from collapse: balanced over outputs and batch, or centred"
        )
        teacher_temperature: PositiveSchedule = Field(
            linear(0.04, 0.07, over=30), description="temperature of the teacher's targets; below the student's"
        )
        momentum: FractionSchedule = Field(
            cosine(0.992, 1.0), description="share of the teacher kept each step, 0 to 1"
        )
        freeze_last_layer_epochs: float | None = Field(
            1.0, ge=0, description="epochs in which the last layers stay; null: the whole run"
        )
        patch_weight: NonNegativeSchedule = Field(
            Schedule(start=1.0), description="weight of the loss on hidden patches"
        )
        koleo_weight: float = Field(0.1, ge=0, description="weight of the loss that spreads out each global crop")
        gram: Gram | None = Field(None, description="Gram anchoring, for long runs of large networks; null: none")
        loss: LossRef = LossRef.field("dinov2", description="compares crops (V x (N, K)) with targets (2 x (N, K))")
        patch_loss: LossRef = LossRef.field(
            "dinov2_patches", description="compares hidden patches (n, K) with targets (n, K), by weights (n,)"
        )
        koleo: LossRef = LossRef.field("koleo", description="spreads out features (N, D) of a crop")

        @field_validator("mask_ratio")
        @classmethod
        def _ordered(cls, ratio: tuple[float, float]) -> tuple[float, float]:
            if not 0 <= ratio[0] <= ratio[1] <= 1:
                raise ValueError("should be two numbers from 0 to 1, the smaller one first")
            return ratio

    def __init__(self, config: Any, backbone: TokenBackbone) -> None:
        super().__init__(config, backbone)
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.token_dim))
        norms = {"batch_norm": config.head_batch_norm, "last_batch_norm": config.projection_batch_norm}
        self.head = self._head(config.out_dim, **norms)
        heads = {"head": self.head}
        if not config.shared_head:
            heads["patch_head"] = self.patch_head = self._head(config.patch_out_dim)
        self.teacher = EMA(config.momentum, backbone=backbone, **heads)
        if config.targets == "center":
            self.center, self.patch_center = Center(config.out_dim), Center(sizes.patch_outputs(config))
        if config.gram is not None:
            self.earlier = EMA(Until(start=config.gram.snapshot), backbone=self.teacher.backbone)
            self.gram = GramLoss(GramLoss.Config())
        self.loss, self.patch_loss = config.loss.build(), config.patch_loss.build()
        self.koleo = config.koleo.build()

    def _head(self, outputs: int, **norms: bool) -> CosineHead:
        """A head by the settings."""
        config = self.config
        return CosineHead(
            self.backbone.token_dim,
            config.hidden_dim,
            config.bottleneck_dim,
            outputs,
            layers=config.head_layers,
            init_std=config.head_init_std,
            fixed_gain=config.norm_last_layer,
            **norms,
        )

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Section 4 of the paper with multi-crop: the loss, its parts, and what targets and features are like.

        `z_std_ratio` is the spread of the bottleneck over the images of a crop, `patch_std` that of the teacher's
        patches within images; `koleo` is the mean of both crops.
        """
        large, small = batch.views["global"], batch.views.get("local", [])
        x = torch.cat(large)
        masks, places, weights = self.hide(batch, self.backbone.patch_grid(x))
        targets, patch_targets, h = self.teach(x, places, now)
        seen = self.backbone.features(x, mask=masks, token=self.mask_token[0])
        tokens = seen.whole
        local = [self.backbone.features(torch.cat(small)).whole] if small else []
        z = self.head.project(torch.cat([tokens, *local]))
        patches = self.on_patches(self, seen, places)
        cls_loss = self.loss(self.head.last(z).chunk(len(large) + len(small)), targets.chunk(len(large)))
        patch_loss = self.patch_loss(patches, patch_targets, weights, len(x))
        koleo = torch.stack([self.koleo(crop) for crop in tokens.chunk(len(large))])
        loss = cls_loss + self.config.patch_weight(now) * patch_loss + self.config.koleo_weight * koleo.sum()
        terms = {"cls_loss": cls_loss.detach(), "patch_loss": patch_loss.detach(), "koleo": koleo.detach().mean()}
        terms |= measured(h, targets, patch_targets, patches)
        if self.config.gram is not None:
            gram = self.gram(seen.patches, self.earlier.backbone.features(x).patches)
            loss, terms["gram"] = loss + self.config.gram.weight_at(now) * gram, gram.detach()
        return {"loss": loss, **terms, "z_std_ratio": std_ratio(z[: len(batch)])}

    def hide(self, batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """What is hidden of the global crops: masks (2 B, N), places in them (n,) and weights (n,)."""
        draws = Draws.join([batch.host.draws.view(v) for v in range(2)])
        tokens = math.prod(grid)
        wanted = (mask_ratios(draws, self.config.mask_chance, self.config.mask_ratio) * tokens).long()
        masks = block_masks(draws, grid, wanted, least=SMALLEST, most=tokens // 2)
        places, weights = hidden_rows(masks)
        return batch.sent(masks), batch.sent(places), batch.sent(weights)

    @torch.no_grad()
    def teach(self, x: Tensor, places: Tensor, now: Now) -> tuple[Tensor, Tensor, Features]:
        """Targets (2 B, K) of whole crops x, those (n, K) of patches at these places, and the teacher's features."""
        h = self.teacher.backbone.features(x)
        logits, of_patches = self.teacher.head(h.whole), self.on_patches(self.teacher, h, places)
        temperature = self.config.teacher_temperature(now)
        if self.config.targets == "sinkhorn":
            targets, patch_targets = (sinkhorn(rows, temperature, all_ranks=True) for rows in (logits, of_patches))
        else:
            targets = ((logits - self.center.value) / temperature).softmax(1)
            patch_targets = ((of_patches - self.patch_center.value) / temperature).softmax(1)
            self.center.push(logits)
            self.patch_center.push(mean_row(of_patches, self.patch_center.value))
        return targets, patch_targets, h

    def on_patches(self, networks: Any, h: Features, places: Tensor) -> Tensor:
        """Logits (n, K) of the student's or the teacher's patches at these places (n,) among all of them."""
        assert h.patches is not None
        head = networks.head if self.config.shared_head else networks.patch_head
        logits: Tensor = head(h.patches.flatten(0, 1)[places])
        return logits

    def param_rules(self) -> Sequence[ParamRule]:
        """The last layers stay for the first epochs, as in the authors' code, or always."""
        heads = ("head",) if self.config.shared_head else ("head", "patch_head")
        epochs = self.config.freeze_last_layer_epochs
        frozen = math.inf if epochs is None else epochs
        return [ParamRule(f"{name}.last.*", frozen_epochs=frozen) for name in heads]

    @property
    def encoder(self) -> TokenBackbone:
        """The teacher's backbone, which the paper evaluates."""
        backbone: TokenBackbone = self.teacher.backbone
        return backbone

    def artefacts(self, batch: Batch, now: Now) -> Artefacts:
        """The first global crop of each image, and the same with the patches hidden that the student did not see."""
        x = batch.views["global"][0]
        grid = self.backbone.patch_grid(x)
        mask = self.hide(batch, grid)[0][: len(batch)]
        pixels = on_pixels(mask, grid, x.shape[2:], self.backbone.patch_size)
        crop = self.backbone.image.pictures(x)
        return Artefacts({"global crop": crop, "as the student sees it": crop.masked_fill(pixels, 0.5)})

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Outputs that the images can fill, a warm-up that ends within the run, last layers that are trained."""
        return sizes.choose(config, facts)

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """What lets the outputs collapse, or leaves a part of the method out."""
        return sizes.check(config, facts)

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Targets that are even or certain whatever is seen, and class tokens that stay alike."""
        return sizes.landmarks(config)

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The parts of the loss and the entropies of the targets, beside log K."""
        return sizes.curves(config)

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many patches are hidden, and how many images and targets of a step there are for each output."""
        return sizes.derived(config, facts)


@torch.no_grad()
def measured(h: Features, targets: Tensor, patch_targets: Tensor, patches: Tensor) -> dict[str, Tensor]:
    """Of a teacher's features, its targets (2 B, K) and (n, K), and a student's logits (n, K): what to log of them.

    Entropies are log K where targets are even; student and teacher agree where their likeliest output is the same.
    """
    assert h.patches is not None
    hidden = max(len(patches), 1)
    return {
        "teacher_entropy": entropy(targets),
        "patch_entropy": torch.special.entr(patch_targets).sum() / hidden,
        "patch_agreement": (patches.argmax(1) == patch_targets.argmax(1)).float().sum() / hidden,
        "patch_std": patch_std(h.patches),
    }


@torch.no_grad()
def mean_row(rows: Tensor, otherwise: Tensor) -> Tensor:
    """The mean (1, K) over the rows (n, K) of all processes, which may have unlike many; `otherwise` (K,) for none."""
    sums = dist.mean(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
    return torch.where(sums[-1:] > 0, sums[:-1] / sums[-1:], otherwise)[None]


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its losses."""
    for component in (ImageLoss, PatchLoss, KoLeoLoss, GramLoss, DINOv2):
        registry.add(component)

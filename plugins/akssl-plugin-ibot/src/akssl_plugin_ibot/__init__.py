"""iBOT: a student tells of masked patches, as of whole crops, what its own slow copy says that sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from akssl_core import (
    Artefacts,
    Batch,
    Choice,
    ConfigError,
    Curve,
    Draws,
    Facts,
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
    hookimpl,
)
from akssl_core.masks import block_masks, hidden_rows, mask_ratios, on_pixels
from akssl_core.nn import EMA, Center, CosineHead, entropy, patch_std, std_ratio

from .courses import COURSES
from .losses import IBOTLoss, PatchLoss, targets
from .published import PUBLISHED
from .recipes import RECIPES


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("should have the smaller number first")
    return interval


Share = Annotated[float, Field(gt=0, le=1)]


def of_patches(heads: Any) -> CosineHead:
    """The head of the patches, their own or the one that they share."""
    head: CosineHead = heads["patch" if "patch" in heads else "whole"]
    return head


def over_crops(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of values (n,) of masked patches over those of each crop and over the crops that have any; else 0."""
    mean: Tensor = (values * weights).sum() / weights.sum().clamp(min=1)
    return mean


class IBOT(Method[TokenBackbone]):
    """Self-distillation of crops and of masked patches: a student tells what its slow copy says that sees them whole.

    The teacher sees the global crops as they are; the student sees them with blocks of patches masked in half of them,
    and local crops. Between crops it matches the teacher's class tokens as DINO does, within a crop its patches.
    """

    name = "ibot"
    views: ClassVar[Mapping[str, int | range]] = {"global": 2, "local": range(17)}
    accumulates = True
    paper = (
        "Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022, https://arxiv.org/abs/2111.07832"
    )
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["ibot"]

    class Config(Schema):
        """The heads, what is masked, and how the teacher moves."""

        hidden_dim: int = Field(2048, gt=0, description="width inside a head")
        bottleneck_dim: int = Field(256, gt=1, description="width before the last layer, where rows have unit length")
        out_dim: int = Field(8192, gt=1, description="outputs of a head")
        head_layers: int = Field(3, ge=1, le=256, description="linear layers of a head before the last one")
        shared_head: bool = Field(
            True, description="one head for class tokens and patches (the paper); false: patches have one of their own"
        )
        head_init_std: float | None = Field(
            0.02, gt=0, description="standard deviation of a head's first weights; null: torch's default"
        )
        norm_last_layer: bool = Field(
            True, description="keep the last layer's rows at unit length (steadier; the paper's ViT-S does without)"
        )
        mask_chance: Share = Field(0.5, description="share of the global crops of which patches are masked")
        mask_ratio: Annotated[tuple[Share, Share], AfterValidator(_ordered)] = Field(
            (0.1, 0.5), description="smallest and largest share of the patches that is masked in such a crop"
        )
        mask_shape: Literal["block", "random"] = Field(
            "block", description="rectangles, or patches anywhere (the authors' README: as good at larger ratios)"
        )
        patch_weight: NonNegativeSchedule = Field(
            Schedule(start=1.0), description="weight of the loss on patches beside that on class tokens"
        )
        teacher_temperature: PositiveSchedule = Field(
            Schedule(start=0.04, end=0.07, shape="linear", over=30, per="epoch"),
            description="temperature of the teacher's softmax on class tokens; below the student's",
        )
        patch_temperature: PositiveSchedule = Field(
            Schedule(start=0.04, end=0.07, shape="linear", over=30, per="epoch"),
            description="temperature of the teacher's softmax on patches; below the student's",
        )
        center_momentum: float = Field(0.9, ge=0, lt=1, description="share of the teacher's centres kept each step")
        momentum: FractionSchedule = Field(
            cosine(0.996, 1.0), description="share of the teacher kept each step, 0 to 1"
        )
        freeze_last_layer_epochs: float | None = Field(
            1.0, ge=0, description="epochs in which the last layers stay; null: the whole run"
        )
        loss: LossRef = LossRef.field("ibot", description="compares student (V x (N, K)) and teacher (2 x (N, K))")
        patch_loss: LossRef = LossRef.field(
            "ibot_patch", description="compares logits (n, K) of masked patches with the teacher's"
        )

    def __init__(self, config: Any, backbone: TokenBackbone) -> None:
        super().__init__(config, backbone)
        self.heads: Any = nn.ModuleDict()
        for tokens in ("whole",) if config.shared_head else ("whole", "patch"):
            self.heads[tokens] = CosineHead(
                backbone.token_dim,
                config.hidden_dim,
                config.bottleneck_dim,
                config.out_dim,
                layers=config.head_layers,
                init_std=config.head_init_std,
                fixed_gain=config.norm_last_layer,
            )
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.token_dim))
        self.teacher = EMA(config.momentum, backbone=self.backbone, heads=self.heads)
        self.center = Center(config.out_dim, momentum=config.center_momentum)
        self.patch_center = Center(config.out_dim, momentum=config.center_momentum)
        self.loss, self.patch_loss = config.loss.build(), config.patch_loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper with multi-crop; the terms beside the loss are explained by `Method.curves`."""
        large, small = torch.cat(batch.views["global"]), batch.views.get("local", [])
        mask, rows, weights = self.masked(batch, self.backbone.patch_grid(large))
        teacher, patch_teacher, patch_means, patches = self.taught(large, rows)
        seen = self.backbone.features(large, mask=mask, token=self.mask_token[0])
        local = [self.backbone.features(torch.cat(small)).whole] if small else []
        z = self.heads["whole"].project(torch.cat([seen.whole, *local]))
        student = self.heads["whole"].last(z).chunk(2 + len(small))
        assert seen.patches is not None
        patch_student = of_patches(self.heads)(seen.patches.flatten(0, 1)[rows])

        tau, patch_tau = self.config.teacher_temperature(now), self.config.patch_temperature(now)
        center, patch_center = self.center.value, self.patch_center.value
        cls_loss = self.loss(student, teacher.chunk(2), center, tau)
        patch_loss = self.patch_loss(patch_student, patch_teacher, weights, len(mask), patch_center, patch_tau)
        says = targets(patch_teacher, patch_center, patch_tau)
        self.center.push(teacher)
        self.patch_center.push(patch_means)
        return {
            "loss": cls_loss + self.config.patch_weight(now) * patch_loss,
            "cls_loss": cls_loss.detach(),
            "patch_loss": patch_loss.detach(),
            "teacher_entropy": entropy(targets(teacher, center, tau)),
            "patch_entropy": over_crops(torch.special.entr(says).sum(1), weights),
            "patch_agreement": over_crops((patch_student.argmax(1) == says.argmax(1)).float(), weights),
            "z_std_ratio": std_ratio(z[: len(batch)]),
            "patch_std": patch_std(patches),
        }

    @torch.no_grad()
    def taught(self, large: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the teacher says of whole global crops (2 B, C, H, W), of which `rows` (n,) are hidden patches.

        Logits (2 B, K) of the crops and (n, K) of those patches, means (2 B, K) of those of all patches, and the
        features (2 B, N, D) of all patches.
        """
        h, heads = self.teacher.backbone.features(large), self.teacher.heads
        last = of_patches(heads).last
        z = of_patches(heads).project(h.patches.flatten(0, 1))
        means = last(z.view(*h.patches.shape[:2], -1).mean(1))  # of the logits, for it is linear
        return heads["whole"](h.whole), last(z[rows]), means, h.patches

    def masked(self, batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Which patches of the global crops are hidden from the student, made in the host's memory.

        (2 B, N) bool, the positions (n,) of those that are among all patches, and their weights (n,).
        """
        of, tokens = Draws.join([batch.host.draws.view(v) for v in range(2)]), math.prod(grid)
        wanted = tokens * mask_ratios(of, self.config.mask_chance, self.config.mask_ratio)
        if self.config.mask_shape == "block":
            mask = block_masks(of, grid, wanted, least=(min(grid) // 3) ** 2)
        else:
            mask = of.uniform("mask.shuffle", tokens).argsort(1).argsort(1) < wanted.floor()[:, None]
        rows, weights = hidden_rows(mask)
        return batch.sent(mask), batch.sent(rows), batch.sent(weights)

    def param_rules(self) -> Sequence[ParamRule]:
        """The last layers stay for the first epochs, as in the authors' code, or always."""
        epochs = self.config.freeze_last_layer_epochs
        return [ParamRule("heads.*.last.*", frozen_epochs=math.inf if epochs is None else epochs)]

    @property
    def encoder(self) -> TokenBackbone:
        """The teacher's backbone, which the paper evaluates."""
        backbone: TokenBackbone = self.teacher.backbone
        return backbone

    def artefacts(self, batch: Batch, now: Now) -> Artefacts:
        """The first global crop of each image, and the same with the patches hidden that the student did not see."""
        x = batch.views["global"][0]
        grid = self.backbone.patch_grid(x)
        mask = self.masked(batch, grid)[0][: len(batch)]
        pixels = on_pixels(mask, grid, x.shape[2:], self.backbone.patch_size)
        crop = self.backbone.image.pictures(x)
        return Artefacts({"global crop": crop, "as the student sees it": crop.masked_fill(pixels, 0.5)})

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Outputs that the images can fill, warm-ups that end within the run, last layers that are trained."""
        choices = {
            "out_dim": facts.outputs(config.out_dim),
            "teacher_temperature": facts.within_run(config.teacher_temperature),
            "patch_temperature": facts.within_run(config.patch_temperature),
            "freeze_last_layer_epochs": facts.part_of_run(config.freeze_last_layer_epochs),
        }
        return {name: choice for name, choice in choices.items() if choice}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """Too few patches to hide some, and targets that are too flat."""
        if min(facts.tokens or (2, 2)) < 2:
            rows, columns = facts.tokens or (2, 2)
            raise ConfigError(
                f"backbone.patch_size: crops of {facts.image_size} px have {rows} x {columns} patches; expected at "
                "least 2 x 2, of which some are hidden. Use smaller patches or larger views (train.image_size)."
            )
        warnings = []
        for name, loss in (("teacher_temperature", config.loss), ("patch_temperature", config.patch_loss)):
            hottest = max(getattr(config, name).corners)
            student = getattr(loss.config, "student_temperature", None)  # another loss may have none
            if student is not None and hottest >= student:
                warnings.append(
                    f"method.{name}: it reaches {hottest:g}, and the student's is {student:g} (student_temperature of "
                    f"method.{'loss' if loss is config.loss else 'patch_loss'}). Targets would be flatter than the "
                    "predictions, so that all outputs collapse to uniform. Keep it below the student's; 0.04 to 0.07 "
                    "is usual."
                )
        if (config.freeze_last_layer_epochs or 0) >= facts.epochs:
            warnings.append(
                f"method.freeze_last_layer_epochs: {config.freeze_last_layer_epochs:g} of {facts.epochs:.3g} epochs, "
                f"so that the last layers are never trained. Use a tenth of them, or null if that is meant."
            )
        return warnings

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """The two collapses of self-distillation, on class tokens and on patches."""
        even = math.log(config.out_dim)
        found: list[Landmark] = []
        drawn = ", or leave the last layers as drawn (method.freeze_last_layer_epochs=null)"
        if config.freeze_last_layer_epochs is None:
            drawn = ""
        for whose, term, loss, name in (
            ("crops", "teacher_entropy", "cls_loss", "teacher_temperature"),
            ("patches", "patch_entropy", "patch_loss", "patch_temperature"),
        ):
            hottest = max(getattr(config, name).corners)
            found += [
                Landmark(
                    "collapsed",
                    {term: (0.998 * even, math.inf)},
                    f"the teacher's outputs for {whose} are even, log {config.out_dim} = {even:.4g}, whatever it sees",
                    f"the teacher is not sharp enough for its centre (its temperature reaches {hottest:g}).",
                    f"lower method.{name} to 0.04 to 0.07, below the student's temperature of 0.1{drawn}.",
                ),
                Landmark(
                    "collapsed",
                    {term: (0.0, 0.01 * even), loss: (0.0, 0.02 * even)},
                    f"one output wins for all {whose}",
                    "the centre does not hold the outputs back: it is missing, or follows the last batch alone.",
                    f"keep method.center_momentum near 0.9, or raise method.{name} a little.",
                ),
            ]
        return found

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The two terms and the teacher's entropies beside log K, and how often student and teacher agree."""
        even = math.log(config.out_dim)
        loss = "falls from even outputs; it is at least the teacher's entropy and follows it, so a later rise is normal"
        patch = "falls from even outputs in the crops that have a mask"
        if config.freeze_last_layer_epochs is not None:
            patch += "; may rise when the last layer begins to learn"
        teacher = {"even outputs": even}
        return {
            "cls_loss": Curve(loss, {"even outputs": even}),
            "patch_loss": Curve(patch, {"even outputs": config.mask_chance * even}),
            "teacher_entropy": Curve("falls below even outputs and stays above 0", teacher),
            "patch_entropy": Curve("falls below even outputs and stays above 0", teacher),
            "patch_agreement": Curve("rises well above chance", {"chance": 1 / config.out_dim}),
            "patch_std": Curve("stays well above 0, where all patches of an image are alike"),
        }

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many patches are hidden, and how many images there are for each output."""
        tokens, (low, high) = math.prod(facts.tokens or (1, 1)), config.mask_ratio
        return {
            "hidden patches": f"{low * tokens:.3g} to {high * tokens:.3g} of {tokens}, in {config.mask_chance:.0%} of "
            "the global crops",
            "images per output": f"{facts.images / config.out_dim:.3g} ({config.out_dim} outputs)",
        }


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its losses."""
    registry.add(IBOTLoss)
    registry.add(PatchLoss)
    registry.add(IBOT)

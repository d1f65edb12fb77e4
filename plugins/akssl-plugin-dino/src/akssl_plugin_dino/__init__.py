"""DINO: a student matches the centred and sharpened outputs of its own slow copy, across crops of unlike size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from akssl_core import (
    Backbone,
    Batch,
    Choice,
    Curve,
    Facts,
    FractionSchedule,
    KnownValue,
    Landmark,
    Loss,
    LossRef,
    Method,
    Now,
    ParamRule,
    PositiveSchedule,
    Registry,
    Schedule,
    Schema,
    cosine,
    hookimpl,
)
from akssl_core.nn import EMA, Center, CosineHead, across_views, entropy, std_ratio

from .courses import COURSES
from .published import PUBLISHED
from .recipes import RECIPES

WIDE_SCALE_FROM = 64  # px above which the paper's advice on the crops of a run without local ones holds


class DINOLoss(Loss):
    """Cross-entropy of the student's softmax under the teacher's, over all pairs of unlike views.

    The teacher's logits are centred and sharpened, `softmax((t - center) / teacher_temperature)`, and receive no
    gradient. The mean over the 2 (V - 1) pairs and the batch: log K where all logits are equal
    (equation 3 and algorithm 1 in arXiv 2104.14294).
    """

    name = "dino"

    class Config(Schema):
        """The student's sharpness; the teacher's changes with time, so it is an argument."""

        student_temperature: float = Field(0.1, gt=0, description="temperature of the student's softmax")

    @classmethod
    def known_values(cls) -> Sequence[KnownValue]:
        """Constant outputs, and a student that meets a certain teacher."""
        even, one, center = torch.zeros(2, 4), torch.eye(4)[:1].expand(2, -1), torch.zeros(4)
        met = math.log(1 + 3 * math.exp(-10)) + 30 / (math.exp(25) + 3)
        return [
            KnownValue(([even, even], [even, even], center, 0.04), math.log(4)),
            KnownValue(([one, one], [one, one], center, 0.04), met, tolerance=1e-7),
        ]

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, teacher_temperature: float
    ) -> Tensor:
        """The loss of V student logits (N, K) under 2 teacher logits (N, K) of the first 2 of these views."""
        targets = [((logits - center) / teacher_temperature).softmax(1).detach() for logits in teacher]
        predictions = [(logits / self.config.student_temperature).log_softmax(1) for logits in student]
        return across_views(targets, predictions)


class DINO(Method):
    """Self-distillation without labels: a student matches its own slow copy, local crops match global ones.

    The teacher sees the global crops alone. Its centre prevents that one output wins everywhere, its low
    temperature prevents that all outputs become equal. The teacher's backbone is the product.
    """

    name = "dino"
    views: ClassVar[Mapping[str, int | range]] = {"global": 2, "local": range(17)}
    accumulates = True
    paper = (
        "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, "
        "https://arxiv.org/abs/2104.14294"
    )
    recipes = RECIPES
    published = PUBLISHED
    courses = COURSES["dino"]

    class Config(Schema):
        """The head, and how the teacher moves."""

        hidden_dim: int = Field(2048, gt=0, description="width inside the head")
        bottleneck_dim: int = Field(256, gt=1, description="width before the last layer, where rows have unit length")
        out_dim: int = Field(65536, gt=1, description="outputs of the head")
        head_layers: int = Field(3, ge=1, description="linear layers of the head before the last one")
        head_batch_norm: bool = Field(False, description="batch norms in the head (for convolutional backbones)")
        projection_batch_norm: bool = Field(
            False, description="batch norm, without scale and shift, behind the bottleneck (the paper: none)"
        )
        head_init_std: float | None = Field(
            0.02, gt=0, description="standard deviation of the head's first weights; null: torch's default"
        )
        norm_last_layer: bool = Field(
            True, description="keep the last layer's rows at unit length (steadier; ViT-S learns better without)"
        )
        teacher_temperature: PositiveSchedule = Field(
            Schedule(start=0.04, end=0.07, shape="linear", over=30, per="epoch"),
            description="temperature of the teacher's softmax; below the student's",
        )
        center_momentum: float = Field(0.9, ge=0, lt=1, description="share of the teacher's centre kept each step")
        momentum: FractionSchedule = Field(
            cosine(0.996, 1.0), description="share of the teacher kept each step, 0 to 1"
        )
        freeze_last_layer_epochs: float | None = Field(
            1.0, ge=0, description="epochs in which the last layer stays; null: the whole run"
        )
        loss: LossRef = LossRef.field("dino", description="compares student (V x (N, K)) and teacher (2 x (N, K))")

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.head = CosineHead(
            backbone.embed_dim,
            config.hidden_dim,
            config.bottleneck_dim,
            config.out_dim,
            layers=config.head_layers,
            batch_norm=config.head_batch_norm,
            last_batch_norm=config.projection_batch_norm,
            init_std=config.head_init_std,
            fixed_gain=config.norm_last_layer,
        )
        self.teacher = EMA(config.momentum, backbone=self.backbone, head=self.head)
        self.center = Center(config.out_dim, momentum=config.center_momentum)
        self.loss = config.loss.build()

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Algorithm 1 of the paper with multi-crop; beside the loss, the teacher's entropy and the bottleneck's spread.

        The entropy of the teacher's outputs is log K where they are even, 0 where they are certain. Crops of one size
        share a forward pass of the backbone, all crops share one of the head.
        """
        large, small = batch.views["global"], batch.views.get("local", [])
        with torch.no_grad():
            targets = self.teacher.head(self.teacher.backbone(torch.cat(large)))
        features = torch.cat([self.backbone(torch.cat(crops)) for crops in (large, small) if crops])
        z = self.head.project(features)
        student, teacher = self.head.last(z).chunk(len(large) + len(small)), targets.chunk(len(large))
        temperature = self.config.teacher_temperature(now)
        loss = self.loss(student, teacher, self.center.value, temperature)
        teacher_entropy = entropy(((targets - self.center.value) / temperature).softmax(1))
        self.center.push(targets)
        return {"loss": loss, "teacher_entropy": teacher_entropy, "z_std_ratio": std_ratio(z[: len(batch)])}

    def param_rules(self) -> Sequence[ParamRule]:
        """The last layer stays for the first epochs, as in the paper's code, or always."""
        epochs = self.config.freeze_last_layer_epochs
        return [ParamRule("head.last.*", frozen_epochs=math.inf if epochs is None else epochs)]

    @property
    def encoder(self) -> Backbone:
        """The teacher's backbone, which the paper evaluates: it is ahead of the student all the time."""
        backbone: Backbone = self.teacher.backbone
        return backbone

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Outputs that the images can fill, a warm-up that ends within the run, a last layer that is trained."""
        choices = {
            "out_dim": facts.outputs(config.out_dim),
            "teacher_temperature": facts.within_run(config.teacher_temperature),
            "freeze_last_layer_epochs": facts.part_of_run(config.freeze_last_layer_epochs),
        }
        return {name: choice for name, choice in choices.items() if choice}

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """The two collapses of section 3.1 of the paper: outputs that are even, and one output that always wins."""
        even, hottest = math.log(config.out_dim), max(config.teacher_temperature.corners)
        student = getattr(config.loss.config, "student_temperature", hottest)
        cause = f"the teacher is not sharp enough for its centre (its temperature reaches {hottest:g})."
        if hottest >= student:
            cause = f"the teacher's temperature reaches {hottest:g}, not below the student's {student:g}."
        drawn = ", or leave the last layer as drawn (method.freeze_last_layer_epochs=null)"
        if config.freeze_last_layer_epochs is None:
            drawn = ""
        return [
            Landmark(
                "collapsed",
                {"teacher_entropy": (0.998 * even, math.inf)},
                f"the teacher's outputs are even, log {config.out_dim} = {even:.4g}, whatever the image",
                cause,
                "lower method.teacher_temperature to 0.04 to 0.07, below method.loss.student_temperature of 0.1"
                f"{drawn}.",
            ),
            Landmark(
                "collapsed",
                {"teacher_entropy": (0.0, 0.01 * even), "loss": (0.0, 0.02 * even)},
                "one output wins for every image",
                "the centre does not hold the outputs back: it is missing, or follows the last batch alone.",
                "keep method.center_momentum near 0.9, or raise method.teacher_temperature a little.",
            ),
        ]

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The loss and the teacher's entropy, beside log K."""
        even = math.log(config.out_dim)
        loss = "falls from even outputs; it is at least the teacher's entropy and follows it, so a later rise is normal"
        teacher = "falls below even outputs and stays above 0"
        return {"loss": Curve(loss, {"even outputs": even}), "teacher_entropy": Curve(teacher, {"even outputs": even})}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """How many images there are for each output."""
        return {"images per output": f"{facts.images / config.out_dim:.3g} ({config.out_dim} outputs)"}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """What lets the outputs collapse, or leaves a part of the method out."""
        warnings = []
        hottest = max(config.teacher_temperature.corners)
        student = getattr(config.loss.config, "student_temperature", None)  # another loss may have none
        if student is not None and hottest >= student:
            warnings.append(
                f"method.teacher_temperature: it reaches {hottest:g}, and the student's is {student:g} "
                f"(method.loss.student_temperature). Targets would be flatter than the predictions, so that all "
                f"outputs collapse to uniform. Keep it below the student's; 0.04 to 0.07 is usual."
            )
        if (config.freeze_last_layer_epochs or 0) >= facts.epochs:
            warnings.append(
                f"method.freeze_last_layer_epochs: {config.freeze_last_layer_epochs:g} of {facts.epochs:.3g} epochs, "
                f"so that the last layer is never trained. Use a tenth of them, or null if that is meant."
            )
        if not facts.views.get("local") and facts.image_size > WIDE_SCALE_FROM:
            warnings.append(
                "augmentation: there are no local crops. The paper then gives both global views a scale of "
                "[0.14, 1], so that they differ enough."
            )
        return warnings


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the method and its loss."""
    registry.add(DINOLoss)
    registry.add(DINO)

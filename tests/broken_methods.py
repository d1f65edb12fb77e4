"""A right method, and one for each way in which the conformance kit must find a method broken."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from akssl_core import Artefacts, Curve, Landmark, Loss, Method, Published, Schedule, Schema, ViewPolicy, dist
from akssl_core.augment import Augmentation, ViewGroup
from akssl_core.nn import EMA, Queue, mlp, std_ratio


class Contrast(Loss):
    """Each row of p against the targets of all ranks."""

    name = "contrast"

    class Config(Schema):
        """Its temperature."""

        temperature: float = Field(0.2, gt=0, description="divides the cosines")

    def forward(self, p, t):
        t = dist.gather(F.normalize(t, dim=1))
        right = torch.arange(len(p)) + dist.rank() * len(p)
        return F.cross_entropy(F.normalize(p, dim=1) @ t.T / self.config.temperature, right)


class Right(Method):
    """A method with a target, a queue and a loss over all ranks."""

    name = "right"
    paper = "Nobody, A method to break, 2026"
    recipes = {"default": {"optimizer": {"name": "sgd", "lr": 0.1}, "train": {"batch_size": 16}}}
    published = {
        "default": Published(
            "nowhere",
            {"method": {"momentum": 0.9}, "optimizer": {"name": "sgd", "lr": {"start": 0.2, "warmup": 0}}},
            {"optimizer.lr.start": "half is enough", "optimizer.lr": "see there", "train.batch_size": "nobody said"},
        )
    }

    class Config(Schema):
        """Widths and momentum."""

        out_dim: int = Field(8, gt=1, description="width of the projections")
        momentum: Schedule = Field(Schedule(start=0.9), description="of the target")
        weight: float = Field(0.1, ge=0, description="of the term that the queue adds")

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.projector = mlp(backbone.embed_dim, 16, config.out_dim)
        self.target = EMA(config.momentum, backbone=backbone, projector=self.projector)
        self.queue = Queue(32, config.out_dim)
        self.loss = Contrast(Contrast.Config())

    def online(self, x):
        return self.projector(self.backbone(x))

    def slow(self, x):
        with torch.no_grad():
            return self.target.projector(self.target.backbone(x))

    def step(self, batch, now):
        x1, x2 = batch.views["global"]
        p1, p2 = self.online(x1), self.online(x2)
        t1, t2 = self.slow(x1), self.slow(x2)
        self.queue.push(F.normalize(t1, dim=1))
        spread = (F.normalize(p1, dim=1) @ self.queue.rows.T).square().mean()
        loss = self.loss(p1, t2) + self.loss(p2, t1) + self.config.weight * spread
        return {"loss": loss, "z_std_ratio": std_ratio(p1)}

    def artefacts(self, batch, now):
        x = batch.views["global"][0]
        z = self.projector(self.backbone(x))
        return Artefacts({"view": self.backbone.image.pictures(x)}, {"spread": std_ratio(z)}, {"projections": z})


class SignFlipped(Right):
    def step(self, batch, now):
        return {"loss": -super().step(batch, now)["loss"]}


class SaysMicroBatchesAddUp(Right):
    accumulates = True


class DetachedTooEarly(Right):
    def online(self, x):
        return self.projector(self.backbone(x).detach())


class LossDetached(Right):
    def step(self, batch, now):
        return {"loss": super().step(batch, now)["loss"].detach()}


class MovesTheTargetInForward(Right):
    def step(self, batch, now):
        self.target.after_step(now)
        return super().step(batch, now)


class MovesTheTargetTwice(Right):
    def after_step(self, now):
        self.target.after_step(now)


class IgnoresAView(Right):
    def step(self, batch, now):
        x1, _ = batch.views["global"]
        batch.views["global"] = [x1, x1]
        return super().step(batch, now)


class StateOutsideBuffers(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.mean = 0.0

    def step(self, batch, now):
        terms = super().step(batch, now)
        self.mean = 0.9 * self.mean + 0.1 * float(terms["loss"])
        return {"loss": terms["loss"] * (1 + self.mean)}


class PeeksAtLabels(Right):
    def step(self, batch, now):
        loss = super().step(batch, now)["loss"]
        return {"loss": loss if batch.label is None else loss * (1 + batch.label.float().mean())}


class GlobalRandomness(Right):
    def step(self, batch, now):
        return {"loss": super().step(batch, now)["loss"] * (1 + random.random())}


class UnknownKeyAccepted(Right):
    class Config(Right.Config):
        model_config = {"extra": "allow"}

        @classmethod
        def _refuse_unknown(cls, raw, info):
            return raw


class SettingWithoutEffect(Right):
    class Config(Right.Config):
        sharpness: float = Field(0.5, gt=0, description="of nothing")


class SettingWithoutMeaning(Right):
    class Config(Right.Config):
        width: int = 3


class HalfPrecision(Right):
    def step(self, batch, now):
        x1, x2 = batch.views["global"]
        p, t = F.normalize(self.online(x1), dim=1), F.normalize(self.slow(x2), dim=1)
        logits = p @ dist.gather(t).T / 0.05
        return {"loss": F.cross_entropy(logits, torch.arange(len(p)) + dist.rank() * len(p))}


class GatherMissing(Right):
    def step(self, batch, now):
        x1, x2 = batch.views["global"]
        p, t = F.normalize(self.online(x1), dim=1), F.normalize(self.slow(x2), dim=1)
        with torch.autocast("cpu", enabled=False):
            return {"loss": F.cross_entropy(p.float() @ t.float().T / 0.2, torch.arange(len(p)))}


class TrainedTarget(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.target = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "projector": copy.deepcopy(self.projector)})

    def slow(self, x):
        with torch.no_grad():
            return self.target["projector"](self.target["backbone"](x))


class WrongMomentum(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)

        class Off(EMA):
            def after_step(self, now):
                super().after_step(now)
                super().after_step(now)

        self.target = Off(config.momentum, backbone=backbone, projector=self.projector)


class CopiesTooEarly(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        nn.init.xavier_uniform_(self.projector[0].weight)


class KeepsASkippedStep(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.queue.skip_step = lambda: None


class RemembersInEvaluation(Right):
    def step(self, batch, now):
        terms = super().step(batch, now)
        if not self.training:
            self.queue._pushed.append(torch.ones(4, self.config.out_dim))
        return terms


class ShowsNoise(Right):
    def artefacts(self, batch, now):
        return Artefacts(numbers={"noise": torch.rand(())})


class ShowsNothingReal(Right):
    def artefacts(self, batch, now):
        return Artefacts(pictures={"view": batch.views["global"][0] * float("nan")})


class MovesWhileItShows(Right):
    def artefacts(self, batch, now):
        self.queue.rows.add_(1)
        return Artefacts()


class InitialisesTheBackbone(Right):
    def __init__(self, config, backbone):
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        super().__init__(config, backbone)


class StoredTwice(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.encoder_alias = backbone


class FixedImageSize(Right):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.pixels = nn.Linear(3 * 16 * 16, 1)

    def step(self, batch, now):
        terms = super().step(batch, now)
        extra = self.pixels(batch.views["global"][0].flatten(1)).square().mean()
        return {"loss": terms["loss"] + 0.01 * extra}


class FailsOnSmallBatches(Right):
    def step(self, batch, now):
        assert len(batch) >= 8
        return super().step(batch, now)


class ForgetsTheBatch(Right):
    """A centre of projections: without a stop-gradient, everything moves to one point."""

    def step(self, batch, now):
        x1, x2 = batch.views["global"]
        z1, z2 = self.online(x1), self.online(x2)
        x = self.backbone(x1)
        loss = (z1 - z2).square().mean() + 30 * (x - x.mean().detach()).square().mean()
        return {"loss": loss}


class WrongEncoder(Right):
    @property
    def encoder(self):
        return self.projector


class BrokenRecipe(Right):
    recipes = {**Right.recipes, "cifar": {"optimizer": {"name": "sgd", "lr": 0.1, "momentums": 0.9}}}


class DiffersSilently(Right):
    published = {"default": replace(Right.published["default"], values={"method": {"momentum": 0.99}})}


class DiffersNoMore(Right):
    published = {"default": replace(Right.published["default"], values={"train": {"batch_size": 16}})}


class SaysNothingOfTheBatch(Right):
    published = {"default": Published("nowhere", {"optimizer": {"name": "sgd", "lr": {"start": 0.1, "end": 0.0}}})}


class OneDraw(Augmentation):
    """Every image of a batch is shifted by the same draw."""

    name = "one-draw"
    Config = ViewPolicy

    def groups(self):
        return [ViewGroup("global", self.image.size, (self.view, self.view))]

    def view(self, pixels, draws):
        shift = int(draws.uniform("shift", 1)[0, 0] * 8)
        return (pixels.images.roll(shift, 3).float() / 255 - 0.5) / 0.2


class BatchWideAugmentation(Right):
    recipes = {"default": {**Right.recipes["default"], "augmentation": {"name": "one-draw"}}}


class NotAScalar(Right):
    def step(self, batch, now):
        return {**super().step(batch, now), "rows": torch.zeros(3)}


class RisesDownhill(Right):
    """The gradient is turned round on its way to the weights."""

    def online(self, x):
        z = super().online(x)
        if z.requires_grad:
            z.register_hook(lambda grad: -grad)
        return z


class MisnamedLandmark(Right):
    @classmethod
    def landmarks(cls, config, facts):
        return [Landmark("collapsed", {"losss": (0.0, 1.0)}, "it is low", "a fault", "mend it")]


class MisnamedCurve(Right):
    @classmethod
    def curves(cls, config, facts):
        return {"losss": Curve("falls")}


class JudgedByNothing(Right):
    """Names a protocol that there is not."""

    headline = "accuracy"


BROKEN = {
    JudgedByNothing: "headline_is_a_protocol",
    MisnamedLandmark: "landmarks_are_of_terms",
    MisnamedCurve: "curves_are_of_terms",
    SignFlipped: "views_of_one_image_attract",
    DetachedTooEarly: "gradient_reaches_every_parameter",
    LossDetached: "terms_are_scalars",
    MovesTheTargetInForward: "forward_moves_no_state",
    MovesTheTargetTwice: "state_moves_once_a_step",
    IgnoresAView: "every_view_matters",
    StateOutsideBuffers: "resume_is_exact",
    PeeksAtLabels: "labels_are_read_as_told",
    GlobalRandomness: "a_seed_decides_everything",
    UnknownKeyAccepted: "unknown_setting_is_refused",
    SettingWithoutEffect: "every_setting_acts",
    SettingWithoutMeaning: "settings_are_described",
    HalfPrecision: "loss_computes_in_float32",
    GatherMissing: "two_processes_are_one",
    SaysMicroBatchesAddUp: "micro_batches_are_one_batch",
    TrainedTarget: "gradient_reaches_every_parameter",
    WrongMomentum: "slow_copies_follow_their_momentum",
    CopiesTooEarly: "slow_copies_begin_as_exact_ones",
    KeepsASkippedStep: "skipped_steps_leave_nothing",
    RemembersInEvaluation: "evaluation_changes_nothing",
    ShowsNoise: "artefacts_can_be_kept",
    ShowsNothingReal: "artefacts_can_be_kept",
    MovesWhileItShows: "artefacts_can_be_kept",
    InitialisesTheBackbone: "construction_leaves_the_backbone_alone",
    StoredTwice: "state_goes_through_safetensors",
    FixedImageSize: "any_channels_and_sizes",
    FailsOnSmallBatches: "any_batch_size",
    ForgetsTheBatch: "training_does_not_collapse",
    WrongEncoder: "encoder_can_be_exported",
    BrokenRecipe: "every_recipe_starts",
    DiffersSilently: "recipes_are_as_published",
    DiffersNoMore: "recipes_are_as_published",
    SaysNothingOfTheBatch: "recipes_are_as_published",
    BatchWideAugmentation: "views_are_drawn_per_image",
    NotAScalar: "terms_are_scalars",
    RisesDownhill: "a_small_step_lowers_the_loss",
}

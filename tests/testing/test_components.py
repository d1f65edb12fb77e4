"""The conformance kit on the other kinds of components: right ones pass, broken ones fail the check for them."""

from __future__ import annotations

import pytest
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

import akssl_core
from akssl_core import (
    Backbone,
    DatasetSource,
    Features,
    ImageSet,
    KnownValue,
    Logger,
    Loss,
    Pixels,
    Schema,
    TensorImages,
    TokenBackbone,
    ViewGroup,
)
from akssl_core.augment import Augmentation
from akssl_core.errors import ConfigError
from akssl_core.optim import Optimizer, OptimizerConfig
from akssl_core.schedule import LearningRate, Schedule
from akssl_core.testing import checks

BUILT_IN = {
    "backbone": ("resnet_tiny", "vit_tiny"),
    "augmentation": ("pair", "views", "asymmetric", "multicrop"),
    "data": ("shapes",),
    "optimizer": ("sgd", "adamw", "lars"),
}
OURS = [
    pytest.param(check, id=f"{kind}-{name}-{check}")
    for kind, names in BUILT_IN.items()
    for name in names
    for check in checks(name, kind=kind, settings={"size": 40, "test_size": 20} if kind == "data" else {})
]


@pytest.mark.parametrize("check", OURS)
def test_components_of_the_core_conform(check):
    check()


# -- losses ---------------------------------------------------------------------------------------
class RightLoss(Loss):
    """Mean squared distance of unit rows."""

    name = "right"

    class Config(Schema):
        """Its weight."""

        weight: float = Field(1.0, gt=0, description="factor on the loss")

    def forward(self, p, z):
        return self.config.weight * (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()

    @classmethod
    def known_values(cls):
        x = torch.eye(3)
        return [KnownValue((x, x), 0.0), KnownValue((x, -x), 8.0, {"weight": 2.0})]


class SignFlippedLoss(RightLoss):
    def forward(self, p, z):
        return -super().forward(p, z)


class HalfPrecisionLoss(RightLoss):
    def __call__(self, p, z):
        return self.forward(p, z)


class RootAtZero(RightLoss):
    def forward(self, p, z):
        return self.config.weight * (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).sqrt().mean() * 4


class DetachedLoss(RightLoss):
    def forward(self, p, z):
        return super().forward(p.detach(), z.detach())


class DetachedInOneTerm(RightLoss):
    def forward(self, p, z):
        return super().forward(p, z) + super().forward(p.detach(), z)


class IdleSettingLoss(RightLoss):
    class Config(RightLoss.Config):
        sharpness: float = Field(1.0, gt=0, description="of nothing")


# -- backbones ------------------------------------------------------------------------------------
class RightBackbone(Backbone):
    """One convolution with a batch norm."""

    name = "right"
    embed_dim = 6

    def __init__(self, config, image):
        super().__init__(config, image)
        self.conv = nn.Conv2d(image.channels, 6, 3)
        self.bn = nn.BatchNorm2d(6)

    def features(self, images):
        x = self.bn(self.conv(images)).relu()
        return Features(x.mean((2, 3)), x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))


class WrongWidth(RightBackbone):
    embed_dim = 7


class DeadParameter(RightBackbone):
    def __init__(self, config, image):
        super().__init__(config, image)
        self.mask_token = nn.Parameter(torch.zeros(6))


class LooksAtTheBatch(RightBackbone):
    def features(self, images):
        return super().features(images - images.mean(0))


class ExportsTooLittle(RightBackbone):
    def export_state(self):
        return {name: t for name, t in self.state_dict().items() if "conv" in name}


class IgnoresTheMask(TokenBackbone):
    """Patches that are projected and averaged."""

    name = "tokens"
    embed_dim, patch_size = 8, 8
    masks = False

    def __init__(self, config, image):
        super().__init__(config, image)
        self.patch_embed = nn.Conv2d(image.channels, 8, 8, stride=8)

    def features(self, images, *, keep=None, mask=None, token=None):
        x = self.patch_embed(images)
        grid, x = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)
        if self.masks and mask is not None:
            x = torch.where(mask[..., None], token, x)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, 8))
        return Features(x.mean(1), x, grid if keep is None else None)


class HonoursTheMask(IgnoresTheMask):
    """The same with masks."""

    masks = True


class AttendsToTheClassToken(HonoursTheMask):
    """Its attention has one token more than there are patches."""

    def attention(self, images):
        return torch.full((len(images), 2, 1, 17), 1 / 17)


class RepeatsTheLastLayer(HonoursTheMask):
    """All of its layers have the features of the last one."""

    def layers(self, images, last):
        return [self.features(images)] * last


# -- augmentations --------------------------------------------------------------------------------
class RightAugmentation(Augmentation):
    """Shifts each image by its own draw and resizes it."""

    name = "right"

    def groups(self):
        return [ViewGroup("global", self.image.size, (self.view, self.view))]

    def shifts(self, draws):
        return (draws.uniform("shift", 1)[:, 0] * 30).long().tolist()

    def view(self, pixels, draws):
        moved = [pixels.image(i).roll(shift, 2) for i, shift in enumerate(self.shifts(draws))]
        side = (self.image.size, self.image.size)
        return torch.cat([F.interpolate(m[None].float() / 255 - 0.5, side, mode="bilinear") for m in moved])


class OneDrawForAll(RightAugmentation):
    def shifts(self, draws):
        return super().shifts(draws)[:1] * len(draws.keys)


class TorchsGenerator(RightAugmentation):
    def shifts(self, draws):
        return torch.randint(0, 30, (len(draws.keys),)).tolist()


class WrongSize(RightAugmentation):
    def view(self, pixels, draws):
        return super().view(pixels, draws)[..., 1:]


# -- data -----------------------------------------------------------------------------------------
class RightData(DatasetSource):
    """Noise with labels."""

    name = "right"
    train_seed, test_seed = 0, 1

    @property
    def natural_size(self):
        return 16

    def images(self, seed):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (20, 3, 16, 16), generator=generator).to(torch.uint8)
        return TensorImages(pixels, torch.arange(20) % 2)

    def train(self):
        return self.images(self.train_seed)

    def probe(self):
        return self.images(self.train_seed), self.images(self.test_seed)


class FetchesAtRandom(RightData):
    class Images(ImageSet):
        def __len__(self):
            return 20

        def fetch(self, index):
            return Pixels(torch.randint(0, 256, (len(index), 3, 16, 16)).to(torch.uint8))

    def train(self):
        return self.Images()


class ProbesItself(RightData):
    test_seed = 0


class TinyNature(RightData):
    @property
    def natural_size(self):
        return 4


# -- optimizers -----------------------------------------------------------------------------------
class RightOptimizer(Optimizer):
    """Adam of torch."""

    name = "right"

    class Config(OptimizerConfig):
        """Its rates."""

        lr: LearningRate = Field(LearningRate(start=0.05), description="learning rate")
        weight_decay: Schedule = Field(Schedule(start=0.0), description="weight decay")

    def build(self, groups):
        return torch.optim.Adam(groups)


class Ascends(RightOptimizer):
    def build(self, groups):
        return torch.optim.SGD(groups, maximize=True)


class Forgets(RightOptimizer):
    def build(self, groups):
        class Counting(torch.optim.SGD):
            count = 0

            def step(self, closure=None):
                self.count += 1
                for group in self.param_groups:
                    group["lr"] /= self.count
                return super().step(closure)

        return Counting(groups)


# -- loggers --------------------------------------------------------------------------------------
class RightLogger(Logger):
    """Keeps rows."""

    name = "right"

    def on_row(self, row):
        self.last = dict(row)


class ChangesRows(Logger):
    """Rounds in place."""

    name = "right"

    def on_row(self, row):
        row["loss"] = round(row["loss"], 1)


class DrawsNumbers(Logger):
    """Samples rows."""

    name = "right"

    def on_row(self, row):
        torch.rand(1)


class HearsNothing(Logger):
    """Overrides nothing."""

    name = "right"


RIGHT = (RightLoss, RightBackbone, HonoursTheMask, RightAugmentation, RightData, RightOptimizer, RightLogger)
BROKEN = {
    SignFlippedLoss: "known_values_are_met",
    HalfPrecisionLoss: "loss_computes_in_float32",
    RootAtZero: "gradients_are_finite",
    DetachedLoss: "gradients_are_finite",
    DetachedInOneTerm: "gradients_are_those_of_the_formula",
    IdleSettingLoss: "every_setting_acts",
    WrongWidth: "features_have_their_shapes",
    DeadParameter: "gradient_reaches_every_parameter",
    LooksAtTheBatch: "features_belong_to_their_image",
    ExportsTooLittle: "weights_can_be_exported",
    IgnoresTheMask: "patches_can_be_kept_and_masked",
    AttendsToTheClassToken: "attention_is_over_the_patches",
    RepeatsTheLastLayer: "layers_end_with_the_features",
    OneDrawForAll: "views_are_drawn_per_image",
    TorchsGenerator: "views_follow_from_the_draws",
    WrongSize: "views_have_their_shapes",
    FetchesAtRandom: "images_are_fetched_in_any_order",
    ProbesItself: "labels_fit_the_images",
    TinyNature: "source_has_a_natural_size",
    Ascends: "loss_falls",
    Forgets: "optimizer_goes_on_from_its_state",
    ChangesRows: "training_is_the_same_with_it",
    DrawsNumbers: "training_is_the_same_with_it",
    HearsNothing: "events_are_heard",
}


@pytest.mark.parametrize("component", RIGHT, ids=lambda c: c.__name__)
def test_a_right_component_passes(component):
    outcomes = [check.outcome() for check in checks(component)]
    assert len(outcomes) >= 4
    assert [o for o in outcomes if o.status == "failed"] == []


@pytest.mark.parametrize("component", BROKEN, ids=lambda c: c.__name__)
def test_a_broken_component_is_caught(component):
    (check,) = [check for check in checks(component) if str(check) == BROKEN[component]]
    outcome = check.outcome()
    assert outcome.status == "failed", outcome
    assert outcome.found
    assert outcome.cure


def test_a_kind_without_checks_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'method'"):
        checks("right", kind="methode")


def test_a_logger_and_a_dataset_may_be_called_so():
    assert {str(c) for c in checks("shapes", kind="dataset")} == {str(c) for c in checks("shapes", kind="data")}


def test_the_fixture_hides_what_is_installed(akssl_plugins):
    assert {entry.status for entry in akssl_plugins.entries} <= {"blocked"}
    assert akssl_plugins.names("backbone")
    with pytest.raises(akssl_core.PluginError, match="not named in AKSSL_PLUGINS"):
        akssl_plugins.get("method", "simsiam")
    with pytest.raises(akssl_core.PluginError, match="not named in AKSSL_PLUGINS"):
        akssl_core.build("method", "simsiam")

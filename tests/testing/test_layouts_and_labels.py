"""The kit on methods that draw random numbers, remember rows or learn from labels."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Choice, Method, Schema, dist
from akssl_core.errors import ConfigError
from akssl_core.nn import Queue, mlp, std_ratio
from akssl_core.testing import checks, train


class Draws(Method):
    """Contrasts views with a queue, after noise that it draws for each image and a direction for all."""

    name = "draws"
    paper = "Nobody, A method that draws, 2026"
    recipes = {"default": {"optimizer": {"name": "sgd", "lr": 0.1}, "train": {"batch_size": 16}}}

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.projector = mlp(backbone.embed_dim, 16, 8)
        self.queue = Queue(48, 8)

    def noise(self, batch):
        return batch.draws.normal("noise", 8), batch.shared_draws.normal("direction", 8)

    def remember(self, z1, z2):
        self.queue.push(z1)
        self.queue.push(z2)

    def of_all(self, x):
        return dist.gather(x)

    def step(self, batch, now):
        z1, z2 = (F.normalize(self.projector(self.backbone(x)), dim=1) for x in batch.views["global"])
        noise, direction = self.noise(batch)
        self.remember(z1, z2)
        right = torch.arange(len(z1)) + dist.rank() * len(z1) * (len(self.of_all(z1)) > len(z1))
        loss = F.cross_entropy((z1 + 0.1 * noise) @ self.of_all(z2).T / 0.2, right)
        spread = (z1 @ self.queue.rows.T).square().mean()
        return {"loss": loss + 0.1 * spread + 0.1 * (z1 @ direction.T).square().mean(), "spread": std_ratio(z1)}


class DrawsFromTorch(Draws):
    def noise(self, batch):
        return torch.randn(len(batch), 8), batch.shared_draws.normal("direction", 8)


class DrawsAndForgetsOthers(Draws):
    def of_all(self, x):
        return x


class PushesViewsTogether(Draws):
    def remember(self, z1, z2):
        self.queue.push(torch.cat([z1, z2]))


class ForgetsOthersAndPushesTogether(DrawsAndForgetsOthers, PushesViewsTogether):
    pass


class KeepsItsOwnMean(Draws):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.register_buffer("mean", torch.ones(8))
        self.seen = None

    def remember(self, z1, z2):
        super().remember(z1, z2)
        self.seen = z1.detach().mean(0) if self.training else None

    def after_step(self, now):
        if self.seen is not None:
            self.mean.lerp_(self.seen, 0.5)


class LargeLoss(Draws):
    """Its gradients are a thousand times as large, and so is the rounding in that of a bias before a batch norm."""

    def step(self, batch, now):
        terms = super().step(batch, now)
        return {**terms, "loss": 1000 * terms["loss"]}


class Dropout(Draws):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.projector = nn.Sequential(self.projector, nn.Dropout(0.2))


def outcome(component, name, **more):
    (check,) = [check for check in checks(component, **more) if str(check) == name]
    return check.outcome()


@pytest.mark.parametrize("component", [Draws, LargeLoss, Dropout])
def test_layouts_of_a_method_that_draws_are_compared(component):
    assert outcome(component, "two_processes_are_one").status == "passed"


def test_a_stopped_run_draws_the_same_when_it_goes_on():
    assert outcome(Draws, "resume_is_exact").status == "passed"


def test_a_step_that_draws_from_torchs_generator_is_told_so():
    found = outcome(DrawsFromTorch, "two_processes_are_one")
    assert found.status == "failed"
    assert "torch's global generator" in found.found
    assert "batch.draws" in found.cure
    assert "batch.shared_draws" in found.cure


def test_a_method_that_draws_cannot_hide_a_loss_over_its_own_rows():
    found = outcome(DrawsAndForgetsOthers, "two_processes_are_one")
    assert found.status == "failed"
    assert "in step 0 these differ between one process and two, in parts of their size: loss by" in found.found
    assert "dist.gather" in found.cure
    assert "push" not in found.cure


def test_rows_in_another_order_are_told_with_their_own_cure():
    found = outcome(PushesViewsTogether, "two_processes_are_one")
    assert "state queue.rows (the same rows in another order)" in found.found
    assert found.cure.startswith("push view by view")


def test_every_difference_is_listed_with_a_cure_that_fits():
    found = outcome(ForgetsOthersAndPushesTogether, "two_processes_are_one")
    for part in ("loss by", "gradient of", "state queue.rows (the same rows in another order)"):
        assert part in found.found
    assert found.cure.startswith("compare rows of all ranks")
    assert "; push view by view" in found.cure
    kept = outcome(KeepsItsOwnMean, "two_processes_are_one")
    assert "state mean by" in kept.found
    assert "loss" not in kept.found
    assert kept.cure.startswith("average what is remembered")


# -- labels ---------------------------------------------------------------------------------------
class Learns(Method):
    """Classifies the images that have a label, and contrasts the others' views."""

    name = "learns"
    paper = "Nobody, A method with labels, 2026"
    uses_labels = True
    recipes = {"default": {"optimizer": {"name": "sgd", "lr": 0.1}, "train": {"batch_size": 16}}}

    class Config(Schema):
        """The classes."""

        classes: int = Field(2, gt=1, description="number of classes")

    @classmethod
    def choose(cls, config, facts):
        return {"classes": Choice(facts.classes, "the classes of the labels")}

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.head = nn.Linear(backbone.embed_dim, config.classes)
        self.projector = mlp(backbone.embed_dim, 16, 8)

    def supervised(self, logits, label):
        return F.cross_entropy(logits, label, ignore_index=-1)

    @torch.autocast("cpu", enabled=False)
    def contrast(self, z1, z2):
        right = torch.arange(len(z1)) + dist.rank() * len(z1)
        return F.cross_entropy(z1.float() @ dist.gather(z2.float()).T / 0.2, right)

    def step(self, batch, now):
        assert batch.label is not None
        x1, x2 = (self.backbone(x) for x in batch.views["global"])
        z1, z2 = (F.normalize(self.projector(x), dim=1) for x in (x1, x2))
        return {"loss": self.contrast(z1, z2) + self.supervised(self.head(x1), batch.label)}


class LearnsNothing(Learns):
    def supervised(self, logits, label):
        return logits.square().mean()


class TakesMissingForAClass(Learns):
    def supervised(self, logits, label):
        return F.cross_entropy(logits, label)


class RefusesMissing(TakesMissingForAClass):
    @classmethod
    def check(cls, config, facts):
        if facts.labelled < facts.images:
            raise ConfigError(f"data: only {facts.labelled} of {facts.images} images have a label.")
        return ()


@pytest.mark.parametrize("check", checks(Learns), ids=str)
def test_a_method_with_labels_has_them_in_every_check(check):
    check()


def test_a_method_that_declares_labels_and_reads_none_is_told():
    found = outcome(LearnsNothing, "labels_are_read_as_told")
    assert found.status == "failed"
    assert "other labels give the same loss" in found.found


def test_images_without_a_label_are_taken_or_refused():
    found = outcome(TakesMissingForAClass, "labels_are_read_as_told")
    assert found.status == "failed"
    assert "labels of which half are missing (-1)" in found.found
    assert "ignore_index" in found.cure
    assert outcome(RefusesMissing, "labels_are_read_as_told").status == "passed"


def test_a_method_with_labels_is_refused_before_it_meets_data_without(akssl_plugins, tmp_path):
    akssl_plugins.registry.add(Learns)
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    settings = {"plugins": akssl_plugins, "epochs": 1, "batch_size": 8}
    for data in (images, (images, torch.full((32,), -1))):
        with pytest.raises(ConfigError, match="learns trains with labels, and none of the 32 images"):
            train("learns", data=data, **settings)
    method = train("learns", data=(images, torch.arange(32) % 5), **settings)
    assert method.config.classes == 5


@pytest.mark.parametrize("component", [Learns, Draws])
def test_a_run_says_whether_it_was_trained_with_labels(component, akssl_plugins, tmp_path):
    akssl_plugins.registry.add(component)
    data = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8), torch.arange(32) % 2
    akssl_core.run(component.name, data=data, epochs=1, batch_size=16, out=tmp_path / "run", plugins=akssl_plugins)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["trained_with_labels"] is component.uses_labels
    assert ("trained with labels" in (tmp_path / "run" / "report.html").read_text()) is component.uses_labels

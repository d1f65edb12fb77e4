"""Blocks computed twice: the same weights and statistics as in one pass, and what has no blocks is refused."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from akssl_core.backbone import WrappedBackbone
from akssl_core.data import ImageSpec
from akssl_core.errors import ConfigError
from akssl_core.rundir.folder import RunDir

IMAGE = ImageSpec(12, 3, (0.5,) * 3, (0.5,) * 3)


class Branch(nn.Module):
    """A residual block with statistics and draws."""

    passes = 0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, momentum=None)
        self.drop = nn.Dropout2d(0.4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        type(self).passes += torch.is_grad_enabled()
        if self.training:
            self.seen += 1
        return x + self.drop(self.norm(self.conv(x))).relu()


class Own(nn.Module):
    """A network of a user's own, with its blocks in a list."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.blocks = nn.ModuleList(Branch() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


BACKBONES = {
    "vit": {"name": "vit_tiny", "drop_path": 0.5},
    "narrow": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]},
    "deep": "resnet18",
    "own": Own,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_and_statistics_are_those_of_one_pass(start, name):
    models = {}
    for wanted in (False, True):
        torch.manual_seed(0)
        backbone = BACKBONES[name]() if name == "own" else BACKBONES[name]
        start(str(wanted), backbone=backbone, train={"recompute": wanted, "steps": 3})
        models[wanted] = RunDir.open(start.folder / str(wanted)).latest()[0].model
    for key, expected in models[False].items():
        torch.testing.assert_close(models[True][key], expected, rtol=1e-6, atol=1e-6, msg=key)
    counts = [value for key, value in models[True].items() if key.endswith("num_batches_tracked")]
    assert name == "vit" or {int(value) for value in counts} == {3}


def test_blocks_run_twice_a_step_and_are_left_as_they_were(start):
    passes = []
    for wanted in (False, True):
        before, backbone = Branch.passes, Own()
        result = start(str(wanted), backbone=backbone, train={"recompute": wanted, "steps": 2})
        passes.append(Branch.passes - before)
        assert all("forward" not in vars(part) for part in result.backbone.modules())
    assert passes == [2 * 3, 2 * 2 * 3]


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(Branch(), Branch()), nn.Sequential(Branch())), 3),
        (nn.Sequential(*(nn.Sequential(nn.Conv2d(width, 8, 3), nn.ReLU()) for width in (3, 8))), 2),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), 0),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), 0),
    ],
    ids=["innermost", "alike", "unlike", "single layers"],
)
def test_blocks_are_modules_of_one_class_with_layers_inside(network, count):
    assert len(WrappedBackbone(network, IMAGE).parts()) == count


def test_a_compiled_network_is_refused(start):
    with pytest.raises(ConfigError, match=r"train.recompute does not go with train.compile, .* Use one\."):
        start(backbone="resnet18", train={"recompute": True, "compile": True})


def test_a_network_without_blocks_is_refused(start):
    with pytest.raises(ConfigError) as error:
        start(train={"recompute": True})
    assert str(error.value) == (
        "train.recompute: toy has no blocks of which all but one could be dropped and computed again. Expected two or "
        "more modules of one class, with layers inside, in an nn.Sequential or nn.ModuleList. Leave it out, or give a "
        "backbone whose parts() are its blocks."
    )


class Whim(Branch):
    """A block that is left out now and then, as Python's `random` has it."""

    def forward(self, x):
        return super().forward(x) if random.random() < 0.5 else x * 1.0


def test_a_block_that_does_something_else_the_second_time_is_told(start):
    network = Own()
    network.blocks = nn.ModuleList(Whim() for _ in range(8))
    with pytest.raises(ConfigError, match=r"train.recompute: a block .* Draw with torch .* leave train.recompute out"):
        start(backbone=network, train={"recompute": True, "steps": 20})

"""What follows from a run's settings, against numbers counted by hand."""

from __future__ import annotations

import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from on_trial import on_trial
from torch import nn

from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.manager import Plugins, installed
from akssl_core.running import estimate
from akssl_core.running.estimate import (
    MEASURED_STEPS,
    WARM_STEPS,
    averages,
    forecast,
    half_life,
    memory,
    seconds_per_step,
    steps,
    time_steps,
)
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan


def plan_of(toys, photos, **more):
    settings = {
        "data": photos,
        "image_size": 12,
        "batch_size": 8,
        "epochs": 4,
        "precision": "fp32",
        "device": "cpu",
        **more,
    }
    return make_plan(collect("toy", None, settings, toys), toys)


@pytest.mark.parametrize(("momentum", "expected"), [(0.5, 1.0), (0.99, 68.97), (1.0, math.inf), (0.0, 0.0)])
def test_half_life(momentum, expected):
    assert half_life(momentum) == pytest.approx(expected, rel=1e-3)
    if 0 < momentum < 1:
        assert momentum ** half_life(momentum) == pytest.approx(0.5)


def test_half_lives_are_those_of_the_schedule(toys, photos):
    plan = plan_of(toys, photos, options={"momentum": 0.75})
    assert averages(plan) == [(half_life(0.75), half_life(0.75))]
    ((start, end),) = averages(plan_of(toys, photos))
    assert start == pytest.approx(half_life(0.9))
    assert end > 10 * start


def test_memory_counts_weights_moments_and_activations(toys, photos):
    plan = plan_of(toys, photos)
    need = memory(plan)
    trained = sum(p.numel() for p in plan.method.parameters() if p.requires_grad)
    assert need.weights == sum(t.numel() * t.element_size() for t in plan.method.state_dict().values())
    assert need.training == 4 * trained * 2, "gradients and one momentum"
    layers = 2 * 8 * 6 * 6  # the outputs of a convolution and a norm, (8, 6, 6) each
    assert need.activations == 4 * layers * 2 * 8, "two views of each of 8 images"
    assert memory(plan, devices=2).activations == need.activations // 2
    assert memory(plan_of(toys, photos, optimizer="adamw")).training == 4 * trained * 3


def test_shared_out_parameters_take_a_share_and_the_largest_block(toys, photos):
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 1)) for _ in range(4))))
    settings = {"backbone": network, "optimizer": "adamw"}
    one = memory(plan_of(toys, photos, **settings))
    plan = plan_of(toys, photos, **settings, train={"strategy": "fsdp"})
    assert memory(plan) == one, "in one process nothing is shared out"
    shared = memory(plan, devices=4)
    block, whole = 4 * 6, 4 * sum(p.numel() for p in plan.method.parameters())
    blocks = sum(1 for name, _ in plan.method.named_modules() if re.search(r"module\.1\.\d$", name))
    assert shared.training == 3 * (one.training // 3 // 4)
    assert shared.weights == one.weights - whole + whole // 4 + (whole - blocks * block) + block


def test_memory_follows_blocks_that_are_computed_again(toys, photos):
    def block():
        return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(block(), block()))
    stem, inside, out = 2 * 144, (4 + 4 + 2) * 144, 2 * 144  # numbers in the outputs for 12 x 12 px
    for recompute, numbers in ((False, stem + 2 * inside), (True, stem + 2 * out + inside)):
        need = memory(plan_of(toys, photos, backbone=network, train={"recompute": recompute}))
        assert need.activations == 4 * numbers * 2 * 8, "two views of each of 8 images"


def test_an_estimate_leaves_the_plan_as_it_was(toys, photos):
    plan = plan_of(toys, photos)
    before = {name: value.clone() for name, value in plan.method.state_dict().items()}
    forecast(plan)
    time_steps(plan)
    assert plan.backbone.training
    assert all(torch.equal(before[name], value) for name, value in plan.method.state_dict().items())


def test_time_is_that_of_measured_steps(toys, photos):
    name, text = time_steps(plan_of(toys, photos, steps=WARM_STEPS + MEASURED_STEPS))
    assert name == "time of all steps"
    assert f"the mean of {MEASURED_STEPS} measured steps" in text


def test_steps_are_measured_until_they_took_long_enough(toys, photos, monkeypatch):
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=itertools.count(0.0, 0.25).__next__))
    plan = plan_of(toys, photos, epochs=100)
    assert seconds_per_step(plan, 0.0) == (0.25, MEASURED_STEPS)
    assert seconds_per_step(plan, 10.0) == (0.25, 40)
    monkeypatch.setattr(estimate.dist, "any_rank", lambda flag: True)  # another process has measured enough
    assert seconds_per_step(plan, 10.0) == (0.25, MEASURED_STEPS)


def test_layers_that_never_train_are_not_counted_as_trained(photos):
    def trained(freeze):
        method = {"name": "dino", "freeze_last_layer_epochs": freeze, "out_dim": 4096}
        plan = make_plan(collect(method, None, {"data": photos, "epochs": 4}, installed()), installed())
        return float(dict(forecast(plan))["trained parameters"].split()[0])

    assert trained(None) + 0.2 < trained(1)


def test_steps_of_a_run_that_ends_early(toys, photos):
    assert steps(plan_of(toys, photos, steps=3)).total_steps == 3
    assert steps(plan_of(toys, photos)).total_steps == 4 * (len(plan_of(toys, photos).images) // 8)


SLOW = ("byol", "dino", "dinov2", "ibot", "ijepa", "mocov2", "mocov3")
NEGATIVES = {"simclr": "254 ", "simclrv2": "254 ", "mocov2": "1024 ", "mocov3": "127 ", "nnclr": "127 "}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_add_what_only_they_know(method):
    plugins = Plugins()
    settings = {"data": {"name": "shapes", "size": 2000, "test_size": 20}, "image_size": 8, "epochs": 10}
    lines = dict(forecast(make_plan(collect(on_trial(method), None, settings, plugins), plugins)))
    assert lines["epochs"] == "10"
    assert "MiB of weights" in lines["memory for training"]
    assert lines.get("negatives per anchor", "").startswith(NEGATIVES.get(method, ""))
    assert ("negatives per anchor" in lines) == (method in NEGATIVES)
    assert ("half-life of the slow copy" in lines) == (method in SLOW)


def test_the_command_measures_where_it_is_asked_to(here):
    few = ("--set", "data.size=256", "--set", "data.test_size=20", "--image-size", "8", "--batch-size", "16")
    code, out, _ = here("explain", "simsiam", *few)
    assert code == 0
    assert "time of all steps" not in out
    code, out, _ = here("explain", "simsiam", *few, "--measure")
    assert "time of all steps" in out

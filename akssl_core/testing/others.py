"""Checks of the settings of every component, and of data sources, optimizers, callbacks and loggers."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from ..method import ParamRule
from ..optim import load_state_by_name, parameter_groups, set_group_values, state_by_name
from ..schedule import Now
from ..training.callback import Callback, Logger
from .check import NotApplicable, expect, few, rule
from .setting_checks import describe_settings, refuses_unknown
from .subject import ComponentSubject, changed, copied, toy_spec


# -- what holds for every kind --------------------------------------------------------------------
def _common(kind: str, args: tuple[Any, ...]) -> None:
    """Register the checks of settings for one kind; `args` are what the constructor takes beside them."""

    @rule(kind, cure="derive Config from akssl_core.Schema")
    def unknown_setting_is_refused(subject: ComponentSubject) -> None:
        """A setting that does not exist is refused, with the nearest one that does."""
        refuses_unknown(lambda: subject.build(*args, no_such_setting=1))

    @rule(kind, cure="give each Field a description and the class a docstring")
    def settings_are_described(subject: ComponentSubject) -> None:
        """Every setting says what it means, and the class what it is."""
        describe_settings(subject)


for _kind in ("loss", "backbone", "augmentation", "data", "decoder", "optimizer", "callback"):
    _common(_kind, (toy_spec(),) if _kind in ("backbone", "augmentation") else ())


# -- data -----------------------------------------------------------------------------------------
@rule("data", cure="let fetch be a function of the positions alone")
def images_are_fetched_in_any_order(subject: ComponentSubject) -> None:
    """Images are uint8 or float32 (C, h, w), the same in whatever order and company they are fetched."""
    images = subject.build(32).train()
    expect(len(images) > 1, f"there are {len(images)} training images")
    last = len(images) - 1
    pixels = images.fetch([last, 0, last])
    one = pixels.image(0)
    expect(
        one.dtype in (torch.uint8, torch.float32) and one.ndim == 3,
        f"images are {one.dtype} of shape {tuple(one.shape)}",
    )
    expect(pixels.channels == images.channels, f"{pixels.channels} channels where {images.channels} are told")
    for place, index in enumerate((last, 0, last)):
        expect(
            torch.equal(pixels.image(place), images[index][0]), f"image {index} differs when it is fetched with others"
        )
    again = subject.build(32).train()
    expect(torch.equal(images.fetch([0]).image(0), again.fetch([0]).image(0)), "a second source has other images")


@rule("data", cure="give labels (N,) int64 with -1 where one is missing; keep bank and queries apart")
def labels_fit_the_images(subject: ComponentSubject) -> None:
    """Labels, where there are any, are int64, one for each image, and the probe's splits do not overlap."""
    source = subject.build(32)
    images = source.train()
    if images.labels is not None:
        expect(images.labels.dtype == torch.int64, f"labels are {images.labels.dtype}")
        expect(images.labels.shape == (len(images),), f"{tuple(images.labels.shape)} labels of {len(images)} images")
    pair = source.probe()
    expect(pair is None or all(part.labels is not None for part in pair), "the probe has no labels")
    if pair is not None:
        few = [{part.fetch([i]).image(0).numpy().tobytes() for i in range(min(len(part), 64))} for part in pair]
        expect(not few[0] & few[1], "bank and queries of the probe share images")


@rule("data", cure="let natural_size be between 8 and 224, and mean and std one number a channel (or None)")
def source_has_a_natural_size(subject: ComponentSubject) -> None:
    """There is a side that suits the images, and a run of one step works."""
    source = subject.build(None)
    size = source.natural_size
    expect(8 <= size <= 512, f"natural_size is {size}")
    channels = source.train().channels
    for name in ("mean", "std"):
        value = getattr(source, name)
        expect(value is None or len(value) == channels, f"{name} has {value} for {channels} channels")


# -- optimizers -----------------------------------------------------------------------------------
def _optimizer(subject: ComponentSubject, net: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    recipe = subject.build()
    return recipe.build(parameter_groups(net, [ParamRule("*")], recipe.config)), recipe.config


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def _minimise(subject: ComponentSubject, net: nn.Module, steps: range, state: Any = None) -> tuple[list[float], Any]:
    optimizer, config = _optimizer(subject, net)
    if state is not None:
        load_state_by_name(optimizer, state)
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for step in steps:
        set_group_values(optimizer, config, Now(step, 10, 1000), 16)
        loss = (net(inputs) - inputs[:, :2]).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, copied(state_by_name(optimizer))


@rule("optimizer", cure="look at the sign of the update and the learning rate")
def loss_falls(subject: ComponentSubject) -> None:
    """It lowers a simple loss."""
    with torch.random.fork_rng(devices=[]):
        losses, _ = _minimise(subject, _net(), range(60))
    expect(
        all(map(math.isfinite, losses)) and losses[-1] < losses[0], f"the loss goes {losses[0]:.4g} -> {losses[-1]:.4g}"
    )


@rule("optimizer", cure="keep all state in optimizer.state, as tensors")
def optimizer_goes_on_from_its_state(subject: ComponentSubject) -> None:
    """Its state, stored by parameter name, lets it go on bit for bit."""
    with torch.random.fork_rng(devices=[]):
        whole, half = _net(), _net()
        _minimise(subject, whole, range(8))
        _, state = _minimise(subject, half, range(5))
        _minimise(subject, half, range(5, 8), load(save(state)))
    moved = changed(copied(whole.state_dict()), half.state_dict())
    expect(not moved, f"after 5 steps, a round trip and 3 more, other bits: {few(moved)}")


# -- callbacks and loggers ------------------------------------------------------------------------
ROWS = tuple({"step": s, "epoch": s / 4, "loss": 1.0 / s, "lr": 0.1, "knn_top1": None, "note": "x"} for s in (1, 2, 3))


@rule("callback", cure="derive from Logger (rows) or Callback (the engine), and copy a row before changing it")
def events_are_heard(subject: ComponentSubject) -> None:
    """It listens to at least one event, and leaves the rows it is shown as they are."""
    expect(issubclass(subject.component, Callback | Logger), "it derives neither from Callback nor from Logger")
    base = Logger if issubclass(subject.component, Logger) else Callback
    events = [name for name in vars(base) if name.startswith("on_")]
    own = [name for name in events if getattr(subject.component, name) is not getattr(base, name)]
    expect(bool(own), "it overrides no event")


@rule("callback", cure="only observe: change no tensor, no setting, no generator")
def training_is_the_same_with_it(subject: ComponentSubject) -> None:
    """A run with it trains to the same bits as a run without it, and it hears every row."""
    if not issubclass(subject.component, Logger):
        raise NotApplicable("a callback may change training; a logger may not")
    with tempfile.TemporaryDirectory() as folder:
        logger = subject.build()
        rows = [dict(row) for row in ROWS]
        torch.manual_seed(3)
        before = torch.get_rng_state()
        logger.on_run({"method": {"name": "toy"}, "seed": 0}, Path(folder))
        for row in rows:
            logger.on_row(row)
        logger.on_finish({"loss": 1 / 3})
        expect(torch.equal(before, torch.get_rng_state()), "it drew from torch's generator")
        expect(rows == [dict(row) for row in ROWS], "it changed a row")

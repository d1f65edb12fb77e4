"""Subjects of checks: a component on toy data, and the few ways in which checks make it work."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, Features
from ..config.schema import Schema, validate
from ..data import Batch, ImageSpec, Views
from ..method import Method
from ..nn import StepState
from ..optim import load_state_by_name, state_by_name
from ..plugins.manager import Plugins
from ..running.layers import collect
from ..running.plan import Plan, make_plan
from ..schedule import Now
from ..training.callback import Callback
from ..training.engine import Engine, Terms
from .check import expect, fail, few

IMAGES, BATCH, SIZE, EPOCHS = 64, 16, 16, 4


class SmallNet(Backbone):
    """Two convolutions with batch norms, 24 features: trains a step in milliseconds."""

    name = "toy"
    embed_dim = 24

    def __init__(self, image: ImageSpec) -> None:
        super().__init__(Schema(), image)
        self.conv1 = nn.Conv2d(image.channels, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, self.embed_dim, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(self.embed_dim)

    def features(self, images: Tensor) -> Features:
        """The average of the last map, and the map."""
        x = self.bn2(self.conv2(self.bn1(self.conv1(images)).relu())).relu()
        return Features(x.mean((2, 3)), x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))


def patterns(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random images (count, channels, size, size), unlike each other, with mean 0 and deviation about 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False) * 1.5


def toy_images(count: int = IMAGES, channels: int = 3, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """uint8 images (count, channels, size, size) and labels: the channel (or half) that is brightest."""
    images = (patterns(count, channels, size) * 50 + 128).clamp(0, 255).to(torch.uint8)
    labels = images.float().mean((2, 3)).argmax(1) if channels > 1 else (images.float().mean((1, 2, 3)) > 128).long()
    return images, labels


def toy_spec(size: int = 32, channels: int = 3) -> ImageSpec:
    """How toy images reach a network."""
    return ImageSpec(size, channels, (0.5,) * channels, (0.2,) * channels)


@dataclass
class Trace:
    """Losses and state after a few steps of training."""

    losses: list[float] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    def same(self, other: Trace) -> bool:
        """Whether every number is the same to the last bit."""
        return self.losses == other.losses and not changed(self.state, other.state)


class _Watch(Callback):
    """Notes each loss, and stops the run after a step where that is asked for."""

    def __init__(self, trace: Trace, stop_at: int | None) -> None:
        self.trace, self.stop_at = trace, stop_at

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """Note the loss of this step."""
        self.trace.losses += [float(value) for name, value in terms.items() if name == "loss"]
        if engine.now.step == self.stop_at:
            raise _Stopped


class _Stopped(Exception):
    """The run was to stop here."""


class MethodSubject:
    """A method with its default recipe on 64 toy images of 16 px."""

    def __init__(
        self, component: type[Method], plugins: Plugins, settings: Mapping[str, Any], backbone: str | None
    ) -> None:
        self.component, self.plugins = component, plugins
        self.settings, self.backbone = {**component.trial_settings, **settings}, backbone

    def plan(self, *, channels: int = 3, size: int = SIZE, count: int = IMAGES, **given: Any) -> Plan:
        """A run of the method, ready to start; `given` are keywords of `run`, which come before the kit's."""
        keywords: dict[str, Any] = {
            "data": toy_images(count, channels, size),
            "backbone": self._backbone(channels, size),
            "image_size": size,
            "batch_size": BATCH,
            "epochs": EPOCHS,
            "precision": "fp32",
            "device": "cpu",
            "seed": 0,
            **given,
        }
        options = {**self.settings, **keywords.pop("options", {})}
        keywords = {key: value for key, value in keywords.items() if value is not None}
        method = {"name": self.component.name, **options}
        return make_plan(collect(method, None, keywords, self.plugins), self.plugins)

    def trains(self, what: str, *, refused: type[Exception] | tuple[()] = (), cure: str = "", **given: Any) -> None:
        """Fail unless a run with these keywords ends with finite losses, or raises `refused` before it starts."""
        try:
            plan = self.plan(**given)
        except refused:
            return
        except Exception as error:
            fail(f"{what}: {type(error).__name__}: {error}", cure)
        try:
            losses = self.train(plan).losses
        except Exception as error:
            fail(f"{what} failed in training: {type(error).__name__}: {error}", cure)
        expect(all(map(math.isfinite, losses)), f"{what}: the losses are {losses}", cure)

    def _backbone(self, channels: int, size: int) -> Any:
        """The kit's own network, the one that was asked for, or None: the rule for token methods decides."""
        if self.backbone is not None:
            return self.backbone
        if not issubclass(SmallNet, self.component.accepts):
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return SmallNet(toy_spec(size, channels))

    def ready(self, **given: Any) -> Ready:
        """The method of such a run, about to make a step."""
        return Ready(self.plan(**given))

    def train(self, plan: Plan, *, stop_at: int | None = None, resumed: Trace | None = None) -> Trace:
        """Train a plan with the real engine to its end or to a step, from the start or from where another stopped."""
        trace = Trace()
        with torch.random.fork_rng(devices=[]):
            engine = plan.engine([_Watch(trace, stop_at)])
            if resumed is not None:
                plan.method.load_state_dict(resumed.state)
                load_state_by_name(engine.optimizer, resumed.optimizer)
                engine.go_to(len(resumed.losses))
            with suppress(_Stopped):
                engine.fit()
        trace.state = copied(plan.method.state_dict())
        trace.optimizer = copied(state_by_name(engine.optimizer))
        return trace


class Ready:
    """A method in training mode before a step in the second half of its run, when what waits at the start has begun."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.method = plan, plan.method.train()
        per_epoch = plan.loader().steps_per_epoch
        self.now = Now(per_epoch * EPOCHS * 3 // 4, per_epoch, per_epoch * EPOCHS)

    def batch(self, seed: int = 0, *, partners: Tensor | None = None, noise: float = 0.1) -> Batch:
        """Views that the kit draws itself: each is the image at the group's size, with a little noise.

        With `partners` (B,), every view after the first is of those images instead.
        """
        base = patterns(BATCH, self.plan.image.channels, self.plan.image.size, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        views, number = Views(), 0
        for group in self.plan.augmentation.groups():
            views[group.name] = []
            for _ in group.transforms:
                image = base if partners is None or number == 0 else base[partners]
                view = F.interpolate(image, (group.size, group.size), mode="bilinear", align_corners=False)
                views[group.name].append(view + noise * torch.randn(view.shape, generator=generator))
                number += 1
        label = torch.arange(BATCH) % self.plan.facts.classes if self.method.uses_labels else None
        return Batch(views, torch.arange(BATCH), label, step=seed)

    def terms(self, batch: Batch | None = None, seed: int = 0) -> dict[str, Tensor]:
        """One forward pass, with the randomness of layers fixed as the engine fixes it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cast("dict[str, Tensor]", self.method(batch or self.batch(), self.now))

    def loss(self, batch: Batch, seed: int = 0) -> float:
        """The loss of a batch in training mode; no gradients, and nothing stays in queues and centres."""
        self.method.train()
        with torch.no_grad():
            loss = float(self.terms(batch, seed)["loss"])
        self.forget_pushed()
        return loss

    def backward(self, batch: Batch | None = None) -> None:
        """Gradients of the loss of a batch, added to those that are there."""
        backward(self.terms(batch)["loss"])

    def sgd(self, lr: float) -> torch.optim.SGD:
        """An optimizer of all that is trained."""
        return torch.optim.SGD([p for p in self.method.parameters() if p.requires_grad], lr)

    def move(self) -> None:
        """Let all slow state move, as the engine does after a step."""
        moved(self.method, self.now)

    def forget_pushed(self) -> None:
        """Drop what a forward pass has pushed into queues and centres, as the engine does where a step is skipped."""
        for module in self.method.modules():
            if isinstance(module, StepState | Method):
                module.skip_step()


@dataclass
class ComponentSubject:
    """A component of any other kind, with the settings it is built from."""

    component: Any
    plugins: Plugins
    settings: Mapping[str, Any]

    def build(self, *args: Any, **settings: Any) -> Any:
        """The component with other settings over those of the subject."""
        config = validate(self.component.Config, {**self.settings, **settings}, registry=self.plugins)
        return self.component(config, *args)


# -- what several checks need ---------------------------------------------------------------------
def moved(method: Method, now: Now) -> None:
    """Let all slow state of a method move."""
    for module in method.modules():
        if isinstance(module, StepState | Method):
            module.after_step(now)


def backward(loss: Tensor) -> None:
    """Gradients of a loss, added to those that are there."""
    torch.autograd.backward([loss])


def disturb_global_randomness(seed: int) -> None:
    """Put every global generator but torch's, which the engine seeds, somewhere else."""
    random.seed(seed)
    np.random.seed(seed)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors differ in any bit, or are on one side alone."""
    names = [*before, *(name for name in after if name not in before)]
    return [n for n in names if n not in before or n not in after or not torch.equal(before[n], after[n])]


class Waiting:
    """The trainable parameters of a module that no gradient has reached yet."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = {name for name, p in module.named_parameters() if p.requires_grad}

    def look(self) -> None:
        """Note whom gradients have reached; none may be infinite or NaN."""
        for name, p in self.module.named_parameters():
            if p.grad is not None:
                expect(bool(p.grad.isfinite().all()), f"the gradient of {name} is not finite")
                if p.grad.abs().max() > 0:
                    self.names.discard(name)

    def none_left(self) -> None:
        """Fail where some parameters still wait."""
        expect(not self.names, f"no gradient in three steps: {few(sorted(self.names))}")

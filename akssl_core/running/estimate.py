"""Estimates before a run: memory, time, and facts that follow from its settings."""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import dist
from ..backbone import Backbone
from ..errors import ConfigError, RunStopped
from ..nn import EMA
from ..optim import OptimizerConfig, parameter_groups
from ..plugins.manager import Plugins
from ..schedule import Now
from ..settings import BUDGET, LENGTH, Given, seconds_of
from ..training.callback import Callback
from ..training.engine import Engine, Terms
from .plan import Plan, make_plan
from .rules import length

WARM_STEPS, MEASURED_STEPS = 2, 5  # at the least
SHARE = 0.01  # of a budget, to be measured: the first steps may be much faster than those to come
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a process takes for training, as far as the settings tell; torch itself takes some hundred MiB more."""

    weights: int
    """Of the method, with slow copies and other state."""
    training: int
    """Gradients, and the moments that the optimizer keeps."""
    activations: int
    """Outputs of the backbone's layers over all views of one micro-batch, kept for the backward pass; with
    `train.recompute` those of the blocks and of all layers of one block."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.training + self.activations


def steps(plan: Plan) -> Now:
    """The run before its first step."""
    return length(plan.spec.train, len(plan.images))


def memory(plan: Plan, *, devices: int = 1) -> Memory:
    """The memory that each process needs, where one of the plan stands for `devices`.

    Activations are those of a forward pass of one image. Under FSDP a process has a share of the parameters; whole are
    those outside of blocks, and of one block at a time.
    """
    trained = sum(p.numel() * p.element_size() for p in plan.method.parameters() if p.requires_grad)
    kept = sum(t.numel() * t.element_size() for t in plan.method.state_dict().values())
    shares = devices * dist.world() if plan.spec.train.strategy == "fsdp" else 1
    if shares > 1:
        whole = _bytes(plan.method)
        parts = [part for part in plan.method.modules() if isinstance(part, Backbone)]
        blocks = [_bytes(block) for part in parts for block in part.parts()]
        together = whole - sum(blocks) + max(blocks, default=0)
        kept, trained = kept - whole + whole // shares + together, trained // shares
    moments = 2 if hasattr(plan.spec.optimizer.config, "betas") else 1
    size = torch.tensor([], dtype=plan.hardware.dtype).element_size()
    images = plan.facts.forward_size // devices
    pixels = sum(len(group.transforms) * group.size**2 for group in plan.augmentation.groups())
    share = pixels / plan.image.size**2  # views in images of the full size
    return Memory(kept, (1 + moments) * trained, int(images * share * size * _outputs(plan)))


def _bytes(module: nn.Module) -> int:
    """Bytes of its parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _outputs(plan: Plan) -> int:
    """Numbers in the outputs of all layers of the backbone for one image; of blocks computed again, in the largest."""
    backbone = copy.deepcopy(plan.method.backbone).eval()
    blocks = backbone.parts() if plan.spec.train.recompute else ()
    kept: list[int] = []
    inside: dict[nn.Module, list[int]] = {block: [] for block in blocks}
    place = {part: counts for block, counts in inside.items() for part in block.modules() if part is not block}
    for module in backbone.modules():
        if module in inside or not list(module.children()):
            module.register_forward_hook(partial(_count, place.get(module, kept)))
    image = torch.zeros(1, plan.image.channels, plan.image.size, plan.image.size)
    with torch.no_grad():
        backbone(image.to(next(backbone.parameters()).device))
    return sum(kept) + max((sum(counts) for counts in inside.values()), default=0)


def _count(counts: list[int], module: nn.Module, inputs: object, output: object) -> None:
    """Note how many numbers a module has put out."""
    counts.append(output.numel() if isinstance(output, Tensor) else 0)


def half_life(momentum: float) -> float:
    """Steps after which a moving average has forgotten half of what it was; endless at a momentum of 1."""
    if momentum >= 1:
        return math.inf
    return 0.0 if momentum <= 0 else math.log(0.5) / math.log(momentum)


def averages(plan: Plan) -> list[tuple[float, float]]:
    """The half-lives in steps, at the start and at the end, of each of the method's moving averages."""
    now = steps(plan)
    end = Now(max(now.total_steps - 1, 0), now.steps_per_epoch, now.total_steps)
    found = [part for part in plan.method.modules() if isinstance(part, EMA)]
    return [(half_life(ema.momentum(now)), half_life(ema.momentum(end))) for ema in found]


def forecast(plan: Plan) -> list[tuple[str, str]]:
    """Facts that follow from the settings: lengths, rates, sizes, what only the method knows, and memory."""
    spec, now = plan.spec, steps(plan)
    batch, rates = spec.train.batch_size or 1, spec.optimizer.config
    assert isinstance(rates, OptimizerConfig)
    scale, peak = rates.scale(batch), rates.lr.peak(now.epochs)
    groups = parameter_groups(plan.method, plan.method.param_rules(), rates)
    trained = sum(p.numel() for group in groups if group["frozen_epochs"] < now.epochs for p in group["params"])
    lines = [
        ("training images", f"{len(plan.images)}"),
        ("optimizer steps", f"{now.total_steps} ({now.steps_per_epoch} an epoch)"),
        ("images seen", f"{now.total_steps * batch}"),
        ("peak learning rate", f"{peak * scale:g} (setting {peak:g} x {scale:g})"),
        ("trained parameters", f"{trained / 1e6:.2f} million"),
        ("feature size", f"{plan.backbone.embed_dim}"),
        ("epochs", f"{now.epochs:.4g}"),
    ]
    for start, end in averages(plan):
        lines.append(("half-life of the slow copy", f"{start:.3g} steps at first, {end:.3g} at the end"))
    lines += spec.method_class.derived(spec.method.config, plan.facts).items()
    need = memory(plan)
    text = (
        f"about {need.total / MIB:.0f} MiB: {need.weights / MIB:.0f} MiB of weights and slow state, "
        f"{need.training / MIB:.0f} MiB of gradients and optimizer, {need.activations / MIB:.0f} MiB of activations "
        f"(the outputs of the backbone's layers, by a forward pass of one image)"
    )
    return [*lines, ("memory for training", text)]


class _Measured(RunStopped):
    """Enough steps were timed."""


class _Stopwatch(Callback):
    """The seconds of each step, until there are enough."""

    def __init__(self, enough: float) -> None:
        self.enough = enough
        self.seconds: list[float] = []
        self._since = time.perf_counter()

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """Take the time, waiting for the device."""
        float(dict(terms.items())["loss"])
        self.seconds.append(time.perf_counter() - self._since)
        timed = self.seconds[WARM_STEPS:]
        if len(timed) >= MEASURED_STEPS and dist.any_rank(sum(timed) >= self.enough):  # all processes stop at one step
            raise _Measured
        self._since = time.perf_counter()


def seconds_per_step(plan: Plan, enough: float = 1.0) -> tuple[float, int]:
    """The mean time of a run's steps, from a few that a copy of the method takes, and how many were timed.

    Args:
        plan: what is to be trained.
        enough: seconds that the timed steps take together, at the least.
    """
    whole = plan.spec.model_copy(update={"start": None})  # steps of heads alone are faster
    watch, copied = _Stopwatch(enough), replace(plan, method=copy.deepcopy(plan.method), spec=whole)
    with suppress(_Measured), torch.random.fork_rng(devices=[]):
        copied.engine([watch]).fit()
    taken = watch.seconds[WARM_STEPS:] or watch.seconds
    return statistics.mean(taken), len(taken)


def leave_length_open(budget: object, given: Given) -> Given:
    """The settings without a length, which is to follow from a time.

    Raises:
        ConfigError: it is no time, or the length is told beside it.
    """
    seconds_of(budget)
    if told := [name for name in LENGTH if name in given.layers[-1][1].get("train", {})]:
        raise ConfigError(f"budget: how many steps fit into {budget} is measured. Leave {told[0]} out, or the budget.")

    def open_ended(table: Mapping[str, Any]) -> Mapping[str, Any]:
        train = {name: value for name, value in table.get("train", {}).items() if name not in LENGTH}
        return {**table, "train": train} if "train" in table else table

    return Given([(who, open_ended(table)) for who, table in given.layers], given.objects)


def within(budget: str | float, given: Given, plugins: Plugins) -> Given:
    """The settings with as many steps as fit into a time, of which a few are measured; the same in every process."""
    plan, allowed = make_plan(given, plugins), seconds_of(budget)
    plan.take_threads()
    each = float(dist.from_main(str(seconds_per_step(plan, SHARE * allowed)[0])))
    if allowed < each:
        text = f"budget: a step takes {each:.3g} s here, longer than {budget}: one is trained"
        warnings.warn(text, UserWarning, stacklevel=4)
    count = max(1, int(allowed / each))
    told = {"train": {"steps": count, "epochs": math.ceil(count / steps(plan).steps_per_epoch)}}
    return Given([*given.layers, (f"{BUDGET} {budget} at {each:.3g} s a step", told)], given.objects)


def time_steps(plan: Plan) -> tuple[str, str]:
    """The time of the run's steps, from a few that are timed."""
    each, count = seconds_per_step(plan)
    total = steps(plan).total_steps
    how = f"the mean of {count} measured steps is {each:.3g} s; probes and checkpoints come on top"
    return "time of all steps", f"about {_duration(each * total)} ({how})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

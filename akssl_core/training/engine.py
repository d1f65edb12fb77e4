"""The training loop: one loss, one optimizer, and slow state that moves once after each real step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .. import dist
from ..backbone.base import Backbone, whole_float32
from ..data.base import Batch, Pixels, Views, sent
from ..data.loader import Loader
from ..dist.sharding import gathered, is_sharded, sync_gradients
from ..method import Method
from ..nn import StepState
from ..optim import OptimizerConfig, clip, drop_frozen, set_group_values
from ..schedule import Now
from ..settings import StartSpec, TrainSpec
from .beginning import Kept
from .convolution import fast_convolutions
from .hardware import Hardware, kept_memory, seed_generators
from .recompute import twice

MakeViews = Callable[[Pixels, Tensor, int], Views]  # pixels, index (B,), epoch
Terms = dict[str, Tensor]  # of a step, averaged over micro-batches; on the device until somebody reads one


class Clock:
    """Seconds spent in each part of the loop since they were last read.

    On a GPU, ahead of which the host runs, they are the device's own, idle ones included: those of a part for whose
    work it has waited. Nobody waits for them until they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps = [("", self._now())]

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it so
        event.record(torch.cuda.current_stream(self._device))
        return event

    def lap(self, part: str) -> None:
        """Book the time since the last lap under `part`."""
        self._laps.append((part, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds by part, and start again."""
        laps, self._laps = self._laps, self._laps[-1:]
        spent: dict[str, float] = {}
        for (_, before), (part, after) in pairwise(laps):
            spent[part] = spent.get(part, 0.0) + _between(before, after)
        return spent


def _between(before: Any, after: Any) -> float:
    """Seconds from one moment to a later one; they are numbers, or events of a GPU."""
    if isinstance(after, float):
        return after - float(before)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


class Hook(Protocol):
    """The methods that the engine calls around its steps; every `Callback` has them."""

    def on_start(self, engine: Engine) -> None:
        """Before the first step."""

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """After each optimizer step."""

    def on_epoch(self, engine: Engine) -> None:
        """After each epoch, and when a run ends within one."""

    def on_end(self, engine: Engine) -> None:
        """After the last step."""


class Engine:
    """Trains a method. Everything that decides the numbers is in `method`, `optimizer`, `now` and the arguments."""

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        rates: OptimizerConfig,
        loader: Loader,
        views: MakeViews,
        spec: TrainSpec,
        hardware: Hardware,
        *,
        seed: int = 0,
        callbacks: Sequence[Hook] = (),
        plain: Backbone | None = None,
        start: StartSpec | None = None,
    ) -> None:
        self.method, self.loader, self.spec = method, loader, spec
        self.optimizer, self.rates = optimizer, rates
        self.hardware, self.device = hardware, hardware.device
        self.views, self.seed, self.callbacks = views, seed, callbacks
        self.batch_size = loader.batch_size
        self.kept = Kept(method, start)
        self._plain = plain  # the encoder with room for all its parameters, where the method's own has a share
        total = (spec.epochs or 1) * loader.steps_per_epoch
        self.now = Now(0, loader.steps_per_epoch, min(total, spec.steps or total))
        self.clock = Clock(self.device)
        self.sharded = is_sharded(method)
        if not self.sharded:
            method.to(device=self.device, memory_format=hardware.layout)  # type: ignore[call-overload]
        backbones = [part for part in method.modules() if isinstance(part, Backbone)] if spec.compile else []
        self.forwards = twice(method) if spec.recompute else {}
        self.forwards |= {part: torch.compile(part.forward) for part in backbones}  # each compiles at its first call
        self.model: nn.Module = method if self.sharded else dist.wrap(method)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=hardware.dtype == torch.float16)

    @property
    def at_epoch_end(self) -> bool:
        """Whether `on_epoch` follows: the epoch is complete, or the run ends within it."""
        return self.now.step % self.now.steps_per_epoch == 0 or self.now.step >= self.now.total_steps

    def encoder(self) -> Backbone:
        """The encoder with all its parameters, for probes and export.

        With shared-out parameters it is a copy that is filled here, and all processes must call this together.
        """
        encoder = self.method.encoder
        if self._plain is None:
            return encoder
        self._plain.load_state_dict(gathered(encoder.state_dict(), everywhere=True))
        return self._plain

    def go_to(self, step: int) -> None:
        """Stand where a checkpoint was taken."""
        self.now = replace(self.now, step=step)

    def fit(self) -> None:
        """Train from `now` to the end."""
        norms = dist.shared_statistics(self.method) if self.method.shared_batch_norm else nullcontext()
        exact = _deterministic(self.spec.deterministic), whole_float32(tune=not self.spec.deterministic)
        with closing(self.loader), exact[0], exact[1], fast_convolutions(self.method), norms, kept_memory():
            self._call("on_start")
            self._settle()
            self.clock.read()
            while self.now.step < self.now.total_steps:
                epoch, start = divmod(self.now.step, self.now.steps_per_epoch)
                self._epoch(epoch, start)
            self._call("on_end")

    def _settle(self) -> None:
        """Modes and gradients as they are at `now`; DDP waits for no gradient that does not come."""
        if self.kept.settle(self.now) and not self.sharded:
            self.model = dist.wrap(self.method)

    def _epoch(self, epoch: int, start: int) -> None:
        """Train from step `start` of an epoch to its end, or to the end of the run."""
        batches = self.loader.epoch(epoch, start)
        try:
            for pixels, index, label in batches:
                self.clock.lap("load")
                self._step(self._micro_batches(pixels, index, label, epoch))
                if self.now.step >= self.now.total_steps:
                    break
        finally:
            batches.close()
        self._call("on_epoch")

    def _micro_batches(self, pixels: Pixels, index: Tensor, label: Tensor | None, epoch: int) -> Iterator[Batch]:
        """One loaded batch in as many parts as gradients are accumulated over, each with views when its turn comes."""
        pixels, step = pixels.to(self.device), self.now.step
        there, label = sent(index, self.device), None if label is None else sent(label, self.device)
        size = len(index) // self.spec.accumulate
        for start in range(0, size * self.spec.accumulate, size):
            part = slice(start, start + size)
            views = self.views(pixels.part(part), index[part], epoch)
            for group in views.values():
                group[:] = [view.contiguous(memory_format=self.hardware.layout) for view in group]
            self.clock.lap("augment")
            yield Batch(views, there[part], None if label is None else label[part], self.seed, step, index[part])

    def _step(self, micro: Iterator[Batch]) -> None:
        """One optimizer step over one or more micro-batches."""
        set_group_values(self.optimizer, self.rates, self.now, self.batch_size)
        _reseed(self.seed, self.now.step, self.device)
        terms: Terms = {}
        dtype, parts = self.hardware.dtype, self.spec.accumulate
        for i, batch in enumerate(micro):
            with self._sync(last=i == parts - 1):
                autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)
                with autocast, _forwards(self.forwards):
                    out = self.model(batch, self.now)
                self.clock.lap("forward")
                self.scaler.scale(out["loss"] / parts).backward()
                self.clock.lap("backward")
            for name, value in out.items():
                part = value.detach().float() * (1 / parts)
                terms[name] = terms[name] + part if name in terms else part
        self.scaler.unscale_(self.optimizer)
        drop_frozen(self.optimizer, self.now)
        clip(self.optimizer, self.spec.clip)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = self.scaler.get_scale() < before
        for module in self.method.modules():  # includes the method itself
            if isinstance(module, StepState | Method):
                module.skip_step() if skipped else module.after_step(self.now)
        self.now = self.now.next()
        if self.kept.begins_whole(self.now):
            self.kept.catch_up()
            self._settle()
        self.clock.lap("optimizer")
        for callback in self.callbacks:
            callback.on_step(self, terms)
        self.clock.lap("record")

    def _call(self, event: Literal["on_start", "on_epoch", "on_end"]) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)
        self.clock.lap("evaluate")

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients travel between processes on the last micro-batch alone."""
        sync_gradients(self.model, last)
        return nullcontext() if last else dist.no_sync(self.model)


@contextmanager
def _forwards(others: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules run these instead of their own forward, while this lasts: probes see other batches and do not."""
    own = {part: vars(part).get("forward") for part in others}
    for part, forward in others.items():
        part.forward = forward
    try:
        yield
    finally:
        for part, before in own.items():
            del part.forward
            if before is not None:
                part.forward = before


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Torch refuses operations that may differ from call to call, while this lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _reseed(seed: int, step: int, device: torch.device) -> None:
    """Randomness of layers (dropout, stochastic depth) is a function of (seed, step, rank): nothing to save."""
    key = (seed * 1_000_003 + step) * 65_536 + dist.rank()
    seed_generators(device, key % 2**63)

"""The training loop: one loss, one optimizer, and slow state that moves once after each real step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .. import dist
from ..backbone.base import Backbone
from ..data.base import Batch, Pixels, Views
from ..data.loader import Loader
from ..dist.sharding import gathered, is_sharded, sync_gradients
from ..method import Method
from ..nn import StepState
from ..optim import OptimizerConfig, clip, drop_frozen, set_group_values
from ..schedule import Now
from ..settings import TrainSpec
from .convolution import fast_convolutions
from .hardware import Hardware, kept_memory

MakeViews = Callable[[Pixels, Tensor, int], Views]  # pixels, index (B,), epoch
Terms = dict[str, Tensor]  # of a step, averaged over micro-batches; on the device until somebody reads one

LAYOUT = torch.channels_last  # what convolutions prefer everywhere: in fp32 on a CPU 1.12 to 1.26 times the rate


class Clock:
    """Seconds spent in each part of the loop since they were last read.

    On a GPU the host runs ahead of the device, so that a part's seconds are those of launching its work; where the host
    waits, that part shows the device's.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, part: str) -> None:
        """Book the time since the last lap under `part`."""
        now = time.perf_counter()
        self._spent[part] = self._spent.get(part, 0.0) + now - self._since
        self._since = now

    def read(self) -> dict[str, float]:
        """Seconds by part, and start again."""
        spent, self._spent = self._spent, {}
        return spent


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
    ) -> None:
        self.method, self.loader, self.spec = method, loader, spec
        self.optimizer, self.rates = optimizer, rates
        self.hardware, self.device = hardware, hardware.device
        self.views, self.seed, self.callbacks = views, seed, callbacks
        self.batch_size = loader.batch_size
        self._plain = plain  # the encoder with room for all its parameters, where the method's own has a share
        total = (spec.epochs or 1) * loader.steps_per_epoch
        self.now = Now(0, loader.steps_per_epoch, min(total, spec.steps or total))
        self.clock = Clock()
        self.sharded = is_sharded(method)
        if not self.sharded:
            method.to(device=self.device, memory_format=LAYOUT)  # type: ignore[call-overload]
        backbones = [part for part in method.modules() if isinstance(part, Backbone)] if spec.compile else []
        self.compiled = {part: torch.compile(part.forward) for part in backbones}  # each compiles at its first call
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
        exact = _deterministic(self.spec.deterministic)
        with closing(self.loader), exact, fast_convolutions(self.method), norms, kept_memory():
            self._call("on_start")
            self.method.train()
            self.clock.read()
            while self.now.step < self.now.total_steps:
                epoch, start = divmod(self.now.step, self.now.steps_per_epoch)
                self._epoch(epoch, start)
            self._call("on_end")

    def _epoch(self, epoch: int, start: int) -> None:
        """Train from step `start` of an epoch to its end, or to the end of the run."""
        batches = self.loader.epoch(epoch, start)
        try:
            for pixels, index, label in batches:
                self.clock.lap("load")
                self._step(list(self._micro_batches(pixels, index, label, epoch)))
                if self.now.step >= self.now.total_steps:
                    break
        finally:
            batches.close()
        self._call("on_epoch")

    def _micro_batches(self, pixels: Pixels, index: Tensor, label: Tensor | None, epoch: int) -> Iterator[Batch]:
        """The views of one loaded batch, in as many parts as gradients are accumulated over."""
        views = self.views(pixels.to(self.device), index, epoch)
        for group in views.values():
            group[:] = [view.contiguous(memory_format=LAYOUT) for view in group]
        index = index.to(self.device)
        label = None if label is None else label.to(self.device)
        self.clock.lap("augment")
        size, whole = len(index) // self.spec.accumulate, Batch(views, index, label, self.seed, self.now.step)
        for i in range(self.spec.accumulate):
            yield whole.part(i * size, (i + 1) * size)

    def _step(self, micro: Sequence[Batch]) -> None:
        """One optimizer step over one or more micro-batches."""
        set_group_values(self.optimizer, self.rates, self.now, self.batch_size)
        _reseed(self.seed, self.now.step, self.device)
        terms: Terms = {}
        dtype = self.hardware.dtype
        for i, batch in enumerate(micro):
            with self._sync(last=i == len(micro) - 1):
                autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)
                with autocast, _forwards(self.compiled):
                    out = self.model(batch, self.now)
                self.clock.lap("forward")
                self.scaler.scale(out["loss"] / len(micro)).backward()
                self.clock.lap("backward")
            for name, value in out.items():
                part = value.detach().float() * (1 / len(micro))
                terms[name] = terms[name] + part if name in terms else part
        self.scaler.unscale_(self.optimizer)
        drop_frozen(self.optimizer, self.now)
        clip(self.optimizer, self.spec.clip)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= before:  # smaller: the step was skipped, so slow state stays as well
            for module in self.method.modules():  # includes the method itself
                if isinstance(module, StepState | Method):
                    module.after_step(self.now)
        self.now = self.now.next()
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
def _forwards(compiled: Mapping[Backbone, Callable[..., Any]]) -> Iterator[None]:
    """The backbones run these instead of their own forward, while this lasts: probes see other batches and do not."""
    for part, forward in compiled.items():
        part.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in compiled:
            del part.forward


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
    torch.default_generator.manual_seed(key % 2**63)
    if device.type == "cuda":
        torch.cuda.manual_seed(key % 2**63)

"""Training steps to look at: engines as runs build them, and what their steps cost."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rows import Setup
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset

from akssl_core import Callback, Views
from akssl_core.plugins.manager import installed
from akssl_core.running.layers import collect
from akssl_core.running.plan import Plan, make_plan
from akssl_core.training.engine import Engine

METHODS = (
    "barlowtwins", "byol", "dino", "lejepa", "mocov2", "mocov3", "nnclr", "simclr", "simclrv2", "simsiam", "swav",
    "vicreg",
)  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {"resnet18": {}, "vit_tiny": {"patch_size": 8}}  # with the settings for 32 px
TINY = {"name": "resnet_tiny", "widths": [8, 8, 16, 16]}  # of the short form


def plan(setup: Setup, method: str, **settings: Any) -> Plan:
    """A run of a thousand epochs on the device, ready to start."""
    given = {"epochs": 1000, "device": setup.device.type, **settings}
    return make_plan(collect(method, None, given, installed()), installed())


def noise(count: int, side: int, width: int | None = None) -> Tensor:
    """Images (count, 3, side, width or side) uint8, the same in each process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, width or side), dtype=torch.uint8, generator=generator)


class Ragged(Dataset[Tensor]):
    """Images of two sizes in turn, the one upright and the other lying, a little larger than the views."""

    def __init__(self, count: int, side: int) -> None:
        self.tall, self.wide = noise(count, side + 32, side + 8), noise(count, side + 8, side + 32)

    def __len__(self) -> int:
        return len(self.tall)

    def __getitem__(self, i: int) -> Tensor:
        return (self.tall if i % 2 else self.wide)[i]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products and convolutions without TF32, while this lasts."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


# -- following an engine --------------------------------------------------------------------------
class After(Callback):
    """Calls functions after numbered steps of a stretch of training; 0: before the first."""

    def __init__(self, calls: dict[int, Callable[[], Any]]) -> None:
        self.calls = calls

    def on_start(self, engine: Engine) -> None:
        """Before the first step."""
        self.step = -1
        self.on_step(engine, {})

    def on_step(self, engine: Engine, terms: Any) -> None:
        """After each step."""
        self.step += 1
        self.calls.get(self.step, lambda: None)()


class Losses(Callback):
    """Keeps the loss of each step where it is, so that the host does not wait."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def on_step(self, engine: Engine, terms: Any) -> None:
        """After each step."""
        self.kept.append(terms["loss"])

    def read(self) -> list[float]:
        """All so far."""
        return [float(loss) for loss in self.kept]


def train(engine: Engine, steps: int, *callbacks: Callback) -> None:
    """So many more steps."""
    engine.callbacks = callbacks
    engine.now = replace(engine.now, total_steps=engine.now.step + steps)
    engine.fit()


def trained(setup: Setup, method: str, steps: int, **settings: Any) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the first steps, and the weights after them, on the CPU."""
    engine, losses = plan(setup, method, **settings).engine([]), Losses()
    train(engine, steps, losses)
    return losses.read(), {name: value.cpu() for name, value in engine.method.state_dict().items()}


def use_ready_views(engine: Engine, plan: Plan) -> None:
    """The engine gets the same views in each step: they cost nothing."""
    made: dict[str, list[Tensor]] = {}
    for group in plan.augmentation.groups():
        shape = (engine.batch_size, plan.image.channels, group.size, group.size)
        made[group.name] = [torch.randn(shape, device=engine.device) for _ in group.transforms]
        made[group.name] = [view.contiguous(memory_format=torch.channels_last) for view in made[group.name]]
    engine.views = lambda pixels, index, epoch: Views({name: list(views) for name, views in made.items()})


# -- measuring ------------------------------------------------------------------------------------
@dataclass
class Stopwatch:
    """Moments of a device: on a GPU events, for which nobody waits before the end."""

    device: torch.device
    moments: list[Any] = field(default_factory=list)

    def tick(self) -> None:
        """Note a moment."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter() * 1000)

    def milliseconds(self) -> list[float]:
        """From each moment to the next."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) for a, b in zip(self.moments, self.moments[1:], strict=False)]
        return [b - a for a, b in zip(self.moments, self.moments[1:], strict=False)]


@dataclass(frozen=True)
class Pace:
    """How fast something runs."""

    rate: float
    """Images a second over all that was timed."""
    numbers: dict[str, float]
    """Milliseconds of a step: mean, median and longest."""


def pace(watch: Stopwatch, images: int) -> Pace:
    """The pace of steps of so many images, from the moments between them."""
    took = watch.milliseconds()
    mean = statistics.mean(took) or float("nan")  # a device without a clock
    numbers = {"mean ms": mean, "median ms": statistics.median(took), "longest ms": max(took)}
    return Pace(1000 * images / mean, {name: round(value, 3) for name, value in numbers.items()})


def timed(setup: Setup, engine: Engine) -> Pace:
    """Ten warm steps and thirty timed ones, from the loading of their batches on."""
    warm, steps = setup.pick((10, 30), (1, 2))
    watch = Stopwatch(setup.device)
    train(engine, warm + steps, After(dict.fromkeys(range(warm, warm + steps + 1), watch.tick)))
    return pace(watch, engine.batch_size)


def repeated(setup: Setup, images: int, call: Callable[[], Any], times: int | None = None) -> Pace:
    """The pace of a call that does so many images: of thirty, or `times`, after a third as many warm ones."""
    times = times or setup.pick(30, 2)
    for _ in range(1 + times // 3):
        call()
    watch = Stopwatch(setup.device)
    watch.tick()
    for _ in range(times):
        call()
        watch.tick()
    return pace(watch, images)


def waits(engine: Engine, steps: int) -> Counter[str]:
    """Where the host waits for the GPU in so many steps, and how often, as torch's own check tells."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        listen = {2: lambda: torch.cuda.set_sync_debug_mode("warn")}
        listen[2 + steps] = lambda: torch.cuda.set_sync_debug_mode("default")
        try:
            train(engine, 2 + steps, After(listen))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    synchronous = [one for one in caught if "called a synchronizing" in str(one.message)]
    return Counter(f"{'/'.join(one.filename.split('/')[-3:])}:{one.lineno}" for one in synchronous)


@dataclass(frozen=True)
class Traced:
    """What the profiler saw of some steps on the GPU."""

    busy: float
    """The share of the time in which a kernel ran, in percent; NaN where none was seen."""
    launches: float
    """Kernels, copies and fills a step."""


def traced(engine: Engine, steps: int, file: Any = None) -> Traced:
    """Look at so many steps, after three warm ones; a `file` gets the whole trace."""
    profiler = profile(activities=[ProfilerActivity.CUDA, *[ProfilerActivity.CPU] * (file is not None)])
    train(engine, 3 + steps, After({3: profiler.start, 3 + steps: lambda: _stop(profiler, engine)}))
    if file is not None:
        profiler.export_chrome_trace(str(file))
    on_gpu = [e for e in profiler.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(e.time_range.start, e.time_range.end) for e in on_gpu]
    return Traced(100 * _covered(spans), len(spans) / steps)


def _stop(profiler: profile, engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    profiler.stop()


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The share of the time from the first start to the last end that is within a span."""
    if not spans:
        return float("nan")
    total, reached = 0.0, min(spans)[0]
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / ((reached - min(spans)[0]) or 1)

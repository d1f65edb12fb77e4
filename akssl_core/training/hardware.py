"""Where and in which number format a run computes, and memory that is kept from step to step."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import dist
from ..errors import ConfigError
from ..method import Choice
from ..settings import TrainSpec

KINDS = {"cuda": "CUDA", "xpu": "XPU", "mps": "MPS"}  # of devices beside the CPU, in the order in which `auto` looks
FP16_UNITS = (7, 0)  # the compute capability from which on GPUs have them: V100, T4
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # option numbers of glibc's mallopt(3)
NEVER, ONE_GB = -1, 2**30
# What glibc itself reaches in a process that has freed blocks of 32 MB; its adjusting cannot be switched on again.
USUAL_MMAP, USUAL_TRIM = 32 * 2**20, 64 * 2**20
SPELLS, SPELL = 5, 0.05  # how often and for how many seconds each number of threads is tried
GAIN = 1.25  # how many times as fast fewer threads must be
FIRST, LATER = 60.0, 10.0  # seconds whose rate others are compared with, and of each of those
SLOWER, WAITED = 0.5, 0.25  # share of the first rate, and of the time of one core, that are worth telling


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and in which number format a run computes, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def precision(self) -> str:
        """The number format by its usual short name."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @property
    def layout(self) -> torch.memory_format:
        """How weights and views of images lie in memory: with channels last, which convolutions prefer.

        In fp32 on a CPU that is 1.12 to 1.26 times the rate. On MPS the gradients of batch norms are wrong then
        (pytorch/pytorch issue 175189).
        """
        return torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    def record(self) -> dict[str, Any]:
        """Device, precision and threads, for the manifest."""
        kind = self.device.type
        named = getattr(torch, kind).get_device_name(self.device) if kind in ("cuda", "xpu") else platform.processor()
        threads = torch.get_num_threads()
        return {"device": kind, "name": named or platform.machine(), "precision": self.precision, "threads": threads}


def accelerators() -> dict[str, int]:
    """How many devices of each kind torch sees, beside the CPU, in the order in which `auto` takes them."""
    return {kind: getattr(torch, kind).device_count() for kind in KINDS}


def automatic() -> str:
    """The kind of device that `auto` means: the first that there is."""
    return next((kind for kind, count in accelerators().items() if count), "cpu")


def choose_hardware(spec: TrainSpec) -> Hardware:
    """The device and the number format for a run: bf16 where the hardware computes in it, else fp16 or fp32.

    Raises:
        ConfigError: there is no such device, not one for each process, or it cannot do what was asked for.
    """
    device = _device(spec)
    if device.type == "mps":
        _refuse_on_mps(spec)
    if device.type == "cuda" and spec.deterministic:  # read when cuBLAS is first used; torch before 2.14 asks for it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if spec.precision != "auto":
        return Hardware(device, DTYPES[spec.precision], "set by the user")
    name, reason = _precision(device, spec)
    return Hardware(device, DTYPES[name], reason)


def _device(spec: TrainSpec) -> torch.device:
    """The device of this process: that which was asked for, or the first kind that there is."""
    there, kind = accelerators(), automatic() if spec.device == "auto" else spec.device
    if kind == "cpu":
        return torch.device(kind)
    count, processes = there[kind], dist.local_world()
    if not count:
        others = ", ".join([*(other for other, many in there.items() if many), "cpu"])
        raise ConfigError(
            f"train.device: '{kind}' was asked for, but torch sees no {KINDS[kind]} device. Use {others} or auto."
        )
    if processes > count:
        raise ConfigError(
            f"train.devices: {processes} processes on this machine, where torch sees {count} {KINDS[kind]} "
            f"device(s); each process needs one of its own. Use at most --devices {count}, or --device cpu."
        )
    return torch.device(kind, dist.local_rank())


def _refuse_on_mps(spec: TrainSpec) -> None:
    """Refuse what torch does not do on the GPU of a Mac; float64 is missing too, and nothing of a step needs it."""
    wanted = {
        "train.precision: fp16 needs a scaled loss": spec.precision == "fp16",
        "train.deterministic: torch does not know which operations give the same bits": spec.deterministic,
        "train.devices: several processes need collectives": dist.expected() > 1,
    }
    for what, asked in wanted.items():
        if asked:
            raise ConfigError(f"{what}, which has no place on MPS. Leave that setting out, or use --device cpu.")


def _precision(device: torch.device, spec: TrainSpec) -> tuple[str, str]:
    """The number format that a device is good at, and why."""
    if device.type == "cpu":
        native = _cpu_has_bf16()
        return "bf16" if native else "fp32", f"the CPU has {'' if native else 'no '}bf16 units"
    if device.type == "mps":
        return "fp32", "every operation of MPS has it"
    if getattr(torch, device.type).is_bf16_supported(including_emulation=False):
        return "bf16", "the GPU has bf16"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP16_UNITS and spec.strategy == "ddp":
        return "fp16", "the GPU has fp16 units and no bf16"
    return "fp32", "the GPU has no bf16"


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere bf16 is slower than fp32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for them yet
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def seed_generators(device: torch.device, seed: int) -> None:
    """Let torch's random numbers begin anew, on the CPU and on this device alone."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Torch's random numbers, on the CPU and on this device, go on afterwards as if nothing had been drawn."""
    module = None if device.type == "cpu" else getattr(torch, device.type)
    state = None if module is None else module.get_rng_state(device)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if module is not None:
            module.set_rng_state(state, device)


# -- threads ---------------------------------------------------------------------------------------
def choose_threads() -> Choice:
    """How many threads suit a run on this CPU now: all that torch would take, unless fewer are clearly faster.

    The threads of an operation wait for the last of them. Where something else runs on one of their cores, that is
    its whole turn, many times a step; one thread less gets a core of its own.
    """
    usable = torch.get_num_threads()
    if usable == 1 or dist.world() > 1 or "OMP_NUM_THREADS" in os.environ:
        return Choice(usable, "as many as torch was given")
    rates = _rates({usable, usable - 1, *(usable >> i for i in range(usable.bit_length()))})
    best = max(rates, key=lambda count: rates[count])
    if rates[best] < GAIN * rates[usable]:
        return Choice(usable, "one for each core, which are free")
    return Choice(best, f"{rates[best] / rates[usable]:.1f} times as fast as {usable} beside what else is running")


def _rates(counts: Iterable[int]) -> dict[int, float]:
    """Small products a second with so many threads, which take turns; the middle of several spells."""
    numbers, found = torch.ones(256, 256), {count: list[float]() for count in counts}
    before = torch.get_num_threads()
    for _ in range(SPELLS):
        for count, rates in found.items():
            torch.set_num_threads(count)
            start, done = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < SPELL:
                torch.mm(numbers, numbers).add_(numbers)
                done += 1
            rates.append(done / spent)
    torch.set_num_threads(before)
    return {count: statistics.median(rates) for count, rates in found.items()}


class Cores:
    """Notices, once, that a run has become far slower than in its first minute because its threads wait for a core."""

    def __init__(self) -> None:
        self._first: float | None = None  # images a second
        self._told = False
        self._images, self._seconds, self._waited = 0, 0.0, _waited()

    def look(self, images: int, seconds: float) -> str:
        """What to tell after so many more images and seconds; mostly nothing."""
        self._images, self._seconds = self._images + images, self._seconds + seconds
        if self._told or self._seconds < (FIRST if self._first is None else LATER):
            return ""
        waited = _waited()
        rate, waiting = self._images / self._seconds, (waited - self._waited) / self._seconds
        self._images, self._seconds, self._waited = 0, 0.0, waited
        if self._first is None:
            self._first = rate
        self._told = rate < SLOWER * self._first and waiting > WAITED
        if not self._told:
            return ""
        threads = torch.get_num_threads()
        fewer = f", or go on with fewer: akssl resume RUN_DIR --set train.threads={threads - 1}" if threads > 1 else ""
        return (
            f"{rate:.0f} images a second, {self._first:.0f} in the first minute: the threads of this run ({threads}) "
            f"wait for cores that something else keeps busy. Stop that{fewer}."
        )


def _waited() -> float:
    """Seconds for which threads of this process could have run and had no core, as Linux counts; 0 elsewhere."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has just ended
            total += int(file.read_text().split()[1])
    return total / 1e9


# -- memory ----------------------------------------------------------------------------------------
@contextmanager
def kept_memory() -> Iterator[None]:
    """The allocator keeps what is freed, while this lasts; afterwards it hands back what is free.

    A training step asks for the same hundreds of megabytes as the one before. By default glibc maps large blocks
    anew each time, and the system clears every page again: 10 to 20 % of a step on a CPU. Without glibc nothing
    changes. Tensors on a GPU have an allocator of their own that works like this.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None  # elsewhere there is no such handle
    set_option, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if set_option is None or trim is None:
        yield
        return
    set_option(MMAP_THRESHOLD, ONE_GB)
    set_option(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        set_option(MMAP_THRESHOLD, USUAL_MMAP)
        set_option(TRIM_THRESHOLD, USUAL_TRIM)
        trim(0)

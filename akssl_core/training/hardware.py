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

    def record(self) -> dict[str, Any]:
        """Device, precision and threads, for the manifest."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else platform.processor() or platform.machine()
        threads = torch.get_num_threads()
        return {"device": self.device.type, "name": name, "precision": self.precision, "threads": threads}


def choose_hardware(spec: TrainSpec) -> Hardware:
    """The device and the number format for a run: bf16 where the hardware computes in it, else fp32.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not cuda:
        raise ConfigError("train.device: 'cuda' was asked for, but torch sees no CUDA device. Use cpu or auto.")
    device = torch.device("cuda", dist.local_rank()) if cuda and spec.device != "cpu" else torch.device("cpu")
    if spec.precision != "auto":
        return Hardware(device, DTYPES[spec.precision], "set by the user")
    on_gpu = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16()
    reason = f"the {'GPU' if on_gpu else 'CPU'} has {'' if native else 'no '}bf16{'' if on_gpu else ' units'}"
    return Hardware(device, DTYPES["bf16" if native else "fp32"], reason)


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere bf16 is slower than fp32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for them yet
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


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

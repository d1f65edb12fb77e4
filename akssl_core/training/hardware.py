"""Where and in which number format a run computes, and memory that is kept from step to step."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .. import dist
from ..errors import ConfigError
from ..settings import TrainSpec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # option numbers of glibc's mallopt(3)
NEVER, ONE_GB = -1, 2**30
# What glibc itself reaches in a process that has freed blocks of 32 MB; its adjusting cannot be switched on again.
USUAL_MMAP, USUAL_TRIM = 32 * 2**20, 64 * 2**20


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

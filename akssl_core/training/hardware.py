"""Where and in which number format a run computes."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from .. import dist
from ..errors import ConfigError
from ..settings import TrainSpec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Hardware(device, DTYPES["bf16" if native else "fp32"], f"the GPU has {'' if native else 'no '}bf16")
    native = _cpu_has_bf16()
    return Hardware(device, DTYPES["bf16" if native else "fp32"], f"the CPU has {'' if native else 'no '}bf16 units")


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere bf16 is slower than fp32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for them yet
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)

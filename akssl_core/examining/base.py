"""A rule of the doctor: a name, what it looks for, why that matters, how to mend it, and the function that looks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..data.stored import usable_cores
from ..metrics.features import sample
from ..reporting.files import RunFiles
from ..rundir.folder import RunDir
from ..running.plan import Plan
from ..training.hardware import accelerators

Kind = Literal["plan", "run"]
Evidence = str | tuple[str, str, str] | None  # or evidence, cause and cure of this run; or nothing
Function = TypeVar("Function", bound=Callable[[Any], Evidence])


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule has found."""

    rule: str
    """The name of the rule, as docs/doctor.md lists it."""
    evidence: str
    """The numbers that it saw."""
    cause: str
    """The usual reason of it."""
    cure: str
    """How to mend it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One fault that is looked for before a run ("plan") or in its folder ("run")."""

    kind: Kind
    name: str
    meaning: str
    cause: str
    cure: str
    function: Callable[[Any], Evidence]

    def look(self, subject: Any) -> Finding | None:
        """The finding, or nothing."""
        found = self.function(subject)
        if not found:
            return None
        return Finding(self.name, *(found if isinstance(found, tuple) else (found, self.cause, self.cure)))


LOOKED_AT = 1000  # images of a sample

RULES: list[Rule] = []


def _rule(kind: Kind, *, cause: str, cure: str) -> Callable[[Function], Function]:
    """Make a function a rule; its docstring says what it looks for."""

    def register(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        RULES.append(Rule(kind, name, " ".join((function.__doc__ or "").split()), cause, cure, function))
        return function

    return register


before_run = partial(_rule, "plan")  # for a function of a `PlannedRun`
after_run = partial(_rule, "run")  # for a function of a `FinishedRun`


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that a run may use."""

    cores: int
    gpus: int
    memory: int | None  # bytes that are free on the device; None: unknown
    disk: int  # bytes that are free where the run folder is to lie
    cuda: str | None = None  # version of CUDA, or of ROCm, that torch was built with

    @classmethod
    def here(cls, device: torch.device, out: Path) -> Machine:
        """The machine we are on, for a run on `device` that writes to `out`."""
        place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
        own = device.type in ("cuda", "xpu")  # MPS shares the machine's memory
        memory = getattr(torch, device.type).mem_get_info(device)[0] if own else _free_memory()
        built, gpus = torch.version.cuda or torch.version.hip, max(accelerators().values())
        return cls(usable_cores(), gpus, memory, shutil.disk_usage(place).free, built)


def _free_memory() -> int | None:
    """Bytes of main memory that are free, or could be made so."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts."""

    plan: Plan
    machine: Machine
    devices: int = 1  # processes

    @cached_property
    def pixels(self) -> list[Tensor]:
        """Images (C, h, w) uint8 of a sample of the training images."""
        images = sample(self.plan.images, LOOKED_AT)
        pixels = images.fetch(range(len(images)))
        return [pixels.image(i) for i in range(len(pixels))]


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that was, whole or not."""

    files: RunFiles
    folder: RunDir
    versions: dict[str, str]  # of the packages installed here

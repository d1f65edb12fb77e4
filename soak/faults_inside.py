"""A plugin in one file that brings faults about inside a run: FAULT names one, FAULT_STEP the step it happens in."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from akssl_core import Logger, Schema, hookimpl
from akssl_core.data import Wrapped, places
from akssl_core.plugins.manager import installed
from akssl_core.rundir import checkpoints
from akssl_core.rundir import folder as rundir
from akssl_core.rundir.files import TensorStream
from akssl_core.running import process as training

FAULT, _, DETAIL = os.environ.get("FAULT", "").partition(":")
STEP = int(os.environ.get("FAULT_STEP", "5"))
GATE = Path(os.environ.get("FAULT_GATE", "."))
YEAR = timedelta(days=365)


def gate(*_: Any) -> None:
    """Tell the parent that the place is reached, and wait until it has done its part."""
    (GATE / "here").touch()
    while not (GATE / "go").exists():
        time.sleep(0.01)


class Bad(Logger):
    """A logger that raises in the method that FAULT names."""

    name = "bad"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._fail("init")

    def _fail(self, method: str) -> None:
        if ("logger", method) == (FAULT, DETAIL):
            raise ConnectionError("the server is gone")

    def on_run(self, config: Any, run_dir: Path) -> None:
        """May raise."""
        self._fail("on_run")

    def on_row(self, row: Any) -> None:
        """May raise."""
        self._fail("on_row")

    def on_finish(self, metrics: Any) -> None:
        """May raise."""
        self._fail("on_finish")


class Noise(Dataset[Any]):
    """Items of a user's own."""

    def __len__(self) -> int:
        return 160

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(i)
        return torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8), i % 4


class Own(Wrapped):
    """A torch `Dataset` by a name, for the command line."""

    name = "own"
    Config = Schema

    def __init__(self, config: Any, image_size: int | None = None) -> None:
        super().__init__(Noise(), image_size=image_size)


def spoilt(out: dict[str, torch.Tensor], method: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The terms of a step with a loss that is no number, or with gradients that are none."""
    if FAULT == "loss":
        return {**out, "loss": out["loss"] * float(DETAIL)}
    next(method.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    return out


def limit_memory(more: int) -> None:
    """From now on the process may map so many bytes more than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))


def full_memory(*_: Any) -> None:
    """A step that needs more memory than there is."""
    limit_memory(2**24)
    torch.empty(2**30, dtype=torch.uint8)


def set_clock_back(*_: Any) -> None:
    """The clock of the machine goes back by a year."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - YEAR.total_seconds()
    time.time_ns = lambda: now_ns() - int(YEAR.total_seconds() * 1e9)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - YEAR

    rundir.datetime = Earlier  # type: ignore[misc]


def refuse_to_flush(*_: Any) -> None:
    """What is flushed to the disk meets an error from now on."""
    number = getattr(errno, DETAIL)

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    os.fsync = fsync


IN_STEP: dict[str, Callable[..., None]] = {
    "gate": gate,
    "memory": full_memory,
    "clock": set_clock_back,
    "fsync": refuse_to_flush,
}


def in_step(name: str) -> None:
    """Let the fault happen in step STEP of the method."""
    method: Any = installed().get("method", name)
    original, micro = method.step, int(os.environ.get("FAULT_MICRO", "0"))
    count = 0

    def step(self: Any, batch: Any, now: Any) -> Any:
        nonlocal count
        due = now.step + 1 == STEP and count == micro
        count = count + 1 if now.step + 1 == STEP else 0
        if due and FAULT in IN_STEP:
            IN_STEP[FAULT]()
        out = original(self, batch, now)
        return spoilt(out, self) if due and FAULT in ("loss", "gradient") else out

    method.step = step


def before(place: Any, name: str, act: Callable[..., None]) -> None:
    """Do something before a function is called."""
    original = getattr(place, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        act(*args)
        return original(*args, **kwargs)

    setattr(place, name, called)


def vanish_once(found: Any) -> None:
    """A file goes between listing and reading."""
    Path(DETAIL).unlink(missing_ok=True)


@hookimpl
def akssl_register(registry: Any) -> None:
    """Add the logger and the data, and prepare what happens before a run starts."""
    registry.add(Bad)
    registry.add(Own)
    if FAULT == "vanish":
        listed = places.scan

        def scan(root: Path, *suffixes: Any) -> Any:
            found = listed(root, *suffixes)
            vanish_once(found)
            return found

        places.scan = scan
    if FAULT == "prepare":
        before(TensorStream, "finish", gate)


@hookimpl
def akssl_run_started(config: Any) -> None:
    """Arm the fault, or raise where that is the fault."""
    if FAULT == "hook":
        raise ConnectionError("the server is gone")
    if FAULT == "started":
        gate()
    if FAULT == "export":
        before(training, "export_backbone", gate)
    if FAULT == "limit":
        limit_memory(int(DETAIL))
    if FAULT == "save":  # the second file of a checkpoint, while training goes on
        before(checkpoints, "write_flushed", lambda path, data: gate() if path.match(f"*{STEP}.part/opt*") else None)
    in_step(config["method"]["name"])


@hookimpl
def akssl_run_finished() -> None:
    """Raise where that is the fault."""
    if FAULT == "hook":
        raise ConnectionError("the server is gone")

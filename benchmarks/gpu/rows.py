"""What a row of the tables is: a check that runs on its own, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class NotHere(Exception):
    """The machine lacks what a row needs; the text says what."""


@dataclass(frozen=True)
class Setup:
    """Where and how long rows run."""

    device: torch.device
    short: bool
    """Small networks and few steps: that every row runs, not what it finds."""
    out: Path
    """For files that stay."""
    scratch: Path
    """For files that go."""
    cifar: Path | None
    """CIFAR-10 as an archive of JPEG files, `train/CLASS/NAME.jpg`."""

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def pick(self, long: T, short: T) -> T:
        """One of two values, by the form."""
        return short if self.short else long

    def mark(self, value: float | None) -> float | None:
        """A mark of speed, which the short form need not pass."""
        return None if self.short else value

    @property
    def host(self) -> Setup:
        """The same on the CPU."""
        return replace(self, device=torch.device("cpu"))

    def need_cuda(self) -> None:
        """Raises NotHere on a CPU."""
        if not self.cuda:
            raise NotHere("needs a GPU")


@dataclass(frozen=True)
class Found:
    """One line of a table."""

    what: str
    found: Any
    wanted: str = ""
    passed: bool | None = None
    """None: measured, without a mark to pass."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """More of what was found, for the JSON file."""


def bounded(
    what: str, value: float, *, least: float | None = None, most: float | None = None, unit: str = "", **numbers: Any
) -> Found:
    """A number with its mark: `least`, `most` or both of them. NaN passes neither."""
    marks = [f"{sign} {mark:g}" for sign, mark in ((">=", least), ("<=", most)) if mark is not None]
    passed = (least is None or value >= least) and (most is None or value <= most)
    return Found(what, f"{value:.4g} {unit}".strip(), " and ".join(marks), passed if marks else None, numbers)


@dataclass(frozen=True)
class Row:
    """One check. What it raises is its own end alone."""

    name: str
    check: Callable[[Setup], Iterator[Found]]
    limit: float = 60
    """Seconds."""
    short: bool = True
    """Whether it belongs to the short form."""


class Rows(list[Row]):
    """The rows of a part in the order in which they run, the most wanted first."""

    def add(self, name: str, **facts: Any) -> Callable[[Callable[[Setup], Iterator[Found]]], None]:
        """Add a function as a row."""
        return lambda check: self.append(Row(name, check, **facts))

"""The table of a sweep: mean and deviation over seeds of everything that was measured."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import describe
from ..reporting.comparison import COSTS, Summary
from ..reporting.html import Html, section, tag
from ..reporting.html import table as html_table
from ..reporting.svg import short
from .grid import Combination

FORMAT = "akssl-sweep-1"
FIRST = "knn_top1"  # what the table is sorted by
LEFT_OUT = ("images_per_s",)  # it follows from images and seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over seeds: the mean, and the standard deviation (of a sample) where there are two or more."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds that have the number."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Over the same; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """`61.4 ± 1.2`, with as many decimals as the deviation gives sense to."""
        if self.deviation is None:
            return short(self.mean)
        if self.deviation == 0:
            return f"{short(self.mean)} ± 0"
        decimals = max(0, 1 - math.floor(math.log10(self.deviation)))
        return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"


@dataclass(frozen=True, slots=True)
class Row:
    """A method with one choice of settings, over its seeds."""

    method: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]  # of the runs that have ended
    metrics: Mapping[str, Spread]
    verdicts: Mapping[str, int]  # in short, and how many runs have each

    @property
    def rank(self) -> tuple[bool, float]:
        """The best first; what was not measured last."""
        return (False, -self.metrics[FIRST].mean) if FIRST in self.metrics else (True, 0.0)

    def record(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        numbers = {
            name: {"mean": spread.mean, "std": spread.deviation, "values": list(spread.values)}
            for name, spread in self.metrics.items()
        }
        return {
            "method": self.method, "settings": dict(self.settings), "seeds": list(self.seeds), "metrics": numbers,
            "verdicts": dict(self.verdicts),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """The results of a sweep: `rows`, the best first, and `failed`, why by the name of the run folder."""

    out: Path
    """The folder of the sweep."""
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    runs: tuple[Path, ...]
    """The folders of the runs that have ended."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Of "all" methods those that need more than was given: why, by name."""

    @property
    def columns(self) -> list[str]:
        """The head of the table."""
        varied = dict.fromkeys(path for row in self.rows for path in row.settings)
        return ["method", *varied, "runs", *(COSTS.get(name, name) for name in self._numbers), "verdict"]

    @property
    def cells(self) -> list[list[str]]:
        """The lines of the table."""
        varied = dict.fromkeys(path for row in self.rows for path in row.settings)
        return [
            [
                row.method,
                *(json.dumps(row.settings[path]) if path in row.settings else "-" for path in varied),
                str(len(row.seeds)),
                *(str(row.metrics[name]) if name in row.metrics else "-" for name in self._numbers),
                _verdict(row.verdicts),
            ]
            for row in self.rows
        ]

    @property
    def _numbers(self) -> list[str]:
        return sorted(dict.fromkeys(name for row in self.rows for name in row.metrics), key=lambda name: name != FIRST)

    @property
    def text(self) -> str:
        """The table in columns, what has failed or was left out, and where it is written: what `akssl sweep` prints."""
        return "\n".join([describe.table(self.columns, self.cells), *self._remarks(), "", self.written])

    @property
    def written(self) -> str:
        """Where the results are."""
        return f"Written to {self.out}: results.md, results.json, compare.html"

    @property
    def markdown(self) -> str:
        """The same in Markdown."""
        return "\n".join([describe.markdown(self.columns, self.cells), *self._remarks()]) + "\n"

    def record(self) -> dict[str, Any]:
        """Everything as plain values, fit for JSON."""
        rows, runs = [row.record() for row in self.rows], [path.name for path in self.runs]
        return {
            "format": FORMAT, "rows": rows, "failed": dict(self.failed), "runs": runs, "left_out": dict(self.left_out),
        }  # fmt: skip

    def section(self) -> Html:
        """The table for the page."""
        shown = html_table(self.columns, self.cells, caption="Mean ± standard deviation over seeds", kind="numbers")
        told = [tag("ul", *(tag("li", line) for line in lines))] if (lines := self._remarks()[1:]) else []
        return section("Sweep", shown, *told)

    def _remarks(self) -> list[str]:
        of = {"failed": self.failed, "left out": self.left_out}
        lines = [f"{what}: {name}: {why}" for what, told in of.items() for name, why in told.items()]
        return ["", *lines] if lines else []


def row_of(members: Sequence[tuple[Combination, Summary]]) -> Row:
    """The row of the runs that differ by their seed alone."""
    first = members[0][0]
    values: dict[str, list[float]] = {}
    for _, run in members:
        measured = {name: one.value for name, one in run.metrics.items()}
        for name, value in {**measured, **run.cost}.items():
            if math.isfinite(value) and name not in LEFT_OUT:
                values.setdefault(name, []).append(value)
    return Row(
        method=first.method,
        settings=first.settings,
        seeds=tuple(one.seed for one, _ in members),
        metrics={name: Spread(tuple(of)) for name, of in values.items()},
        verdicts=Counter(run.verdict for _, run in members),
    )


def _verdict(verdicts: Mapping[str, int]) -> str:
    """`healthy, learned`, or `healthy, learned (2); collapsed (1)`."""
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return "; ".join(f"{verdict} ({count})" for verdict, count in verdicts.items())

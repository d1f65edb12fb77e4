"""Runs beside each other: the settings in which they differ, what came out, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import describe
from ...errors import ConfigError, RunDirError
from ...rundir.files import write_atomic
from ..files import text_of
from .page import comparison_page, number, score_table
from .summary import COSTS, Measured, Summary

__all__ = ["COSTS", "Compared", "Measured", "Summary", "compare", "compared"]

WIDEST = 40  # characters of a setting's value in a table of text


@dataclass(frozen=True, slots=True)
class Compared:
    """Some runs, and `settings`: the values of those that differ, by path and in the order of the runs."""

    runs: tuple[Summary, ...]
    """One summary a run, in the order of the folders."""
    settings: Mapping[str, tuple[Any, ...]]
    file: Path | None = None
    """The page, where one was written."""

    @property
    def text(self) -> str:
        """Three tables, as `akssl compare` prints them: settings that differ, final numbers, cost."""
        names = [run.name for run in self.runs]
        chosen = [[path, *(_narrow(text_of(value)) for value in values)] for path, values in self.settings.items()]
        costs = [[run.name, *(number(run.cost.get(key)) for key in COSTS)] for run in self.runs]
        parts = [describe.table(["setting", *names], chosen) if chosen else "All settings are the same."]
        parts += [describe.table(*score_table(self.runs))]
        parts += [describe.table(["run", *COSTS.values()], costs), *([f"The page: {self.file}"] if self.file else [])]
        return "\n\n".join(parts)

    def record(self) -> dict[str, Any]:
        """Everything as plain values, fit for JSON."""
        return {
            "runs": [run.record() for run in self.runs],
            "settings": {path: list(values) for path, values in self.settings.items()},
        }

    def page(self, title: str = "Comparison of runs") -> str:
        """Everything and the curves as one self-contained HTML document."""
        return comparison_page(self.runs, self.settings, title=title)


def compare(*run_dirs: str | Path, out: str | Path | None = None) -> Compared:
    """Put runs beside each other; with `out`, as one HTML page too.

    Numbers carry a 95 % interval where `akssl eval` has left one in the run's `evaluation.json`.

    Raises:
        ConfigError: no runs are named.
        RunDirError: a folder holds no run, or the page cannot be written there.
    """
    if not run_dirs:
        raise ConfigError("compare: expected the folders of two or more runs, got none.")
    if out is not None and not Path(out).parent.is_dir():
        raise RunDirError(f"out: the folder {Path(out).parent} does not exist. Make it, or choose another.")
    found = compared(list(dict.fromkeys(Path(path) for path in run_dirs)))
    if out is not None:
        write_atomic(Path(out), found.page().encode())
        found = replace(found, file=Path(out))
    return found


def compared(paths: Sequence[Path]) -> Compared:
    """The runs in these folders, named by their folders as far as that tells them apart."""
    short = [path.resolve().name for path in paths]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    runs = tuple(Summary.read(path, name) for path, name in zip(paths, names, strict=True))
    known = dict.fromkeys(path for run in runs for path in run.settings)
    values = {path: tuple(run.settings.get(path) for run in runs) for path in known}
    return Compared(runs, {path: of for path, of in values.items() if any(value != of[0] for value in of)})


def _narrow(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."

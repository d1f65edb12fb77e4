"""The report of a run that has ended, written again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..rundir.folder import RunDir
from . import render


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written."""

    path: Path

    @property
    def text(self) -> str:
        """Where it is, as `akssl report` prints it."""
        return str(self.path)


def report(run_dir: str | Path) -> Report:
    """Write `report.html` of a run again from the files of its folder.

    Raises:
        AksslError: the folder holds no run, or a file of it is damaged.
    """
    folder = RunDir.open(Path(run_dir))
    return Report(folder.write_text("report.html", render(folder.path)))

"""Where benchmarks write: a JSON file with the facts of the machine, and the same rows as a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from akssl_core.config import describe

RESULTS = Path(__file__).parent / "results"


def facts(**more: Any) -> dict[str, Any]:
    """What a figure depends on."""
    return {"torch": torch.__version__, **more, "cpu": cpu(), "threads": torch.get_num_threads()}


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def write(name: str, rows: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """`results/NAME.json` and `.md`; a row without one of the columns has a dash there."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"facts": machine, "rows": rows}, indent=2) + "\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[str(row.get(column, "-")) for column in columns] for row in rows]
    (RESULTS / f"{name}.md").write_text(describe.markdown(columns, lines) + "\n")


def known(file: Path) -> list[dict[str, Any]]:
    """The rows that an earlier call has written; none where there is no such file."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


class Kept:
    """Rows of earlier calls and of this one, a line of JSON each in a file; in memory alone where there is none."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file and file.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row that has these values, if there is one."""
        return next((row for row in self.rows if all(row[name] == value for name, value in job.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more."""
        self.rows.append(row)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")

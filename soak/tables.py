"""Where the soak writes: a JSON file with the facts of the machine, and the same rows as a table."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from akssl_core.config import describe

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS, **facts: Any) -> None:
    """`NAME.json` and `NAME.md` in a folder; the table tells how many a list holds, and has no column `where`."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "cpu": _cpu(), **facts}
    (folder / f"{name}.json").write_text(json.dumps({"facts": machine, "rows": rows}, indent=2) + "\n")
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "where"))
    lines = [[_cell(row.get(column, "-")) for column in columns] for row in rows]
    (folder / f"{name}.md").write_text(describe.markdown(columns, lines) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "-"
    return str(len(value)) if isinstance(value, list) else str(value)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()

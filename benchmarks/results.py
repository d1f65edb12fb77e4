"""Where benchmarks write: a JSON file with the facts of the machine, and the same rows as a table."""

from __future__ import annotations

import json
import platform
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

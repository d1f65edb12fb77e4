"""Peak resident memory of training, ours against lightly's examples: ResNet-18, same images, sizes, views and batch.

Every figure is of a process of its own that trains for a few steps: the largest resident size of the main process, and
for lightly also what it takes with its two loader workers, pages that they share counted once; ours has none. Needs
`pip install -e .[bench]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from plans import plan_for
from results import facts, write
from throughput import METHODS, lightly, ours, pil_views

SIDES = ("ours", "ours fp32", "lightly")
LOOK = 0.05  # seconds between two looks at all processes


def train(method: str, side: str, size: int, batch: int) -> None:
    """Three steps in this process."""
    count = 3 * batch
    data = {"name": "shapes", "size": count}
    if side == "lightly":
        plan = plan_for(method, data, "fp32", batch, size)
        epoch = lightly(method, plan, pil_views(plan.images.fetch(range(count)).images), batch)
    else:
        epoch = ours(method, data, "fp32" if side == "ours fp32" else "auto", batch, size)
    epoch(lambda: None)


def peak(method: str, side: str, size: int, batch: int) -> tuple[int, int]:
    """MB of a process that trains: its own largest, and the largest seen of it and its children together."""
    command = [sys.executable, __file__, method, "--child", side, "--size", str(size), "--batch", str(batch)]
    process, together = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0
    while process.poll() is None:
        together = max(together, proportional(process.pid))
        time.sleep(LOOK)
    if process.returncode or process.stdout is None:
        raise SystemExit(f"{' '.join(command)} failed")
    return int(process.stdout.read().splitlines()[-1]), together // 1024


def proportional(pid: int) -> int:
    """Kilobytes of a process and its children, each page divided by how many share it; 0 for those that are gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own + sum(proportional(int(child)) for child in children)


def child(arguments: argparse.Namespace) -> None:
    """What each process of the benchmark does."""
    warnings.simplefilter("ignore")
    train(arguments.methods[0], arguments.child, arguments.size, arguments.batch)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    rows = []
    for method in arguments.methods:
        row: dict[str, Any] = {"method": method, "size": arguments.size, "batch": arguments.batch}
        for side in SIDES:
            row[f"{side} MB"], together = peak(method, side, arguments.size, arguments.batch)
        row["lightly with workers MB"] = together  # lightly is the last side
        row["ours / lightly"] = round(row["ours MB"] / row["lightly MB"], 2)
        row["ours fp32 / lightly"] = round(row["ours fp32 MB"] / row["lightly MB"], 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    write("memory", rows, facts())
    return None


if __name__ == "__main__":
    main()

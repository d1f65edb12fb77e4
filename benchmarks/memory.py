"""Peak resident memory of training, ours against lightly's examples: ResNet-18, same images, sizes, views and batch.

Every figure is of a process of its own that trains for a few steps. Of lightly the main process alone is counted,
without its two loader workers; ours has none. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import warnings
from typing import Any

from plans import plan_for
from results import facts, write
from throughput import METHODS, lightly, ours, pil_views

SIDES = ("ours", "ours fp32", "lightly")


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


def peak(method: str, side: str, size: int, batch: int) -> int:
    """MB of a process that trains."""
    command = [sys.executable, __file__, method, "--child", side, "--size", str(size), "--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


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
            row[f"{side} MB"] = peak(method, side, arguments.size, arguments.batch)
        row["ours / lightly"] = round(row["ours MB"] / row["lightly MB"], 2)
        row["ours fp32 / lightly"] = round(row["ours fp32 MB"] / row["lightly MB"], 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    write("memory", rows, facts())
    return None


if __name__ == "__main__":
    main()

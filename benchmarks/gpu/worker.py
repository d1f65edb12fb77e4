"""Runs the rows of a part, one after the other, and tells of each on its standard output; `supervise.py` listens."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from results import facts
from rows import NotHere, Row, Setup

BROKEN = 9  # exit code where the device is of no more use to this process


def chosen(part: str, setup: Setup, wanted: str) -> list[Row]:
    """The rows of a part that are asked for; a row that is named runs in either form."""
    rows: list[Row] = importlib.import_module(part).ROWS
    return [row for row in rows if (wanted in row.name if wanted else row.short or not setup.short)]


def machine(setup: Setup) -> dict[str, Any]:
    """What the figures depend on."""
    known = facts(torchvision=version("torchvision"), python=sys.version.split()[0], cores=os.cpu_count())
    if not setup.cuda:
        return known
    properties = torch.cuda.get_device_properties(setup.device)
    return known | {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def lines(row: Row, setup: Setup) -> Any:
    """What a row finds, line by line; an error is its last one."""
    line: dict[str, Any]
    try:
        for found in row.check(setup):
            verdict = {True: "pass", False: "fail", None: "measured"}[found.passed]
            shown = {"what": found.what, "found": found.found, "wanted": found.wanted}
            yield {"verdict": verdict, **shown, "numbers": found.numbers}
        if setup.cuda:
            torch.cuda.synchronize()  # an error of the device belongs to the row that caused it
    except NotHere as reason:
        yield {"verdict": "not here", "what": "", "found": str(reason)}
    except Exception as error:
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        line = {"verdict": "crashed", "what": "", "found": text[:300]}
        yield line | {"numbers": {"traceback": traceback.format_exc()[-4000:]}}


def usable(setup: Setup) -> bool:
    """Whether the device still computes; an error of a kernel leaves it useless to its process."""
    try:
        gc.collect()
        if setup.cuda:
            torch.cuda.empty_cache()
            torch.ones(8, device=setup.device).sum().item()
    except RuntimeError:
        return False
    return True


def main() -> None:
    """Run the rows from a number on."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anybody else prints goes to the log

    def tell(**message: Any) -> None:
        print(json.dumps(message, default=str), file=channel, flush=True)

    parser = argparse.ArgumentParser()
    for name in ("part", "first", "device", "out", "scratch", "rows", "cifar"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    cifar = Path(asked.cifar) if asked.cifar else None
    setup = Setup(torch.device(asked.device), asked.short, Path(asked.out), Path(asked.scratch), cifar)
    rows = chosen(asked.part, setup, asked.rows)
    tell(facts=machine(setup), rows=[[row.name, row.limit] for row in rows])
    for number, row in list(enumerate(rows))[int(asked.first) :]:
        print(f"== {row.name}", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        tell(begin=number)
        started = time.perf_counter()
        for line in lines(row, setup):
            tell(line=line)
        tell(end=number, seconds=round(time.perf_counter() - started, 1))
        if not usable(setup):
            sys.exit(BROKEN)


if __name__ == "__main__":
    main()

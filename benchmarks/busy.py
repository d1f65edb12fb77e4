"""How much of its rate a training loop keeps while other processes are busy on the machine: ours and lightly's.

Ours computes with the threads that a run would choose at that moment, and with all of them, under several ways in which
OpenMP's threads wait for each other. Each way is a process of its own, since OpenMP reads it when torch is imported.
All take turns: an epoch of a few batches each, on the idle machine and beside one and two busy processes. The rates are
medians over the turns. Needs an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from plans import plan_for
from results import facts, write
from throughput import Epoch, lightly, ours, pil_views

from akssl_core.training.hardware import choose_threads

WAITING: dict[str, dict[str, str]] = {
    "torch's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "1000 spins": {"GOMP_SPINCOUNT": "1000"},
    "10000 spins": {"GOMP_SPINCOUNT": "10000"},
    "100000 spins": {"GOMP_SPINCOUNT": "100000"},
}
LOADS = (0, 1, 2)  # busy processes
OPENMP = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}


# -- one process that trains ----------------------------------------------------------------------
def serve(side: str, arguments: argparse.Namespace) -> None:
    """Train for an epoch whenever a line says with which threads; answer with its rate."""
    epoch, every = loop(side, arguments), torch.get_num_threads()
    for line in sys.stdin:
        torch.set_num_threads(every)
        if line.strip() == "chosen":
            torch.set_num_threads(choose_threads().value)
        ends: list[float] = []
        epoch(lambda ends=ends: ends.append(time.perf_counter()))  # type: ignore[misc]
        rate = (len(ends) - 1) * arguments.batch / (ends[-1] - ends[0])
        print(json.dumps({"rate": rate, "threads": torch.get_num_threads()}), flush=True)


def loop(side: str, arguments: argparse.Namespace) -> Epoch:
    """The training loop of a side over drawn images in memory."""
    method, batch, size = arguments.method, arguments.batch, arguments.size
    data = {"name": "shapes", "size": (arguments.steps + 1) * batch}
    if side == "ours":
        return ours(method, data, arguments.precision, batch, size)
    plan = plan_for(method, data, "fp32", batch, size)
    return lightly(method, plan, pil_views(plan.images.fetch(range(data["size"])).images), batch)


class Side:
    """The process of a side; it does nothing until it is asked for a rate."""

    def __init__(self, name: str, waiting: str, threads: list[str]) -> None:
        self.name, self.waiting, self.threads = name, waiting, threads
        plain = {key: value for key, value in os.environ.items() if key not in OPENMP}
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--serve", name], env={**plain, **WAITING[waiting]}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def rate(self, threads: str) -> dict[str, Any]:
        """Images a second in an epoch with these threads, and how many they were."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(threads, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        """Let the process end."""
        self.process.communicate()


# -- the table ------------------------------------------------------------------------------------
@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(sides: list[Side], repeats: int) -> list[dict[str, Any]]:
    """A row for each side and its threads, after a first epoch of each."""
    found: dict[tuple[Side, str, int], list[dict[str, Any]]] = {}
    for side in sides:
        side.rate("all")
    for _ in range(repeats):
        for load in LOADS:
            with busy(load):
                for side in sides:
                    for threads in side.threads:
                        found.setdefault((side, threads, load), []).append(side.rate(threads))
    return [row(found, side, threads) for side in sides for threads in side.threads]


def row(found: dict[tuple[Side, str, int], list[dict[str, Any]]], side: Side, threads: str) -> dict[str, Any]:
    """Rates, and shares of the idle one, of one side with these threads."""
    turns = [found[side, threads, load] for load in LOADS]
    idle, *others = (statistics.median(one["rate"] for one in turn) for turn in turns)
    taken = ["/".join(map(str, sorted({one["threads"] for one in turn}))) for turn in turns]
    return {
        "side": side.name,
        "waiting": side.waiting,
        "threads": f"{threads} ({', '.join(taken)})",
        "images/s": round(idle, 1),
        **{f"beside {load}": round(rate, 1) for load, rate in zip(LOADS[1:], others, strict=True)},
        **{f"kept beside {load}": round(rate / idle, 2) for load, rate in zip(LOADS[1:], others, strict=True)},
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", nargs="?", default="simclr")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="batches an epoch that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--waiting", nargs="+", default=list(WAITING), choices=WAITING)
    parser.add_argument("--serve", choices=("ours", "lightly"), help=argparse.SUPPRESS)
    parser.add_argument("--out", default="busy")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.serve:
        serve(arguments.serve, arguments)
        return
    with ExitStack() as stack:
        sides = [Side("ours", waiting, ["chosen", "all"]) for waiting in arguments.waiting]
        if find_spec("lightly") is not None:
            sides.append(Side("lightly", "torch's own", ["all"]))
        for side in sides:
            stack.callback(side.end)
        rows = measure(sides, arguments.repeats)
    print("\n".join(json.dumps(one) for one in rows), flush=True)
    write(arguments.out, rows, facts(repeats=arguments.repeats, steps=arguments.steps, cores=os.cpu_count()))


if __name__ == "__main__":
    main()

"""Runs that are killed again and again and resumed to their end, compared bit for bit with runs that were not.

Half of the kills come after a random time, half at a random file operation, some with half of the bytes written; a few
signals that a run answers with a checkpoint are mixed in. `--every` kills once at each file operation of a short run.
Works where processes can be forked and /proc tells of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from compare import Differences, differences, unreadable
from tables import RESULTS, write
from trap import Trap

import akssl_core

SMALL = {"hidden_dim": 32, "out_dim": 16}
METHODS: dict[str, dict[str, Any]] = {
    "simsiam": {**SMALL, "predictor_dim": 16},
    "swav": {**SMALL, "prototypes": 32, "queue_size": 64, "queue_from_epoch": 0.0},
    "mocov2": {**SMALL, "queue_size": 64},
    "dino": {**SMALL, "out_dim": 64},
    "dinov2": {"hidden_dim": 32, "bottleneck_dim": 16, "out_dim": 64, "patch_out_dim": 64},
    "ibot": {"hidden_dim": 32, "bottleneck_dim": 16, "out_dim": 64},
    "ijepa": {"targets": 3, "predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}
CONVOLUTIONS = {"name": "resnet_tiny", "widths": [8, 8, 16, 16]}
TOKENS = {"name": "vit_micro", "patch_size": 4, "width": 16, "heads": 2}
STOPPED = 3  # exit code of a process that a signal has stopped


def settings(method: str, steps: int, seed: int) -> dict[str, Any]:
    """A tiny run, sixteen steps an epoch, with a row at every second step and a checkpoint at every third."""
    return {
        "method": {"name": method, **METHODS[method]},
        "data": {"name": "shapes", "size": 256, "test_size": 64},
        "backbone": TOKENS if method in ("dinov2", "ibot", "ijepa", "mae") else CONVOLUTIONS,
        "image_size": 16,
        "batch_size": 16,
        "epochs": -(-steps // 16),
        "seed": seed,
        "precision": "fp32",
        "device": "cpu",
        "train": {"steps": steps, "checkpoint_every": 3, "log_every": 2},
        "evaluate": {"every": 1},
    }


# -- one process ----------------------------------------------------------------------------------
@dataclass
class Child:
    """A forked process that trains from where a folder stands to the end, if it lives."""

    folder: Path
    table: dict[str, Any]
    at: int = 0  # the file operation at which it kills itself
    seed: int = 0

    def __post_init__(self) -> None:
        self.news, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(end)
        os.close(end)

    def wait(self) -> tuple[int, str]:
        """Its exit code (minus the signal that ended it), and what it said before."""
        with open(self.news, encoding="utf-8") as said:
            text = said.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text

    def _live(self, news: int) -> NoReturn:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            trap = Trap(self.folder, self.at, random.Random(self.seed), lambda text: _say(news, text))
            trap.arm()
            train(self.folder, self.table)
            _say(news, str(trap.count))
            code = 0
        except KeyboardInterrupt:
            code = STOPPED
        except BaseException:
            _say(news, traceback.format_exc())
        finally:
            os._exit(code)


def train(folder: Path, table: dict[str, Any]) -> None:
    """Begin a run, or go on with what a folder holds."""
    warnings.simplefilter("ignore")
    if (folder / "config.yaml").exists():
        akssl_core.resume(folder)
    else:
        akssl_core.run(config=table, out=folder)


def _say(news: int, text: str) -> None:
    os.write(news, text.encode())


# -- one method -----------------------------------------------------------------------------------
@dataclass
class Tally:
    """What happened to the runs of one method."""

    method: str
    steps: int = 0
    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    compared: int = 0
    found: Differences = field(default_factory=Differences)
    unreadable: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Processes that were ended with SIGKILL."""
        return self.hits["random time"] + self.hits["file operation"]

    def row(self) -> dict[str, Any]:
        """One line of the table."""
        return {
            "method": self.method,
            "runs": self.runs,
            "steps": self.steps,
            "kills": self.kills,
            **{name: self.hits[name] for name in ("random time", "file operation", "signals")},
            "operations": self._by_operation(),
            "where": dict(self.operations.most_common()),
            "resumes": self.resumes,
            "tensors": self.compared,
            "differing tensors": self.found.tensors,
            "differing rows": self.found.rows,
            "differing numbers": self.found.numbers,
            "missing files": self.found.files,
            "unreadable folders": self.unreadable,
        }

    def _by_operation(self) -> dict[str, int]:
        """How many kills fell into each kind of file operation."""
        counts: Counter[str] = Counter()
        for where, count in self.operations.items():
            counts[where.partition(" ")[0]] += count
        return dict(counts.most_common())

    def good(self) -> bool:
        """Nothing was lost."""
        return not self.found and not self.unreadable

    def add(self, found: Differences, steps: int) -> None:
        """A run has ended and was compared."""
        self.runs, self.steps, self.compared = self.runs + 1, self.steps + steps, found.compared
        for name in ("tensors", "rows", "numbers", "files"):
            getattr(self.found, name).extend(getattr(found, name))


def planned(kills: int, dice: random.Random) -> list[str]:
    """The kinds of the blows, in a random order."""
    signals = ["SIGTERM" if i % 2 else "SIGINT" for i in range(max(1, kills // 8))]
    blows = ["time"] * (kills // 2) + ["operation"] * (kills - kills // 2) + signals
    dice.shuffle(blows)
    return blows


def batter(method: str, kills: int, steps: int, seed: int, scratch: Path) -> Tally:
    """Kill runs of a method until there were enough kills; each run is resumed to its end and compared."""
    tally, dice = Tally(method), random.Random(f"{method} {seed}")
    blows = planned(kills, dice)
    while blows or not tally.runs:
        table = settings(method, steps, seed + tally.runs)
        whole, broken = scratch / f"{method}-{tally.runs}-whole", scratch / f"{method}-{tally.runs}-broken"
        pace = Pace.of(whole, table)
        while _strike(broken, table, blows, pace, dice, tally):
            if problem := unreadable(broken):
                tally.unreadable.append(problem)
        if tally.unreadable:
            break
        tally.add(differences(whole, broken), pace.steps)
    return tally


@dataclass
class Pace:
    """How long an unbroken run takes, so that blows fall where there is something to hit."""

    steps: int
    step: float  # seconds
    rest: float  # seconds before and after all steps

    @classmethod
    def of(cls, folder: Path, table: dict[str, Any]) -> Pace:
        """That of an unbroken run, which this is."""
        started = time.perf_counter()
        code, said = Child(folder, table).wait()
        if code:
            raise SystemExit(f"the unbroken run failed: {said}")
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps, training = rows[-1]["step"], sum(row["seconds"] for row in rows)
        return cls(steps, training / steps, max(seconds - training, 0.0))

    def draw(self, dice: random.Random) -> float:
        """A moment from the start of a process to some twenty steps later."""
        return dice.uniform(0, 0.7 * self.rest + 20 * self.step)


def _strike(
    folder: Path, table: dict[str, Any], blows: list[str], pace: Pace, dice: random.Random, tally: Tally
) -> bool:
    """Start one process and hit it, where a blow is left; whether the run is still to be resumed."""
    blow = blows[-1] if blows else "none"
    tally.resumes += (folder / "config.yaml").exists()
    child = Child(folder, table, at=dice.randint(1, 120) if blow == "operation" else 0, seed=dice.getrandbits(30))
    number = {"time": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(blow)
    if number is not None:
        time.sleep(pace.draw(dice))
        os.kill(child.pid, number)
    code, said = child.wait()
    if code == 0:
        return False  # the run has ended before the blow
    if code not in (-signal.SIGKILL, -signal.SIGTERM, STOPPED):
        tally.unreadable.append(said.strip().splitlines()[-1] if said else f"exit code {code}")
        return False
    blows.pop()
    tally.hits[{"time": "random time", "operation": "file operation"}.get(blow, "signals")] += 1
    if blow == "operation":
        tally.operations[said] += 1
    return True


def every(method: str, seed: int, scratch: Path) -> Tally:
    """A run of a few steps, killed once at each of its file operations in turn."""
    tally, table = Tally(f"{method}, every operation"), settings(method, 7, seed)
    whole = scratch / "every-whole"
    code, said = Child(whole, table).wait()
    if code:
        raise SystemExit(f"the unbroken run failed: {said}")
    for at in range(1, int(said) + 1):
        folder = scratch / f"every-{at}"
        code, said = Child(folder, table, at=at, seed=seed + at).wait()
        assert code == -signal.SIGKILL, (code, said)
        tally.hits["file operation"] += 1
        tally.operations[said] += 1
        problem = unreadable(folder)
        tally.resumes += (folder / "config.yaml").exists()
        code, failure = Child(folder, table).wait()
        if problem or code:
            tally.unreadable.append(f"{said}: {problem or failure.strip().splitlines()[-1]}")
        else:
            found = differences(whole, folder)
            tally.add(found, 7)
        shutil.rmtree(folder)
    return tally


def main() -> int:
    """Kill, compare, print and write the results; the exit code tells whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=150, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true", help="also kill once at each file operation of a short run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no thread may be lost in a fork
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in arguments.methods:
            done.append(batter(method, arguments.kills, arguments.steps, arguments.seed, Path(scratch)))
            print(json.dumps(done[-1].row()), flush=True)
        if arguments.every:
            done.append(every(arguments.methods[0], arguments.seed, Path(scratch)))
            print(json.dumps(done[-1].row()), flush=True)
    write("kills", [tally.row() for tally in done], arguments.out)
    return int(not all(tally.good() for tally in done))


if __name__ == "__main__":
    sys.exit(main())

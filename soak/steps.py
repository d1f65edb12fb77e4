"""A tiny model trained for many steps in a fresh process: memory, file handles, threads, and every row in its place.

Once from a tensor in memory and once from a folder of small PNG files, which a thread decodes. Reads /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from tables import RESULTS, write

import akssl_core

PATHS = ("tensors", "folder")
COUNT, BATCH = 160, 8  # twenty steps an epoch, so that each sample is taken at the end of one, with nothing in flight
LOG, SAVE, SAMPLE = 10, 500, 100  # steps between rows, checkpoints and samples
LEAK = 500  # KiB of the C library, or objects of Python, in 1000 steps: less than one that is forgotten each other step


class Sampler(akssl_core.Logger):
    """What the process holds, at every hundredth step."""

    name = "soak_sampler"

    def on_row(self, row: Mapping[str, Any]) -> None:
        """One line for each sample, to standard output."""
        if row["step"] % SAMPLE == 0:
            print(json.dumps({"step": row["step"], **held()}), flush=True)


class SoakPlugin:
    """Makes the sampler known."""

    @akssl_core.hookimpl
    def akssl_register(self, registry: akssl_core.Registry) -> None:
        """Add it."""
        registry.add(Sampler)


def held() -> dict[str, int]:
    """Resident memory and what the C library has given out in KiB, objects of Python, file handles, threads.

    Resident memory grows by arenas of 1 MiB, whose moment is chance; the other two are exact.
    """
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "allocated": allocated(),
        "objects": sys.getallocatedblocks(),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }


class Mallinfo(ctypes.Structure):
    """What glibc's `mallinfo2` tells, in bytes."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def allocated() -> int:
    """KiB that the C library has given out and not got back, in its arenas and in mappings of their own."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Mallinfo
    found = ask()
    return int(found.uordblks + found.hblkhd) // 1024


# -- the process that trains ----------------------------------------------------------------------
def pictures() -> torch.Tensor:
    """Small images (N, 3, 16, 16) uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator, dtype=torch.uint8)


def data(kind: str, scratch: Path) -> Any:
    """The same images as a tensor or as a folder of files."""
    if kind == "tensors":
        return pictures()
    folder = scratch / "images"
    folder.mkdir()
    for i, pixels in enumerate(pictures()):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def child(kind: str, steps: int, out: Path) -> None:
    """Train in this process; the samples go to standard output."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    plugins = akssl_core.Plugins()
    plugins.register(SoakPlugin(), "soak")
    akssl_core.run(
        "simsiam",
        data=data(kind, out.parent),
        options={"hidden_dim": 16, "out_dim": 16, "predictor_dim": 8},
        backbone={"name": "resnet_tiny", "widths": [4, 4, 8, 8]},
        image_size=16,
        batch_size=BATCH,
        epochs=-(-steps // (COUNT // BATCH)),
        precision="fp32",
        device="cpu",
        train={"steps": steps, "log_every": LOG, "checkpoint_every": SAVE},
        callbacks=[Sampler.name],
        plugins=plugins,
        out=out,
    )


# -- what became of it ----------------------------------------------------------------------------
def soak(kind: str, steps: int) -> tuple[dict[str, Any], list[dict[str, int]]]:
    """Train so many steps in a fresh process; one line of the table, and the samples."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, __file__, "--child", kind, "--steps", str(steps), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"training from {kind} failed: {done.stderr[-2000:]}")
        samples = [json.loads(line) for line in done.stdout.splitlines()]
        text = (out / "metrics.jsonl").read_text()
    return summary(kind, steps, samples, text), samples


def summary(kind: str, steps: int, samples: Sequence[Mapping[str, int]], text: str) -> dict[str, Any]:
    """One line of the table; memory is judged by the second half, after everything has been met once.

    A run keeps its rows in memory for its result, so that these are told beside the slopes.
    """
    late = samples[len(samples) // 2 :]
    size, objects = weight(text)
    return {
        "data": kind,
        "steps": steps,
        "samples": len(samples),
        "MiB at half": round(late[0]["memory"] / 1024, 1),
        "MiB at the end": round(late[-1]["memory"] / 1024, 1),
        "resident KiB per 1000 steps": grown(late, "memory"),
        "C KiB per 1000 steps": grown(late, "allocated"),
        "objects per 1000 steps": grown(late, "objects"),
        "KiB in rows": round(1000 * size / steps / 1024, 1),
        "objects in rows": round(1000 * objects / steps, 1),
        "file handles": spread(samples, "handles"),
        "threads": spread(samples, "threads"),
        "rows": len(expected(steps)),
        "misplaced rows": disorder(text, steps),
    }


def grown(samples: Sequence[Mapping[str, int]], name: str) -> float:
    """By how much a number grows in 1000 steps."""
    return round(1000 * slope([(one["step"], one[name]) for one in samples]), 1)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """That of the line with the least squares."""
    middle_x, middle_y = (sum(point[i] for point in points) / len(points) for i in (0, 1))
    across = sum((x - middle_x) ** 2 for x, _ in points) or 1.0  # a single point has none
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / across


def weight(text: str) -> tuple[int, int]:
    """Bytes and objects that the rows of a metrics file are as dictionaries, with those keys that are made for each."""
    size, objects = 0, 0
    for line in text.splitlines():
        with suppress(ValueError):  # a line that cannot be read is told as misplaced
            row = json.loads(line)
            made = [name for name in row if name.startswith("time_")]
            size += sum(sys.getsizeof(one) for one in (row, *row.values(), *made))
            objects += 2 + len(row) + len(made)  # a dictionary is two: itself and its table
    return size, objects


def spread(samples: Sequence[Mapping[str, int]], name: str) -> str:
    """The smallest and the largest, or the one number that all are."""
    values = {sample[name] for sample in samples}
    return "-".join(str(value) for value in sorted({min(values), max(values)}))


def expected(steps: int) -> list[int]:
    """The steps that have a row: those asked for, those with a checkpoint, ends of epochs and the last."""
    periods = (LOG, SAVE, COUNT // BATCH)
    return [step for step in range(1, steps + 1) if any(step % period == 0 for period in periods) or step == steps]


def disorder(text: str, steps: int) -> list[str]:
    """What is wrong with the rows of a run: lines that cannot be read, and steps missing, twice or out of order."""
    found, wrong = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found.append(json.loads(line)["step"])
        except (ValueError, LookupError, TypeError):
            wrong.append(f"line {number}: {line[:60]}")
    wrong += [f"step {step} is missing" for step in sorted(set(expected(steps)) - set(found))]
    wrong += [f"step {step} is not due" for step in sorted(set(found) - set(expected(steps)))]
    wrong += [f"step {b} follows step {a}" for a, b in pairwise(found) if b <= a]
    return wrong


def main() -> int:
    """Train, print and write the results; the exit code tells whether rows, handles or memory were lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=list(PATHS), metavar="DATA", help=" or ".join(PATHS))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=PATHS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.steps, arguments.out)
        return 0
    rows, curves = [], {}
    for kind in arguments.kinds:
        row, curves[kind] = soak(kind, arguments.steps)
        rows.append(row)
        print(json.dumps(row), flush=True)
        write("steps", rows, arguments.out, samples=curves)
    return int(any(leaks(row) for row in rows))


def leaks(row: Mapping[str, Any]) -> bool:
    """Whether rows are misplaced, handles come and go, or memory or objects grow by more than the rows."""
    kept = (
        row["resident KiB per 1000 steps"] - row["KiB in rows"],
        row["C KiB per 1000 steps"],
        row["objects per 1000 steps"] - row["objects in rows"],
    )
    return bool(row["misplaced rows"]) or "-" in row["file handles"] or max(kept) > LEAK


if __name__ == "__main__":
    sys.exit(main())

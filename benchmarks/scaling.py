"""How the cost of a run grows: with the batch, the size of views, the number of images and of views, and processes.

SimCLR (DINO for the number of views) on a ResNet-18 with the ImageNet stem, our engine from raw images on. The number
of images goes up to ten million of an index alone, whose pixels are made when they are asked for; each of those figures
is of a process of its own (Linux alone).
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
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from plans import plan_for
from results import facts, write
from throughput import Ticking

from akssl_core import ImageSet, Pixels, dist
from akssl_core.data.loader import Loader
from akssl_core.plugins.manager import installed
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan

BATCHES = (64, 128, 256, 512)
SIZES = {32: 256, 64: 128, 96: 64, 224: 16}  # px: batch
LOCALS = (0, 2, 6, 10)
IMAGES = (10**3, 10**4, 10**5, 10**6, 10**7)


def rate(plan: Any, steps: int = 4) -> float:
    """Images a second over all processes: the median over steps."""
    engine = plan.engine([])
    ends: list[float] = []
    engine.callbacks = [Ticking(lambda: ends.append(time.perf_counter()))]
    engine.now = replace(engine.now, total_steps=steps + 2)
    engine.fit()
    gaps = [end - start for start, end in pairwise(ends[1:])]
    return float(engine.batch_size / statistics.median(gaps))


def shapes(batch: int) -> dict[str, Any]:
    """Enough images for a few batches."""
    return {"name": "shapes", "size": 4 * batch}


def by_batch() -> list[dict[str, Any]]:
    """Images a second against the batch at 32 px."""
    return [{"batch": b, "images/s": rate(plan_for("simclr", shapes(b), "auto", b, 32))} for b in BATCHES]


def by_size() -> list[dict[str, Any]]:
    """Images a second against the side of the views."""
    rows = []
    for size, batch in SIZES.items():
        value = rate(plan_for("simclr", shapes(batch), "auto", batch, size))
        rows.append({"size": size, "batch": batch, "images/s": value, "megapixels/s": value * 2 * size**2 / 1e6})
    return rows


def by_views() -> list[dict[str, Any]]:
    """Images a second of DINO against the number of local views."""
    rows = []
    plugins = installed()
    for count in LOCALS:
        settings = {
            "data": shapes(256), "backbone": {"name": "resnet18", "stem": "imagenet"}, "batch_size": 256,
            "image_size": 32, "epochs": 1000, "augmentation": {"name": "multicrop", "local_count": count},
        }  # fmt: skip
        value = rate(make_plan(collect("dino", None, settings, plugins), plugins))
        rows.append({"local views": count, "images/s": value, "views/s": value * (2 + count)})
    return rows


# -- the number of images -------------------------------------------------------------------------
class Synthetic(ImageSet):
    """As many images as one likes, made from their number."""

    loading = "direct"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: Sequence[int]) -> Pixels:
        """Plain squares."""
        values = torch.as_tensor(index)[:, None, None, None].remainder(256).to(torch.uint8)
        return Pixels(values.expand(-1, 3, 32, 32).contiguous())


def start(count: int) -> dict[str, float]:
    """Seconds to the first batch of an epoch in its middle, and MB that the process grew by until the last."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    begin = time.perf_counter()
    loader = Loader(Synthetic(count), 256)
    batches = loader.epoch(1, loader.steps_per_epoch // 2)
    next(batches)
    first = time.perf_counter() - begin
    for _ in zip(range(100), batches, strict=False):
        pass
    return {"seconds to the first batch": round(first, 4), "MB": round(resident("VmHWM") - before, 1)}


def resident(which: str) -> float:
    """MB of memory that this process holds (VmRSS) or has held at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def by_images() -> list[dict[str, Any]]:
    """Start-up time and memory against the number of images; the index is 8 bytes an image."""
    return [
        {"images": count, "index MB": round(count * 8 / 2**20, 1), **child("images", str(count))} for count in IMAGES
    ]


# -- processes ------------------------------------------------------------------------------------
def by_processes() -> list[dict[str, Any]]:
    """Images a second over all processes, at the same batch and as many threads in all as there are cores."""
    cores = os.cpu_count() or 1
    rows = []
    for count in sorted({1, cores}):
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores // count)}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        rows.append({"processes": count, **child("processes", launcher=launcher, environment=environment)})
    return rows


def child(*asked: str, launcher: Sequence[str] = (), environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The last line that a process of its own prints, as JSON."""
    command = [sys.executable, *launcher, __file__, "--child", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def answer(asked: list[str]) -> None:
    """What a process of its own does."""
    warnings.simplefilter("ignore")
    if asked[0] == "images":
        print(json.dumps(start(int(asked[1]))))
        return
    dist.start("cpu")
    value = rate(plan_for("simclr", shapes(256), "auto", 256, 32), steps=8)
    if dist.is_main():
        print(json.dumps({"images/s": value}))
    dist.stop()


PARTS = {"batch": by_batch, "size": by_size, "views": by_views, "images": by_images, "processes": by_processes}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.child:
        return answer(arguments.child)
    for part in arguments.parts:
        rows = [{k: round(v, 1) if "/s" in k else v for k, v in row.items()} for row in PARTS[part]()]
        print("\n".join(json.dumps(row) for row in rows), flush=True)
        write(f"scaling-{part}", rows, facts())
    return None


if __name__ == "__main__":
    main()

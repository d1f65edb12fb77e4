"""Whole runs: whether they learn as on a CPU, and where their time goes."""

from __future__ import annotations

import cProfile
import gzip
import json
import pstats
import shutil
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from bare import ROOT
from fast import MAIN
from rows import Found, NotHere, Row, Rows, Setup, bounded
from trial import METHODS, TINY, traced

import akssl_core
from akssl_core.metrics.nearest import knn

ROWS = Rows()
LEADERBOARD = ROOT / "benchmarks" / "results" / "leaderboard.json"
SLOWEST = 25  # functions that are listed
SMALL: dict[str, Any] = {"backbone": TINY, "image_size": 16, "batch_size": 16, "epochs": 1}


def run(setup: Setup, name: str, method: str = "simclr", **settings: Any) -> akssl_core.Result:
    """A run on the device, in a folder of its own."""
    out = setup.scratch / name
    return akssl_core.run(method, device=setup.device.type, out=out, overwrite=True, **settings)


def stages(result: akssl_core.Result) -> dict[str, Any]:
    """What a run says of its time: images a second of its rows, and the shares of each part of the loop."""
    rows = result.history
    names = [name for name in rows[-1] if name == "images_per_s" or name.startswith("time_")]
    return {name: [row.get(name) for row in rows] for name in names} | {"final": result.metrics}


def learns(setup: Setup, method: str) -> Iterator[Found]:
    """Drawn shapes at the settings of the leaderboard, which was made on a CPU."""
    data = {"name": "shapes", "size": 64, "test_size": 32}
    result = run(setup, method, method, **setup.pick({"data": "shapes", "epochs": 4}, {**SMALL, "data": data}))
    known = {row["method"]: row["metrics"]["knn_top1"] for row in json.loads(LEADERBOARD.read_text())["rows"]}
    mean, std = known[method]["mean"], known[method]["std"]
    score, least = result.metrics["knn_top1"], setup.mark(round(mean - 3 * std, 1))
    yield bounded("k-NN top-1", score, least=least, unit="%", leaderboard=[mean, std], **stages(result))
    yield bounded("whole run", result.metrics["seconds"], unit="s")


@ROWS.add("shapes simclr", limit=120)
def shapes(setup: Setup) -> Iterator[Found]:
    """The first of the leaderboard."""
    yield from learns(setup, "simclr")


@ROWS.add("where a run's seconds go", limit=120)
def seconds(setup: Setup) -> Iterator[Found]:
    """The main thread of a run with probes and checkpoints: seconds within each of the slowest functions of ours."""
    data = {"name": "shapes", "size": setup.pick(20_000, 64), "test_size": setup.pick(4000, 32)}
    settings = setup.pick({"backbone": "resnet50", "image_size": 96, "batch_size": 256, "epochs": 2}, SMALL)
    profiler = cProfile.Profile()
    started = time.perf_counter()
    profiler.runcall(run, setup, "profiled", data=data, **settings)
    yield bounded("whole run", time.perf_counter() - started, unit="s")
    spent = []
    for (file, _, function), (_, calls, _, within, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if "akssl_core/" in file:
            spent.append((round(within, 2), f"{file.rpartition('akssl_core/')[2]} {function}, {calls} calls"))
    slowest = {place: taken for taken, place in sorted(spent, reverse=True)[:SLOWEST]}
    for name in ("_baselines", "scores", "save", "fit", "export_backbone", "render"):
        taken = [value for value, place in spent if f" {name}," in place]
        if taken:
            yield bounded(f"in {name}", max(taken), unit="s")
    yield Found("slowest", next(iter(slowest), ""), numbers=slowest)


@ROWS.add("CIFAR-10 simclr resnet18", limit=240)
def cifar(setup: Setup) -> Iterator[Found]:
    """Photos of 32 px from files, by the recipe for them."""
    if setup.cifar is None:
        raise NotHere("needs CIFAR-10 as JPEG files: --cifar ARCHIVE")
    folder = setup.scratch / "cifar"
    with tarfile.open(setup.cifar) as archive:
        archive.extractall(folder, filter="data")
    data = {"name": "folder", "path": str(folder / "train"), "test": str(folder / "test"), "cache_gb": 4.0}
    result = run(setup, "cifar-run", data=data, recipe="cifar", backbone="resnet18", epochs=setup.pick(20, 1))
    numbers = stages(result)
    yield bounded("k-NN top-1", result.metrics["knn_top1"], unit="%", **numbers)
    yield bounded("whole run", result.metrics["seconds"], unit="s")
    rates = [row["images_per_s"] for row in result.history if "images_per_s" in row]
    yield bounded("training, the best row", max(rates), unit="images/s")


@ROWS.add("k-NN search", limit=120)
def search(setup: Setup) -> Iterator[Found]:
    """As large as ImageNet with ResNet-50 features."""
    bank_size, queries, width = setup.pick((1_281_167, 50_000, 2048), (512, 64, 32))
    labels = torch.randint(1000, (bank_size,), device=setup.device)
    bank, asked = (torch.randn(rows, width, device=setup.device) for rows in (bank_size, queries))
    started = time.perf_counter()
    knn(bank, labels, asked, labels[:queries])  # ends with a number on the host
    yield bounded(f"{queries} x {bank_size} x {width}", time.perf_counter() - started, unit="s")


@ROWS.add("trace")
def trace(setup: Setup) -> Iterator[Found]:
    """Three steps of the main case as Chrome and Perfetto show them."""
    plain, packed = setup.scratch / "trace.json", setup.out / "trace.json.gz"
    seen = traced(MAIN.plan(setup).engine([]), setup.pick(3, 1), plain)
    with plain.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    yield Found("file", packed.name, numbers={"busy %": seen.busy, "launches a step": seen.launches})


for name in METHODS:
    if name != "simclr":
        ROWS.append(Row(f"shapes {name}", partial(learns, method=name), limit=120, short=False))

"""The contest by the clock: the best features of CIFAR-10 from random weights, without labels, in a few minutes.

Every system trains the same network on the same machine, one after the other, each in a process of its own. The clock
runs from the start of that process to its end, with the file of the backbone written; k-NN (k = 20, the training images
as bank) is no part of it. Ours takes the steps of one recipe that fit (`budget`), a run for each time, and fewer where
the machine turns slower; peers train until it is over, and what changes in the course of their runs follows the clock.
Where nothing does, what the longest run has after less time is kept too.

Settings are chosen with `--validation`: there every tenth training image is a query, and trains nothing. `--reach 90`
asks for the time instead: ours trains for the longest of the times with a probe an epoch, whose seconds do not count.
Writes benchmarks/results/speedrun.json after every system; with `--work` the same command goes on, and seeds that are
not asked for keep their runs, each of which names its processor.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import clock
import results
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import akssl_core
from akssl_core import Backbone, ImageSpec, Preprocess
from akssl_core.data import open_source
from akssl_core.metrics.features import embed
from akssl_core.metrics.nearest import knn
from akssl_core.plugins.manager import Plugins, installed
from akssl_core.running.estimate import SHARE
from akssl_core.settings import TrainSpec
from akssl_core.training.hardware import choose_hardware

OURS = "ours"
STEADY = ("lightly simclr", "emp-ssl emp")  # whatever the length of their runs, they begin alike
SYSTEMS = (OURS, "stable-pretraining lejepa", *STEADY)
FAST = {"method": "simclr", "recipe": "fast"}
NETWORK = "resnet_tiny"
MINUTES = (2.0, 5.0, 10.0)
LAST = 3.0  # seconds of a process after its steps: its readers' end and the file
TIMING = 1.0  # of ours, and a share of its time: steps are timed
HELD = 10  # in a validation one of so many training images is a query
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10, for peers
MANY, WHOLE = 10**6, 1000  # epochs, where the clock alone ends a run; what a peer's course takes for its length
Due = tuple[str, float]  # a file of weights, and the time (`time.time()`) at which its run is to end


def tables(cifar: Path, folder: Path, validation: bool) -> dict[str, Any]:
    """The data by two tables of files, those to train on and the queries, of a folder with train/ and test/."""
    parts = {part: sorted((cifar / part).glob("*/*")) for part in ("train", "test")}
    if validation:
        parts["test"] = parts["train"][::HELD]
        parts["train"] = [file for i, file in enumerate(parts["train"]) if i % HELD]
    for part, files in parts.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *((path.absolute(), path.parent.name) for path in files)])
    return {
        "name": "folder", "path": str(folder / "train.csv"), "root": str(cifar), "test": str(folder / "test.csv"),
    }  # fmt: skip


# -- one run, in a process of its own --------------------------------------------------------------
def train(system: str, data: dict[str, Any], due: list[Due], seed: int, settings: dict[str, Any]) -> None:
    """Train one system, and leave the weights of its network in files when they are due; ours has one."""
    warnings.simplefilter("ignore")
    if system == OURS:
        file, until = due[0]
        train_ours(Path(file), data, until, seed, settings)
    else:
        train_peer(system, data, due, seed, settings)


def train_ours(file: Path, data: dict[str, Any], until: float, seed: int, settings: dict[str, Any]) -> None:
    """The steps of a recipe that fit by the first of them, and no more than the clock allows."""
    plugins = Plugins()
    plugins.register(clock, "clock")
    few = {"bank": 100, "queries": 100, "online_bank": 100, "online_queries": 100, "every": 1e6}
    asked = {"backbone": NETWORK, "data": pixels_of(data), "seed": seed, "evaluate": few, **settings}
    asked["callbacks"] = [{"name": "clock", "file": str(file), "until": until - LAST}]
    left = max((1 - SHARE) * (until - LAST - TIMING - time.time()), 1.0)
    with suppress(clock.Over):
        akssl_core.run(budget=left, out=file.with_name("run"), report=False, overwrite=True, plugins=plugins, **asked)


def train_peer(system: str, data: dict[str, Any], due: list[Due], seed: int, settings: dict[str, Any]) -> None:
    """A peer's example until the last time is over."""
    import peers  # benchmark extra

    library, name = system.split()
    if library == "emp-ssl":
        from peers_emp import METHODS
    elif library == "stable-pretraining":
        from peers_stable import METHODS
    else:
        METHODS = peers.METHODS
    pixels = pixels_of(data)
    torch.manual_seed(seed)
    backbone, left, started = network(MEAN, STD), list(due), time.time()
    whole = due[-1][1] - LAST - started

    def timed(*given: Any) -> peers.Example:
        example = METHODS[name](*given[:-1], WHOLE)
        course = example.after_backward
        return replace(example, after_backward=lambda _: course(WHOLE * min(1.0, (time.time() - started) / whole)))

    def tick() -> None:
        if time.time() >= left[0][1] - LAST:
            clock.leave(left.pop(0)[0], backbone, MEAN, STD)
        if not left:
            raise TimeoutError

    asked = {"epochs": MANY, "image": backbone.image, "methods": {name: timed}, "rate": 1.0, **settings}
    with suppress(TimeoutError):
        peers.train(name, pixels, backbone, seed=seed, tick=tick, **asked)


def pixels_of(data: dict[str, Any]) -> torch.Tensor:
    """The training images (N, 3, 32, 32) uint8: read before any step is timed, since the first pass would be slower."""
    images = open_source(data, installed()).train()
    return images.fetch(range(len(images))).images


def reach(goal: float, data: dict[str, Any], minutes: float, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """After how many seconds of steps the k-NN accuracy of ours came to a goal, or its best if it did not."""
    whole = {"every": 1, "online_bank": 50_000, "online_queries": 10_000}
    asked = {"backbone": NETWORK, "data": data, "seed": seed, "evaluate": whole, **settings}
    with tempfile.TemporaryDirectory() as folder:
        result = akssl_core.run(budget=60 * minutes, out=Path(folder) / "run", report=False, **asked)
    before, each, seconds, best = 0, 0.0, 0.0, dict[str, Any]()
    for row in result.history:
        steps, before = row["step"] - before, row["step"]
        if "knn_top1" not in row or not each:  # a row with a probe has its seconds too
            each = row["seconds"] / steps
        seconds += each * steps
        if row.get("knn_top1", -1.0) > best.get("k-NN", -1.0):
            best = {"k-NN": row["knn_top1"], "epoch": row["epoch"], "seconds": round(seconds, 1)}
            if best["k-NN"] >= goal:
                break
    return {"system": OURS, "goal": goal, "seed": seed, **best}


def network(mean: Sequence[float], std: Sequence[float]) -> Backbone:
    """The network of every system, with random weights."""
    image = ImageSpec(32, 3, tuple(mean), tuple(std))
    return akssl_core.build("backbone", NETWORK, image)  # type: ignore[no-any-return]


# -- the contest ------------------------------------------------------------------------------------
def race(
    arguments: argparse.Namespace, system: str, minutes: Sequence[float], seed: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """The scores of one run after each of the times, of which the last ends it, and the seconds until its file."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{of}.safetensors" for of in minutes]
        data = tables(arguments.cifar, Path(folder), arguments.validation)
        started = time.time()
        due = [(str(file), started + 60 * of) for file, of in zip(files, minutes, strict=True)]
        task = {"system": system, "data": data, "due": due, "seed": seed, "settings": settings}
        subprocess.run([sys.executable, __file__, "--child", json.dumps(task)], check=True)
        ended = [*(file.stat().st_mtime for file in files[:-1]), time.time()]
        return [
            {"k-NN": round(score(read(file), data), 2), "seconds": round(at - started, 1)}
            for file, at in zip(files, ended, strict=True)
        ]


def read(file: Path) -> Backbone:
    """The network with the weights of a file."""
    with safe_open(file, "pt") as opened:
        backbone = network(*json.loads(opened.metadata()["image"]))
    backbone.load_state_dict(load_file(file))
    return backbone.eval()


def score(backbone: Backbone, data: dict[str, Any]) -> float:
    """k-NN accuracy in percent of the queries, the images that were trained on as bank."""
    probe = open_source(data, installed()).probe()
    assert probe is not None
    device = choose_hardware(TrainSpec()).device
    rows = [embed(backbone.to(device), images, Preprocess.of(backbone.image), device=device) for images in probe]
    return knn(rows[0], probe[0].labels, rows[1], probe[1].labels)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Median and range over the seeds, by system and time."""
    found = []
    for system, minutes in dict.fromkeys((row["system"], row["minutes"]) for row in rows):
        runs = [row for row in rows if (row["system"], row["minutes"]) == (system, minutes)]
        of = [row["k-NN"] for row in runs]
        found.append({
            "system": system, "minutes": minutes, "runs": len(of), "median k-NN": round(statistics.median(of), 2),
            "range": f"{min(of)} to {max(of)}", "longest s": max(row["seconds"] for row in runs),
        })  # fmt: skip
    return found


def processors(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which seeds ran on which processor: times on one are not those on another, but a seed's systems share one."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["cpu"], set()).add(row["seed"])
    return "; ".join(f"{cpu} (seeds {', '.join(map(str, sorted(of)))})" for cpu, of in seeds.items())


def contest(arguments: argparse.Namespace) -> None:
    """Every system over all times with one seed, then with the next; the table is written after each system."""
    file = results.RESULTS / "speedrun.json"
    kept = results.Kept(arguments.work and arguments.work / f"{'held' if arguments.validation else 'test'}.jsonl")
    wanted = set(itertools.product(arguments.seeds, arguments.minutes, arguments.systems))
    known = json.loads(file.read_text())["facts"]["runs"] if file.exists() else []

    def settings_of(system: str) -> dict[str, Any]:
        return arguments.settings if system == OURS else arguments.peer_settings  # type: ignore[no-any-return]

    rows = [
        row
        for row in known
        if (row["seed"], row["minutes"], row["system"]) not in wanted and row["settings"] == settings_of(row["system"])
    ]
    for seed, system in itertools.product(arguments.seeds, arguments.systems):
        settings = settings_of(system)
        common = {"system": system, "seed": seed, "settings": settings}
        jobs = [{**common, "minutes": minutes} for minutes in sorted(arguments.minutes)]
        missing = [job["minutes"] for job in jobs if kept.of(job) is None]
        runs = [missing] if system in STEADY else [[minutes] for minutes in missing]
        for together in filter(None, runs):
            found = race(arguments, system, together, seed, settings)
            for minutes, of in zip(together, found, strict=True):
                kept.add(row := {**common, "minutes": minutes, **of, "cpu": results.cpu()})
                print(row, flush=True)
        rows += filter(None, map(kept.of, jobs))
        if not arguments.validation:
            results.write("speedrun", summary(rows), {**results.facts(runs=rows), "cpu": processors(rows)})


def main(given: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("systems", nargs="*", default=SYSTEMS, help=f"of {', '.join(SYSTEMS)}, or 'lightly NAME'")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10: train/ and test/, a folder of files a class")
    parser.add_argument("--minutes", type=float, nargs="+", default=MINUTES)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument(
        "--settings",
        type=json.loads,
        default=FAST,
        help="of ours: keywords of run in JSON  [default: simclr, recipe fast]",
    )
    parser.add_argument("--peer-settings", type=json.loads, default={}, help='{"rate": 0.3}')
    parser.add_argument("--reach", type=float, metavar="PERCENT", help="the time that ours takes to this k-NN")
    parser.add_argument("--validation", action="store_true", help="score training images that train nothing")
    parser.add_argument("--work", type=Path, help="folder to keep runs in, and go on after them; another begins anew")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.child:
        train(**arguments.child)
    elif arguments.reach is not None:
        with tempfile.TemporaryDirectory() as folder:
            data = tables(arguments.cifar, Path(folder), arguments.validation)
            asked = arguments.reach, data, max(arguments.minutes)
            rows = [reach(*asked, seed, arguments.settings) for seed in arguments.seeds]
        print(*rows, sep="\n")
        if not arguments.validation:
            results.write("speedrun-reach", rows, results.facts(settings=arguments.settings))
    else:
        contest(arguments)


if __name__ == "__main__":
    main()

"""What `akssl adapt` gives back beside the start: how often it is worse, and how often better.

Weights that a method has trained on one of three data sets are adapted to another, for several methods and seeds, on
`resnet_tiny` at 32 px. The start, what was trained, what was kept and a run from scratch of as many images are scored
by k-NN on the test images of the other data, which neither training nor the choice has seen. With `--work`
the runs stay in that folder, each combination is a line of rows.jsonl there, and the same command goes on after those.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results import Kept, facts, write

import akssl_core

NAME = "adaptation"
METHODS = ("simclr", "simsiam", "barlowtwins", "byol")
BANK, TEST = 5000, 2500  # images, at most
SMALL = {"backbone": "resnet_tiny", "image_size": 32, "batch_size": 128}
SHARED = {"device": "cpu", "train": {"threads": 1}, "report": False}
NO_PROBES = {"every": 1000, "online_bank": 100, "online_queries": 100, "bank": BANK, "queries": TEST}
TRAINED_ON = 0.8  # of the images, as adaptation holds a fifth of so few out

Data = Any  # what `run` takes as data


def folder_of_classes(root: Path, images: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first images of each sub-folder of a data set of small pictures, the same number of each, one class each."""
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    files = [sorted(path.iterdir())[: images // len(classes)] for path in classes]
    order = [(file, label) for of in zip(*files, strict=True) for label, file in enumerate(of)]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in order])
    return pixels, np.array([label for _, label in order])


def data_sets(names: Sequence[str], images: int, folder: Path | None) -> dict[str, Data]:
    """The data sets by name, each with `images` to train on; of a folder, a fifth of its images are the test."""
    known: dict[str, Data] = {
        "shapes": {"name": "shapes", "size": images, "test_size": min(TEST, images)},
        "fashion-mnist": {"name": "fashion-mnist", "size": images},
    }
    if folder is not None:
        known["folder"] = folder_of_classes(folder / "train", images * 5 // 4)
    return {name: known[name] for name in names if name in known}


def epochs(seen: int, images: int) -> int:
    """Passes over so many images in which so many are seen."""
    return max(1, round(seen / images))


def begin(sets: dict[str, Data], name: str, job: dict[str, Any], arguments: argparse.Namespace, work: Path) -> Path:
    """A run from random weights on a data set, unless it is there: the start for others, and from scratch there."""
    method, seed, seen, images = job["method"], job["seed"], arguments.seen, arguments.images
    data, out = sets[name], work / f"{name}-{method}-{seed}"
    if not (out / "backbone.safetensors").exists():
        akssl_core.run(
            method, data=data, seed=seed, epochs=epochs(seen, images), evaluate=NO_PROBES, out=out, overwrite=True,
            **SMALL, **SHARED,
        )  # fmt: skip
    return out


def measured(sets: dict[str, Data], job: dict[str, Any], arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One combination: begin, adapt, train from scratch, and score all on the test images."""
    began, data, out = time.perf_counter(), sets[job["to"]], work / "-".join(map(str, job.values()))
    start, scratch = (begin(sets, job[name], job, arguments, work) for name in ("from", "to"))
    length = epochs(arguments.seen, round(TRAINED_ON * arguments.images))
    given = {name: SMALL[name] for name in ("batch_size", "image_size")}
    adapted = akssl_core.adapt(
        start, data=data, method=job["method"], seed=job["seed"], epochs=length, evaluate=NO_PROBES, out=out,
        overwrite=True, **given, **SHARED,
    )  # fmt: skip
    assert adapted.adaptation is not None
    judged = {"data": data, "k": 20, "train_images": BANK, "test_images": TEST}
    found = akssl_core.evaluate(out, "knn", weights=out / "adapted.safetensors", **judged)
    (gain,) = (one for one in found.comparisons if one.against == "start")
    scores = {score.system: score.accuracy for score in found.scores}
    return {
        **job,
        "start": scores["start"],
        "trained": scores["given weights"],
        "kept": scores["trained"],
        "share": adapted.adaptation["kept"],
        "gain": [gain.difference, gain.low, gain.high],
        "scratch": akssl_core.evaluate(scratch, "knn", **judged).accuracy,
        "seconds": round(time.perf_counter() - began),
    }


def jobs(names: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every combination, seed by seed."""
    for seed, method, (source, target) in itertools.product(seeds, methods, itertools.permutations(names, 2)):
        yield {"from": source, "to": target, "method": method, "seed": seed}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many were kept that are significantly worse than the start, and how many that are better."""
    return {
        "combinations": len(rows),
        "worse than the start": sum(row["gain"][2] < 0 for row in rows),
        "better than the start": sum(row["gain"][1] > 0 for row in rows),
        "better than from scratch": sum(row["kept"] > row["scratch"] for row in rows),
    }


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    numbers = {name: f"{row[name]:.1f}" for name in ("start", "trained", "kept", "scratch")}
    gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row["gain"])
    return {**{name: row[name] for name in ("from", "to", "method", "seed")}, **numbers, "share": row["share"],
            "kept - start": gain}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, a line each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a third data set: a folder train/ with one sub-folder a class")
    parser.add_argument("--names", nargs="+", default=["shapes", "fashion-mnist", "folder"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=10_000, help="training images of each data set")
    parser.add_argument("--seen", type=int, default=30_000, help="images that each training sees")
    parser.add_argument("--work", type=Path, help="folder to keep and go on with  [default: one that is deleted]")
    arguments = parser.parse_args(argv)
    sets = data_sets(arguments.names, arguments.images, arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        kept = Kept(work / "rows.jsonl")
        for job in jobs(list(sets), arguments.methods, arguments.seeds):
            if kept.of(job):
                continue
            kept.add(measured(sets, job, arguments, work))
            print(json.dumps(kept.rows[-1]), file=sys.stderr, flush=True)
    budget = {name: getattr(arguments, name) for name in ("images", "seen")}
    write(NAME, [shown(row) for row in kept.rows], facts(**budget, **summary(kept.rows)))
    print(json.dumps(summary(kept.rows)))


if __name__ == "__main__":
    main()

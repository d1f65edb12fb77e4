"""What a student gains from a teacher, and what it costs: seconds of training and k-NN accuracy of its runs.

A teacher (ResNet-18) is trained by a method; then, for each seed, its student (`resnet_tiny`) live, from a file of
targets, and alone, by the teacher's method for as many seconds as the live one took. Runs stand in a folder and are
gone on with or read when the script is called again; seeds may be added. Asked for: at least 95 % of the teacher's
accuracy at a tenth of its seconds and more than alone; with targets the same within the spread at 60 % of live seconds
or less. Beside seconds, which a shared machine falsifies, the operations of the backbones are counted: a backward pass
as two forward ones, heads left out. Writes benchmarks/results/distillation-DATA.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from results import facts, write
from torch.utils.flop_counter import FlopCounterMode

import akssl_core

BATCH = 128  # of the student alone
VIEWS = 2  # of an image in the recipes of the teacher's method; a student has one
TRAINED = 3  # forward passes that one with its backward pass counts as


class Runs:
    """The runs of one call, each in a folder under its name."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.data: Any = {"name": "shapes", "size": asked.images} if asked.data == "shapes" else asked.data
        evaluate = {"every": 1000.0, "bank": asked.bank, "queries": asked.queries}
        self.shared: dict[str, Any] = {"data": self.data, "image_size": asked.size, "evaluate": evaluate}
        teacher, student = forward(asked.size, asked.teacher), forward(asked.size)
        alone, cached = TRAINED * VIEWS * student, TRAINED * student
        self.each = {"teacher": TRAINED * VIEWS * teacher, "live": teacher + cached, "cached": cached, "alone": alone}

    def run(self, name: str, method: str, **settings: Any) -> dict[str, Any]:
        """A row: the accuracy of a run, and the seconds of its steps."""
        out = self.asked.out / name
        result = akssl_core.run(method, out=out, resume="auto", report=False, **{**self.shared, **settings})
        seconds = sum(row["seconds"] * (1 - row.get("time_evaluate", 0)) for row in result.history)
        known = {"k-NN": result.metrics["knn_top1"], "untrained": result.metrics["knn_random_init"]}
        epochs = result.history[-1]["epoch"]
        row = {"run": name, **known, "epochs": epochs, "seconds": seconds}
        print(json.dumps({**row, "epochs": round(epochs, 2), "seconds": round(seconds, 1)}), flush=True)
        return {**row, "FLOPs": self.each.get(name.partition("-")[0], 0) * epochs * self.asked.images}

    def teacher(self) -> dict[str, Any]:
        """The teacher, under the first seed."""
        asked = self.asked
        return self.run("teacher", asked.method, backbone=asked.teacher, epochs=asked.teacher_epochs, seed=0)

    def student(self, seed: int) -> dict[str, dict[str, Any]]:
        """The three ways to a student of one seed, and the making of the file."""
        asked = self.asked
        shared: dict[str, Any] = {"backbone": "resnet_tiny", "seed": seed, "recipe": "default"}
        taught = {"teacher": str(asked.out / "teacher")}
        kept = {"targets": str(asked.out / "targets.safetensors"), "target_views": asked.views}
        live = self.run(f"live-{seed}", "distill", options=taught, epochs=asked.epochs, **shared)
        first = {**shared, "seed": 0}
        self.run("file", "distill", options={**taught, **kept}, train={"steps": 1}, epochs=1, **first)
        cached = self.run(f"cached-{seed}", "distill", options=kept, epochs=asked.epochs, **shared)
        rate = self.run("rate", asked.method, train={"batch_size": BATCH}, epochs=1, **first)["seconds"]
        epochs = live["seconds"] / rate  # in as many seconds
        rest = {"steps": max(1, round(epochs * asked.images / BATCH)), "batch_size": BATCH}
        alone = self.run(f"alone-{seed}", asked.method, train=rest, epochs=math.ceil(epochs), **shared)
        return {"live": live, "cached": cached, "alone": alone}


def forward(size: int, backbone: str = "resnet_tiny") -> int:
    """Floating-point operations of a backbone for one image of so many pixels a side."""
    image = akssl_core.ImageSpec(size, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    network = akssl_core.build("backbone", backbone, image).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def answers(teacher: Mapping[str, Any], students: list[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each kind of run, over the seeds, beside what is asked for."""

    def mean(kind: str, what: str) -> float:
        return statistics.fmean(one[kind][what] for one in students)

    rows = [{"run": "teacher", "seeds": 1, "k-NN": round(teacher["k-NN"], 1), "seconds": round(teacher["seconds"], 1)}]
    for kind in ("live", "cached", "alone"):
        found = [one[kind]["k-NN"] for one in students]
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        row = {"run": kind, "seeds": len(found), "k-NN": f"{statistics.fmean(found):.1f}{spread}"}
        row |= {
            "seconds": round(mean(kind, "seconds"), 1),
            "of the teacher's k-NN": round(mean(kind, "k-NN") / teacher["k-NN"], 3),
            "of its seconds": round(mean(kind, "seconds") / teacher["seconds"], 3),
            "of its FLOPs": round(mean(kind, "FLOPs") / teacher["FLOPs"], 3),
            "of live seconds": round(mean(kind, "seconds") / mean("live", "seconds"), 3),
            "of live FLOPs": round(mean(kind, "FLOPs") / mean("live", "FLOPs"), 3),
        }
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Train, compare and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="shapes", help="shapes, or a folder of images with one folder a class")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--method", default="simclr", help="of the teacher, and of the student alone")
    parser.add_argument("--teacher", default="resnet18", help="its backbone")
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2, help="of the student")
    parser.add_argument("--views", type=int, default=2, help="of each image in the file of targets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bank", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"), help="where the runs stand")
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    runs = Runs(asked)
    teacher = runs.teacher()
    rows = answers(teacher, [runs.student(seed) for seed in asked.seeds])
    told = {name: value for name, value in vars(asked).items() if name != "out"}
    write(f"distillation-{Path(asked.data).name}", rows, facts(**told))
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()

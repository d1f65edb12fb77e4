"""A classifier of `akssl finetune` at 1, 10 and 100 % of the labels, beside a linear probe and the same from scratch.

One run of one method on `resnet_tiny` at 32 px has learned from all training images without their labels. Then each
share of the labels is drawn several times: a linear layer on the frozen backbone, the whole network from there, and
the same network from random weights for as long. How long is chosen for each share and for both on validation images,
a fifth of the training images, by one draw; test images take no part in it. Where the two want different lengths both
are shown. Calibration errors are those of test images, before and after the temperature.

The interval of a mean over draws holds the spread of the draws (Student's t) and the test images, whose part is that
of a single draw. With `--work` the run and one line a fit stay in that folder, and the same command goes on after them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from results import Kept, facts, write

import akssl_core
from akssl_core.data import open_source
from akssl_core.metrics.interval import student
from akssl_core.plugins.manager import installed

NAME = "finetuning"
LENGTHS = {0.01: (20, 100), 0.1: (5, 20), 1.0: (2, 6)}  # epochs that are tried, by share of the labels
SMALL: dict[str, Any] = {"backbone": "resnet_tiny", "image_size": 32}
FIT = ("part", "share", "epochs", "draw")  # what a line of fits.jsonl is known by

Row = dict[str, Any]


def start(arguments: argparse.Namespace, data: Any, work: Path) -> Path:
    """The run that has seen no label, trained unless it is there."""
    out = work / "run"
    if not (out / "backbone.safetensors").exists():
        akssl_core.run(
            arguments.method, data=data, epochs=arguments.epochs, device="cpu", report=False, out=out, overwrite=True,
            evaluate={"every": arguments.epochs, "bank": 2000, "queries": 1000}, **SMALL,
        )  # fmt: skip
    return out


def training_images(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The training images (N, C, H, W) and labels (N,) alone, of which `finetune` holds a fifth out to judge by."""
    images = open_source(data, installed(), None).train()
    assert images.labels is not None
    return images.fetch(range(len(images))).images, images.labels


def fit(run: Path, data: Any, job: Mapping[str, Any], work: Path) -> Row:
    """One classifier and what it is worth."""
    found = akssl_core.finetune(
        run, work / "classifier.safetensors", data=data, share=job["share"], epochs=job["epochs"], seed=job["draw"],
        device="cpu", overwrite=True,
    )  # fmt: skip
    record = found.record()
    kept = ("accuracy", "probe", "scratch", "gain", "calibration", "temperature", "trained_on", "tested_on")
    return {**job, **{name: record[name] for name in kept}}


class Fits:
    """Fits by what they are known by: made where they are not in the file yet."""

    def __init__(self, run: Path, data: Any, work: Path) -> None:
        self.run, self.work, self.kept = run, work, Kept(work / "fits.jsonl")
        self.data = {"validation": training_images(data), "test": data}

    def __call__(self, *key: Any) -> Row:
        """The fit of (part, share, epochs, draw)."""
        job = dict(zip(FIT, key, strict=True))
        if known := self.kept.of(job):
            return known
        made = fit(self.run, self.data[job["part"]], job, self.work)
        self.kept.add(made)
        print(json.dumps(made), file=sys.stderr, flush=True)
        return made


def chosen(fits: Fits, share: float) -> dict[int, str]:
    """The lengths that validation images like best, and what for."""
    tried = {epochs: fits("validation", share, epochs, 0) for epochs in LENGTHS[share]}
    best = {name: max(tried, key=lambda epochs: tried[epochs][name]["mean"]) for name in ("accuracy", "scratch")}
    if best["accuracy"] == best["scratch"]:
        return {best["accuracy"]: "both"}
    return {best["accuracy"]: "the classifier", best["scratch"]: "from scratch"}


def over_draws(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """The mean over draws of one of a fit's numbers, and half the width of its interval."""
    means = [row[name]["mean"] for row in rows]
    images = statistics.fmean((row[name]["high"] - row[name]["low"]) / 2 for row in rows)
    spread = statistics.stdev(means) / len(means) ** 0.5 * student(len(means) - 1) if len(means) > 1 else 0.0
    return statistics.fmean(means), (images**2 + spread**2) ** 0.5


def shown(rows: Sequence[Row], chosen_for: str) -> Row:
    """A line of the table: one share and one length, over its draws."""
    first = rows[0]
    named = {"probe": "linear probe", "accuracy": "fine-tuned", "scratch": "from scratch", "gain": "over scratch"}
    result = {
        "labels": f"{100 * first['share']:g} %",
        "trained on": first["trained_on"],
        "epochs": first["epochs"],
        "best for": chosen_for,
        "draws": len(rows),
    }
    for name, title in named.items():
        mean, half = over_draws(rows, name)
        result[title] = f"{mean:{'+' if name == 'gain' else ''}.1f} ± {half:.1f}"
    before, after = (statistics.fmean(row["calibration"][place] for row in rows) for place in (0, 1))
    temperature = statistics.fmean(row["temperature"] for row in rows)
    return {
        **result,
        "ECE before": round(before, 1),
        "ECE after": round(after, 1),
        "temperature": round(temperature, 2),
    }


def table(fits: Fits, shares: list[float], draws: list[int]) -> Iterator[Row]:
    """A line for each share, and for each length where two were chosen."""
    for share, count in zip(shares, draws * len(shares) if len(draws) == 1 else draws, strict=True):
        for epochs, chosen_for in chosen(fits, share).items():
            yield shown([fits("test", share, epochs, draw) for draw in range(count)], chosen_for)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", nargs="?", default="simclr")
    parser.add_argument("--data", default="fashion-mnist", help="a source with a split of its own")
    parser.add_argument("--images", type=int, default=60_000, help="training images, the first of the data set")
    parser.add_argument("--epochs", type=int, default=8, help="of the run without labels")
    parser.add_argument("--shares", nargs="+", type=float, default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--draws", nargs="+", type=int, default=[5], help="of all shares, or a number for each")
    parser.add_argument("--work", type=Path, help="folder to keep and go on with  [default: one that is deleted]")
    arguments = parser.parse_args(argv)
    data = {"name": arguments.data, "size": arguments.images}
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        fits = Fits(start(arguments, data, work), data, work)
        rows = list(table(fits, arguments.shares, arguments.draws))
    asked = {name: getattr(arguments, name) for name in ("method", "data", "images", "epochs")}
    lengths = "; ".join(f"{100 * share:g} %: {', '.join(map(str, tried))}" for share, tried in LENGTHS.items())
    write(NAME, rows, facts(**asked, **{"epochs tried": f"({lengths})"}))
    print(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

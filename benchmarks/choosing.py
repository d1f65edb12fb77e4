"""Does `akssl choose` find the best method without labels? Its choice beside all methods trained in full.

Every installed method that needs nothing but images is trained for as many images as the last round of `choose`, with
its default recipe, and scored by k-NN (k = 20). Reported are the rank correlation (Spearman) of the label-free scores
with that, of the same runs and of those of the first rounds; how many points the chosen run loses against the best; and
its seconds of training beside those of all methods. Writes benchmarks/results/choosing.json; the choices stay in --out,
runs in full in --sweeps (`make leaderboard` makes those of shapes), and the same command goes on with both.

With --sweep nothing is trained: the runs of a sweep (`make leaderboard` makes one over drawn shapes, `bench-natural`
one over CIFAR-10) are judged by several label-free numbers, all by the same views of the images that they trained on,
into benchmarks/results/choosing-numbers.json. Rows over other data stay in both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import results
import torch
from accuracy import DATA, IMAGES, Job, read_cifar, seconds_of, swept

import akssl_core
from akssl_core.metrics import health
from akssl_core.plugins.first_party import ALONE
from akssl_core.rundir.folder import RunDir
from akssl_core.sweeps.judge import common_views, told_apart

NUMBERS: dict[str, Callable[[torch.Tensor], float]] = {
    "told apart": health.told_apart,
    "LiDAR": health.lidar,
    "RankMe": lambda views: health.spectrum(views[:, 0]).rankme,
    "alignment, less is better": lambda views: -health.alignment(views),
}  # of features (N, 2, D) of two views


def measure(data: str, methods: list[str], epochs: int, seed: int, out: Path, sweep: Path) -> dict[str, Any]:
    """The row of one data set and seed."""
    chosen = akssl_core.choose(methods, data=DATA[data], epochs=epochs, seed=seed, out=out, tell=print)
    whole = {name: swept(Job(data, name, seed), sweep, epochs) for name in methods}
    images = akssl_core.build("data", **DATA[data]).train()
    scores = {name: told_apart(akssl_core.load_backbone(run.run_dir), images) for name, run in whole.items()}
    right = {name: run.metrics["knn_top1"] for name, run in whole.items()}
    best = max(right, key=right.__getitem__)
    seconds = sum(map(seconds_of, whole.values()))
    rounds = {
        f"rank correlation, round {number}": correlation({trial.candidate: trial.told_apart for trial in trials}, right)
        for number, trials in enumerate(chosen.rounds, 1)
        if len(trials) > 2
    }
    last = chosen.rounds[-1][0]
    return {
        "data": data, "seed": seed, "candidates": len(methods), "images seen": last.images_seen,
        "rank correlation": correlation(scores, right), **rounds, "best": best, "its k-NN": round(right[best], 2),
        "chosen": last.candidate, "k-NN": round(right[last.candidate], 2),
        "points lost": round(right[best] - right[last.candidate], 2),
        "seconds of all": round(seconds),
        "share of them": round(sum(trial.seconds for trials in chosen.rounds for trial in trials) / seconds, 3),
    }  # fmt: skip


def correlation(scores: Mapping[str, float | None], right: Mapping[str, float]) -> float:
    """Spearman's; what has no score is last."""
    values = torch.tensor([[-torch.inf if (score := scores[name]) is None else score for name in scores],
                           [right[name] for name in scores]], dtype=torch.float64)  # fmt: skip
    ranks = values.argsort(1).argsort(1).double()
    return round(float(torch.corrcoef(ranks)[0, 1]), 3)


def judged(sweep: Path) -> list[dict[str, Any]]:
    """Rank correlations with k-NN of label-free numbers over the runs of a sweep, and what choosing by each loses."""
    runs = [RunDir.open(path.parent) for path in sorted(sweep.glob("*/manifest.json"))]
    images = akssl_core.build("data", **runs[0].read_config()["data"]).train()
    found: dict[str, dict[str, float]] = {name: {} for name in NUMBERS}
    right, seeds = {}, {}
    for run in runs:
        name, views = run.path.name, common_views(akssl_core.load_backbone(run.path), images)
        right[name], seeds[name] = run.manifest.final["knn_top1"], run.read_config()["seed"]
        for number, measure_it in NUMBERS.items():
            found[number][name] = measure_it(views)
    rows = []
    for number, scores in found.items():
        lost = []
        for seed in sorted(set(seeds.values())):
            mine = [name for name in right if seeds[name] == seed]
            lost.append(max(right[name] for name in mine) - right[max(mine, key=scores.__getitem__)])
        rows.append({
            "data": sweep.name, "number": number, "runs": len(right), "rank correlation": correlation(scores, right),
            "points lost, by seed": ", ".join(f"{points:.1f}" for points in lost),
        })  # fmt: skip
    return rows


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows; those of earlier calls over other data stay."""
    data = {row["data"] for row in rows}
    others = [row for row in results.known(results.RESULTS / f"{name}.json") if row["data"] not in data]
    results.write(name, [*others, *rows], results.facts())


def main(given: list[str] | None = None) -> None:
    """Train, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=["shapes", "fashion-mnist"])
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10: train/ and test/, a folder of files a class")
    parser.add_argument("--methods", nargs="+", default=list(ALONE))
    parser.add_argument("--epochs", type=int, default=4, help=f"of {IMAGES} images, in the last round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, help="images of drawn shapes, if fewer")
    parser.add_argument("--out", type=Path, help="folder of the choices; a temporary one by default")
    parser.add_argument("--sweeps", type=Path, help="folder of a sweep for each data set: the runs in full")
    parser.add_argument("--name", default="choosing", help="name of the results")
    parser.add_argument("--sweep", type=Path, help="the folder of a sweep, to be judged instead")
    arguments = parser.parse_args(given)
    if arguments.sweep is not None:
        return keep(f"{arguments.name}-numbers", judged(arguments.sweep))
    folder = arguments.out or Path(tempfile.mkdtemp())
    sweeps = arguments.sweeps or folder / "all"
    if arguments.cifar is not None:
        read_cifar(arguments.cifar, sweeps)
    if arguments.size is not None:
        DATA["shapes"] |= {"size": arguments.size, "test_size": arguments.size}
    rows, asked = [], (arguments.methods, arguments.epochs)
    for data in arguments.data:
        for seed in arguments.seeds:
            rows.append(measure(data, *asked, seed, folder / f"{data}-{seed}", sweeps / data))
            print(json.dumps(rows[-1]), flush=True)
    return keep(arguments.name, rows)


if __name__ == "__main__":
    main()

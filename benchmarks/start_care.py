"""How careful should the first steps of a run be that begins from weights? Each care alone, beside none at all.

A network is trained on one data set and goes on with another, by two methods: SGD on a convolutional network, AdamW on
a small transformer. Scored by k-NN on a part of the training images that is held out, never on a test set. Writes
benchmarks/results/start-care.json and .md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import results

import akssl_core

TRANSFORMER = {
    "name": "timm/vit_tiny_patch16_224",
    "patch_size": 4,
    "options": {"depth": 4, "embed_dim": 64, "num_heads": 2},
}
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "simclr": {"backbone": "resnet_tiny", "optimizer": {"name": "sgd"}},
    "mocov3": {"backbone": TRANSFORMER, "optimizer": {"name": "adamw"}},
}
NONE = {"warm": 0.0, "rate": 1.0, "decay": 1.0}
CARES: Mapping[str, Mapping[str, Any]] = {
    "weights as they are": {"warm": 9999.0, "steps": 1},
    "none": {},
    "heads first": {"warm": None},
    "rate x 0.3": {"rate": 0.3},
    "rate x 0.1": {"rate": 0.1},
    "layer decay 0.9": {"decay": 0.9},
    "layer decay 0.75": {"decay": 0.75},
    "heads first, rate x 0.3": {"warm": None, "rate": 0.3},
    "heads first, rate x 0.3, layer decay 0.9": {"warm": None, "rate": 0.3, "decay": 0.9},
    "heads first, rate x 0.1, layer decay 0.75": {"warm": None, "rate": 0.1, "decay": 0.75},
}


def settings(method: str, size: int, more: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """The keywords of a run of a system, with a share of the usual learning rate."""
    usual = akssl_core.explain(method, **SYSTEMS[method], image_size=size).spec.optimizer.config
    own = {**SYSTEMS[method]["optimizer"], "lr": usual.lr.start * rate}
    few = {"every": 999, "online_bank": 100, "online_queries": 100}
    return {**SYSTEMS[method], **more, "image_size": size, "report": False, "optimizer": own, "evaluate": few}


def compare(method: str, arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each care: k-NN in percent, by seed."""
    first = folder / f"{method}-first"
    more = {"data": arguments.source, "epochs": arguments.source_epochs}
    akssl_core.run(method, out=first, **settings(method, arguments.size, more, 1.0))
    more = {"data": arguments.target, "epochs": arguments.epochs}
    for name, care in {"from random weights": None, **CARES}.items():
        found, chosen = [], {**NONE, **(care or {})}
        more["train"] = {"steps": chosen.get("steps")}
        keywords = settings(method, arguments.size, more, chosen["rate"])
        if care is not None:
            keywords["start"] = {"source": str(first), "warm_heads": chosen["warm"]}
            keywords["optimizer"]["layer_decay"] = chosen["decay"]
        for seed in arguments.seeds:
            out = folder / f"{method}-{len(list(folder.iterdir()))}"
            found.append(akssl_core.run(method, out=out, seed=seed, **keywords).metrics["knn_top1"])
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        row = {"method": method, "care": name, "k-NN": round(statistics.mean(found), 2), "spread": round(spread, 2)}
        print(row, flush=True)
        yield row


def main(given: list[str] | None = None) -> None:
    """Train, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--source", default="shapes", help="data that the first weights are trained on")
    parser.add_argument("--target", required=True, help="a folder of training images; a part of it is held out")
    parser.add_argument("--size", type=int, default=16, help="side of the views in pixels")
    parser.add_argument("--source-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", default="start-care", help="name of the results")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for method in arguments.methods for row in compare(method, arguments, Path(folder))]
    told = {name: value for name, value in vars(arguments).items() if name not in ("methods", "out")}
    told |= {name: Path(told[name]).name for name in ("source", "target")}
    results.write(arguments.out, rows, results.facts(**told))


if __name__ == "__main__":
    main()

"""How long one image is searched for among a million, exactly, and how much memory that takes.

Each figure is of a process of its own, after a search among 64 images that has imported everything. `search` is the
whole call of `akssl_core.search(..., features=FILE)`: it opens a backbone and a file of features, computes those of the
query and compares them with every row; `comparing` is the last of these alone, the least of several times. The nearest
are compared with a plain sort of all cosines in float64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from results import facts, write
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

import akssl_core
from akssl_core.evaluation.embedding import embed_to_file
from akssl_core.metrics.nearest import nearest

NETWORK = {"name": "resnet_tiny", "widths": [48, 96, 192, 384]}  # as wide as a ViT-S
NEAREST, REPEATS = 10, 5


def prepare(rows: int, folder: Path) -> None:
    """A backbone, its features of a few images for the query, and a file of as many random ones as asked for."""
    data = {"name": "shapes", "size": 64, "test_size": 16}
    akssl_core.run(method="simsiam", data=data, backbone=NETWORK, steps=1, out=folder / "run", report=False)
    embed_to_file(folder / "run", folder / "few.safetensors", data=data)
    with safe_open(folder / "few.safetensors", "pt") as file:
        about, width = file.metadata(), file.get_tensor("features").shape[1]
    features = torch.empty(rows, width)
    for part in features.split(100_000):
        part.normal_(generator=torch.Generator().manual_seed(part.storage_offset()))
    save_file({"features": features, "ids": torch.arange(rows)}, folder / "features.safetensors", about)


def measure(folder: Path) -> dict[str, float]:
    """Seconds and peak memory of this process."""
    warnings.simplefilter("ignore")
    query = {"name": "shapes", "size": 1, "test_size": 1}
    akssl_core.search(folder / "run", query, features=folder / "few.safetensors", k=NEAREST)
    before = peak_mb()
    started = time.perf_counter()
    found = akssl_core.search(folder / "run", query, features=folder / "features.safetensors", k=NEAREST)
    whole, peak = time.perf_counter() - started, peak_mb()
    with safe_open(folder / "features.safetensors", "pt") as file:
        bank = file.get_tensor("features")
    asked = akssl_core.embed(folder / "run", data=query).features[:1]
    alone = min(timed(bank, asked) for _ in range(REPEATS))
    direction = F.normalize(asked[0].double(), dim=0)
    cosine = torch.cat([F.normalize(part.double(), dim=1) @ direction for part in bank.split(100_000)])
    assert [int(name) for name in found.images[0]] == cosine.argsort(descending=True)[:NEAREST].tolist()
    return {
        "rows": len(bank), "features": bank.shape[1], "search s": round(whole, 2), "comparing s": round(alone, 4),
        "file MB": bank.numel() * 4 // 2**20, "peak MB": peak, "before MB": before,
    }  # fmt: skip


def peak_mb() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def timed(bank: torch.Tensor, asked: torch.Tensor) -> float:
    """Seconds of one comparison with all rows."""
    started = time.perf_counter()
    nearest(bank, asked, NEAREST, few=True)
    return time.perf_counter() - started


def main(given: list[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.prepare:
        return prepare(arguments.rows, arguments.prepare)
    if arguments.measure:
        return print(json.dumps(measure(arguments.measure)))
    with tempfile.TemporaryDirectory() as folder:
        for step in ("--prepare", "--measure"):  # a process counts the memory of the one that started it
            command = [sys.executable, __file__, "--rows", str(arguments.rows), step, folder]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = json.loads(printed.splitlines()[-1])
    print(row)
    return write("searching", [row], facts())


if __name__ == "__main__":
    main()

"""The same small grid for both sides: learning rate and strength of colour changes, where a peer has the method too.

Trained are the second thousand training images of each class of CIFAR-10, half as long as in the table of accuracies,
with the first seed after its own; the next two hundred of each class are the queries, by k-NN (k = 20). First the
learning rate of the table, a third and three times of it; then, with the best of these, colours that change half as
much. Writes benchmarks/results/tuning.json after every system; repeated with --work it goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import accuracy
import results
from tuned import PALER, RATES, Factors, best, known

HELD = f"{accuracy.CIFAR} held out"
SHARE, QUERIES = accuracy.IMAGES // 10, 200  # images of a class: those of the table, and as many after them; queries
EPOCHS, SEED = accuracy.EPOCHS // 2, 3


def held_out(cifar: Path, folder: Path) -> dict[str, Any]:
    """Training images that the table of accuracies neither trains on nor asks for."""
    parts: dict[str, list[Path]] = {"train": [], "test": []}
    for of in sorted(path for path in (cifar / "train").iterdir() if path.is_dir()):
        files = sorted(of.iterdir())[SHARE:]
        parts["train"] += files[:SHARE]
        parts["test"] += files[SHARE : SHARE + QUERIES]
    for part, files in parts.items():
        accuracy.write_table(files, folder / f"{part}.csv")
    return {"name": "folder", "path": str(folder / "train.csv"), "root": str(cifar), "test": str(folder / "test.csv")}


def grid(system: str, work: Path | None) -> list[dict[str, Any]]:
    """The rows of one system: three learning rates, then paler colours with the best."""
    kept = results.Kept(work and work / f"{system}, {EPOCHS} epochs.jsonl")
    rows = [run(system, Factors(rate), kept) for rate in RATES]
    return [*rows, run(system, Factors(best(rows, system).rate, PALER), kept)]


def run(system: str, factors: Factors, kept: results.Kept) -> dict[str, Any]:
    """The row of one run, unless it is there."""
    row = kept.of({"system": system, **factors._asdict()})
    if row is None:
        scores = accuracy.perform(accuracy.Job(HELD, system, SEED), 1, "auto", factors=factors)
        kept.add(row := {"system": system, **factors._asdict(), "k-NN": scores["knn"], "linear": scores["linear"]})
        print(row, flush=True)
    return row


def know(sets: dict[str, dict[str, Any]], epochs: int) -> None:
    """Tell a new process of the data and the length."""
    accuracy.DATA.update(sets)
    accuracy.EPOCHS = epochs
    warnings.simplefilter("ignore")


def main(given: Sequence[str] | None = None) -> None:
    """Run what is asked for, some systems at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("systems", nargs="*", default=[*accuracy.BOTH, *accuracy.PEERS])
    parser.add_argument("--cifar", type=Path, required=True, help="folder of CIFAR-10, with train/")
    parser.add_argument("--work", type=Path, help="folder to keep rows in, and go on after them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="systems at a time, one core each")
    arguments = parser.parse_args(given)
    rows, failed = [row for row in known() if row["system"] not in arguments.systems], []
    with tempfile.TemporaryDirectory() as folder:
        told, context = ({HELD: held_out(arguments.cifar, Path(folder))}, EPOCHS), multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, context, initializer=know, initargs=told) as pool:
            futures = {pool.submit(grid, system, arguments.work): system for system in arguments.systems}
            for future in as_completed(futures):
                if error := future.exception():  # the other systems go on
                    failed.append(f"{futures[future]}: {type(error).__name__}: {error}")
                else:
                    rows += future.result()
                    results.write("tuning", rows, results.facts(epochs=EPOCHS))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()

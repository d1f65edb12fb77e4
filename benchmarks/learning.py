"""Does a method's default recipe learn? The whole default run over several seeds, as `akssl run METHOD` does it.

Writes benchmarks/results/demo-METHOD.json: for each seed the k-NN accuracy of raw pixels, of the same backbone before
the first step and after the last one, with the seconds of training and evaluation together.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import akssl_core
from akssl_core.config import describe

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("seed", "raw pixels", "untrained", "trained", "std ratio", "RankMe", "seconds")


def one(method: str, seed: int) -> dict[str, Any]:
    """The scores of one default run."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = akssl_core.run(method=method, seed=seed, out=Path(folder) / "run").metrics
    names = ("knn_raw_pixels", "knn_random_init", "knn_top1", "std_ratio", "rankme", "seconds")
    values = [round(metrics[name], 2) for name in names]
    return dict(zip(COLUMNS, [seed, *values], strict=True))


def mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and, for the trained score, standard deviation over the seeds."""
    means = {name: round(statistics.mean(row[name] for row in rows), 2) for name in COLUMNS[1:]}
    spread = round(statistics.stdev(row["trained"] for row in rows), 2) if len(rows) > 1 else 0.0
    return {"seed": "mean", **means, "trained": f"{means['trained']} ± {spread}"}


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", nargs="?", default="simsiam")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = [one(arguments.method, seed) for seed in arguments.seeds]
    rows.append(mean_row(rows))
    caption = (
        f"`akssl run {arguments.method}` on `shapes`, k-NN top-1 in percent (k = 20), "
        f"{torch.get_num_threads()} threads of {platform.machine()}, torch {torch.__version__}."
    )
    RESULTS.mkdir(exist_ok=True)
    result = {"caption": caption, "columns": list(COLUMNS), "rows": rows}
    (RESULTS / f"demo-{arguments.method}.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(describe.table(COLUMNS, [[str(row[name]) for name in COLUMNS] for row in rows]))


if __name__ == "__main__":
    main()

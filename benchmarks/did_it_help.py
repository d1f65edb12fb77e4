"""Did it help, and with how many labels? One short run on Fashion-MNIST, judged at 1, 10 and 100 % of the labels.

One run of one method on `resnet_tiny` at 32 px; then `akssl_core.evaluate` by k-NN and by a linear probe beside the
same backbone untrained and raw pixels, five draws of the labels. Writes benchmarks/results/did-it-help.json and .md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from results import RESULTS, facts

import akssl_core
from akssl_core import Evaluation
from akssl_core.config import describe

SHARES, SEEDS = (0.01, 0.1, 1.0), 5
COLUMNS = ("protocol", "labels", "images", "raw pixels", "random init", "trained", "trained - random", "trained - raw")
NAME = "did-it-help"


def rows(found: Evaluation) -> list[dict[str, Any]]:
    """A row for each share of the labels: accuracies and differences with their 95 % intervals."""
    result = []
    for share in found.labels:
        scores = {score.system: score for score in found.scores if score.labels == share and score.k == found.k}
        gains = {one.against: one for one in found.comparisons if one.labels == share}
        name = f"k-NN, k = {found.k}" if found.k else "linear probe"
        row = {"protocol": name, "labels": f"{100 * share:g} %", "images": scores["trained"].images}
        row |= {system: f"{s.accuracy:.1f} [{s.low:.1f}, {s.high:.1f}]" for system, s in scores.items()}
        for column, other in (("trained - random", "random init"), ("trained - raw", "raw pixels")):
            gain = gains[other]
            row[column] = f"{gain.difference:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
        result.append({column: row[column] for column in COLUMNS})
    return result


def main() -> None:
    """Train, judge and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", nargs="?", default="simclr")
    parser.add_argument("--images", type=int, default=12_000, help="training images, the first of the data set")
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    data = {"name": "fashion-mnist", "size": arguments.images}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        akssl_core.run(
            method=arguments.method,
            data=data,
            backbone="resnet_tiny",
            image_size=32,
            epochs=arguments.epochs,
            evaluate={"every": arguments.epochs, "bank": 2000, "queries": 1000},
            out=run_dir,
            report=False,
        )
        found = [
            akssl_core.evaluate(run_dir, name, labels=SHARES, seeds=SEEDS, **own)
            for name, own in (("knn", {"k": 20}), ("linear", {}))
        ]
    table = [row for one in found for row in rows(one)]
    machine = facts(method=arguments.method, images=arguments.images, epochs=arguments.epochs, draws=SEEDS)
    answers = {one.protocol: one.answer for one in found}
    record = {"facts": machine, "interval": found[0].interval, "answers": answers, "rows": table}
    record["evaluations"] = [one.record() for one in found]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{NAME}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    text = describe.markdown(COLUMNS, [[str(row[column]) for column in COLUMNS] for row in table])
    lines = [text, "", *(f"{name}: {answer}" for name, answer in answers.items())]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

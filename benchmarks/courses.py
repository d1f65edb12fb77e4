"""How far the default recipes come, epoch by epoch: what later runs are held against in their reports.

Reads sweeps of methods over seeds (`akssl sweep --methods all --data shapes --seeds 0,1,2 --epochs 4`, which is `make
leaderboard`) and writes `courses.py` into the package of each method: for each data set and number of epochs the k-NN
accuracies of all seeds after each epoch. What is known of other data stays.
"""

from __future__ import annotations

import argparse
import inspect
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from akssl_core import Course
from akssl_core.plugins.first_party import ALONE
from akssl_core.plugins.manager import Plugins
from akssl_core.reporting.files import RunFiles

FEWEST = 3  # seeds
HEAD = '''"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
'''


class Of(NamedTuple):
    """What runs are of, that are put together."""

    method: str
    data: str
    sample: str
    epochs: int


def read(folders: Sequence[Path]) -> dict[Of, dict[int, list[float]]]:
    """The k-NN accuracies after each epoch of every finished run of the sweeps, by its seed."""
    found: dict[Of, dict[int, list[float]]] = defaultdict(dict)
    for folder in (path for sweep in folders for path in sweep.iterdir() if path.is_dir()):
        run = RunFiles.read(folder)
        by_epoch = dict(run.column("knn_top1"))
        epochs, data = len(by_epoch), run.manifest["data"]
        if run.status != "finished" or list(by_epoch) != list(range(1, epochs + 1)):
            print(f"{folder}: left out; it is {run.status}, with probes after epochs {list(by_epoch)}")
            continue
        source = run.config["data"]["name"]
        name = f"{data['images']:,} images of {folder.parent.name if source == 'folder' else source}"
        of = Of(run.config["method"]["name"], name, data["sample"], epochs)
        found[of][run.config["seed"]] = [round(accuracy, 1) for accuracy in by_epoch.values()]
    return found


def courses(found: dict[Of, dict[int, list[float]]]) -> dict[str, list[Course]]:
    """By method, where there are enough seeds."""
    of_method = defaultdict(list)
    for of, runs in sorted(found.items()):
        if len(runs) < FEWEST or set(runs) != set(range(len(runs))):
            print(f"{of.method} on {of.data}: left out; it has seeds {sorted(runs)}")
            continue
        after = tuple(zip(*(runs[seed] for seed in sorted(runs)), strict=True))
        of_method[of.method].append(Course(of.data, of.sample, after))
    return of_method


def write(of_method: dict[str, list[Course]]) -> list[Path]:
    """A file for each package that has methods among them; courses on other data, or of other lengths, stay."""
    plugins, packages = Plugins(), defaultdict(list)
    for name in ALONE:
        method = plugins.get("method", name)
        packages[Path(inspect.getfile(method)).parent / "courses.py"].append(method)
    written = [file for file, those in packages.items() if any(method.name in of_method for method in those)]
    for file in written:
        lines = [line for method in packages[file] for line in entry(method, of_method.get(method.name, []))]
        file.write_text(HEAD + "\n".join(lines) + "\n}\n")
    return written


def entry(method: Any, new: Sequence[Course]) -> list[str]:
    """The lines of one method."""
    told = {(course.sample, len(course.knn_top1)) for course in new}
    kept = [course for course in method.courses if (course.sample, len(course.knn_top1)) not in told]
    lines = []
    for one in sorted([*kept, *new], key=lambda course: course.data):
        fields = {"data": f'"{one.data}"', "sample": f'"{one.sample}"', "knn_top1": one.knn_top1}
        lines += ["        Course(", *(f"            {name}={value}," for name, value in fields.items()), "        ),"]
    return [f'    "{method.name}": (', *lines, "    ),"] if lines else []


def main(given: list[str] | None = None) -> None:
    """Read the sweeps and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders that akssl sweep has written")
    for file in write(courses(read(parser.parse_args(given).sweeps))):
        print(file)


if __name__ == "__main__":
    main()

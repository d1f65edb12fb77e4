"""Does every method learn, and as well as a peer's? One small budget for all, over several seeds.

Each run sees the same number of images with its default recipe on the same backbone; methods over patch tokens train
their recipe's own. Features of the frozen backbone are scored by k-NN (k = 20, cosine) and by a linear probe (L-BFGS,
penalty chosen on a part of the bank), beside raw pixels, the same backbone untrained, the same backbone trained with
labels, and methods of lightly and stable-pretraining as their examples build them; one that is judged by fine-tuning
also by that, with 1 % of the labels, beside the same network from random weights. CIFAR-10 is read from a folder,
if one is given: the first thousand training images of each class, and the test images. Runs of default recipes
are those of `akssl sweep`, one sweep for each data set, and stay in --sweeps (`make leaderboard` makes that of shapes).
Minutes are those of training, ours with the probes of their runs. Writes benchmarks/results/accuracy.json after every
run, and accuracy.md at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from results import Kept, known
from tuned import TUNED, Factors, changed, chosen, painted

import akssl_core
from akssl_core import Backbone, ImageSpec, Preprocess
from akssl_core.config import describe
from akssl_core.metrics.features import embed, pixels_as_features, sample
from akssl_core.metrics.health import spectrum
from akssl_core.metrics.linear import linear_guesses
from akssl_core.metrics.nearest import knn
from akssl_core.plugins.first_party import ALONE
from akssl_core.plugins.manager import Plugins, installed
from akssl_core.sweeps.folder import begin
from akssl_core.sweeps.folder import perform as perform_one
from akssl_core.sweeps.grid import Combination

HERE = Path(__file__).parent
RESULTS = HERE / "results"
EPOCHS = 4
IMAGES = 10_000
BANK, QUERIES = 10_000, 5_000
CIFAR = "cifar-10"
DATA: dict[str, dict[str, Any]] = {
    "shapes": {"name": "shapes"},
    "fashion-mnist": {"name": "fashion-mnist", "size": IMAGES},
}
SEEDS = {"shapes": (0, 1, 2), "fashion-mnist": (0,), CIFAR: (0, 1, 2)}
BACKBONE, OF_TOKENS = "resnet_tiny", "vit_micro"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr dcl": ("simclr", {"options": {"loss": {"name": "dcl", "temperature": 0.2}}}),
    "simclr dclw": ("simclr", {"options": {"loss": {"name": "dclw", "temperature": 0.2}}}),
    "simsiam 4 views": ("simsiam", {"augmentation": {"count": 4}}),
}  # a method under other settings than its recipe's; four views take twice the time of two
LONG = 20  # epochs of so many images: what `akssl run` trains for where nobody says how long
LONGER = {f"{name} {LONG} epochs": (name, {"epochs": LONG}) for name in ALONE}
SLOW = [f"{name} {LONG} epochs" for name in ("ibot", "ijepa", "mae")]  # to learn drawn shapes in EPOCHS
RECIPES = {f"{name} recipe cifar": (name, {"recipe": "cifar"}) for name in ALONE}  # on the same backbones, as long
LIGHTLY, STABLE = "lightly", "stable-pretraining"
PEERS = (*(f"{LIGHTLY} {name}" for name in ("simclr", "byol", "swav", "dino", "vicreg", "lejepa")), f"{STABLE} lejepa")
BOTH = tuple(dict.fromkeys(peer.split()[1] for peer in PEERS))  # methods of ours that a peer has
TUNED_TOO = tuple(name + TUNED for name in (*BOTH, *PEERS))  # by the same grid: tuning.py
# Of the example's rate of 0.06, with which it diverges within eight steps: the best of 1/3, 1/10 and 1/30, by images
# that were held out of the training part of another seed.
RATES = {f"{LIGHTLY} vicreg": 0.1}
UNTRAINED = "untrained "  # and a method whose default recipe names a backbone: that, with its settings
OWN = {
    UNTRAINED + name: recipe["backbone"]
    for name in ALONE
    if "backbone" in (recipe := installed().get("method", name).recipes["default"])
}
BASELINES = ("raw pixels", "random init", *OWN, "supervised")
NO_PROBES = {"every": EPOCHS, "queries": 100, "bank": 100, "online_queries": 100, "online_bank": 100}
COLUMNS = ("system", "seeds", "k-NN", "linear probe", "fine-tuned", "from scratch", "z std ratio", "RankMe", "minutes")
ACCURACIES = ("knn", "linear", "finetuned", "scratch")
FEW = 0.01  # of the labels, for methods that are judged by fine-tuning: with more a drawn shape needs no start


@dataclass(frozen=True)
class Job:
    """One run of one system."""

    data: str
    system: str  # a method's or a variant's name, a baseline, or "PEER NAME"
    seed: int

    @property
    def source(self) -> akssl_core.DatasetSource:
        """Its data."""
        return akssl_core.build("data", **DATA[self.data])  # type: ignore[no-any-return]


def read_cifar(folder: Path, sweeps: Path | None) -> None:
    """CIFAR-10 of a folder with train/ and test/, each with a folder of files a class, by a table beside the sweeps."""
    table = (sweeps or Path(tempfile.mkdtemp())).absolute() / f"{CIFAR}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    classes = sorted(path for path in (folder / "train").iterdir() if path.is_dir())
    write_table([image for of in classes for image in sorted(of.iterdir())[: IMAGES // len(classes)]], table)
    DATA[CIFAR] = {
        "name": "folder",
        "path": str(table),
        "root": str(folder.absolute()),
        "test": str(folder.absolute() / "test"),
    }


def write_table(images: Sequence[Path], table: Path) -> None:
    """A table of files and their labels, the names of their folders."""
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((image.absolute(), image.parent.name) for image in images)])


def know(sets: dict[str, dict[str, Any]]) -> None:
    """Tell a new process of the data sets."""
    DATA.update(sets)


def systems_on(data: str) -> list[str]:
    """What is trained on a data set, in the table's order."""
    others = {"shapes": [*VARIANTS, *SLOW], CIFAR: [*RECIPES, *LONGER, *TUNED_TOO]}.get(data, [*VARIANTS])
    return [*BASELINES, *ALONE, *others, *(() if data == "fashion-mnist" else PEERS)]


def jobs(systems: list[str]) -> list[Job]:
    """These systems, or all of the table but what takes hours on drawn shapes: with the first seed, then the next."""
    found = []
    for data in DATA:
        for system in systems_on(data):
            once = system == "raw pixels" or (data == CIFAR and system in LONGER)  # nothing is drawn, or it takes hours
            seeds = SEEDS[data][:1] if once else SEEDS[data]
            if system in systems or not (systems or (data == "shapes" and system in SLOW)):
                found += [Job(data, system, seed) for seed in seeds]
    return sorted(found, key=lambda job: job.seed)


# -- one run --------------------------------------------------------------------------------------
def perform(
    job: Job, threads: int, precision: str, sweeps: Path | None = None, factors: Factors | None = None
) -> dict[str, Any]:
    """The scores of one job; `factors` are those that were chosen by default."""
    torch.set_num_threads(threads)
    whole, factors = job, factors or chosen(job.system)
    job = replace(job, system=job.system.removesuffix(TUNED))
    if job.system == "raw pixels":
        scores = score_pixels(job)
    elif job.system == "random init" or job.system in OWN:
        scores = score(job, *untrained(job, **OWN.get(job.system, {})))
    else:
        made = trained_by_peer(job, factors) if job.system in PEERS else trained(job, precision, sweeps, factors)
        backbone, preprocess, facts = made
        scores = {**score(job, backbone, preprocess), **facts}
    return {**asdict(whole), **scores, **(factors._asdict() if whole != job else {})}


def trained(
    job: Job, precision: str, sweeps: Path | None, factors: Factors
) -> tuple[Backbone, Preprocess, dict[str, float]]:
    """The backbone of one run of ours."""
    plugins = Plugins()
    if job.system == "supervised":
        plugins.load_file(HERE / "supervised.py")
    method, settings = {**VARIANTS, **RECIPES, **LONGER}.get(job.system, (job.system, {}))
    with tempfile.TemporaryDirectory() as folder:
        if sweeps and job.system in ALONE and factors == Factors():
            result = swept(job, sweeps / job.data, EPOCHS)
        else:
            takes = plugins.get("method", method).accepts  # over patch tokens: the recipe's own backbone
            backbone = BACKBONE if issubclass(plugins.get("backbone", BACKBONE), takes) else None
            if backbone is None and job.system in RECIPES:
                backbone = OF_TOKENS
            asked = {"data": DATA[job.data], "backbone": backbone, "epochs": EPOCHS, "precision": precision, **settings}
            asked |= changed(method, factors, **asked)
            result = akssl_core.run(
                method, seed=job.seed, out=Path(folder) / "run", report=False, plugins=plugins, evaluate=NO_PROBES,
                **asked,
            )  # fmt: skip
        last = result.history[-1]
        facts = {name: last[name] for name in ("z_std_ratio", "loss") if name in last}
        facts["minutes"] = round(seconds_of(result) / 60, 2)
        if plugins.get("method", method).headline == "finetune":
            found = akssl_core.evaluate(result.run_dir, "finetune", labels=FEW, seeds=1, plugins=plugins)
            of = {score.system: score.accuracy for score in found.scores}
            facts |= {"finetuned": of["trained"], "scratch": of["random init"]}
    return result.backbone, result.preprocess, facts


def seconds_of(result: akssl_core.Result) -> float:
    """Of training, by the rows of the run."""
    return sum(row["seconds"] for row in result.history)


def begin_sweep(data: str, sweep: Path, epochs: int) -> dict[str, Any]:
    """What the runs of a sweep have in common; its folder, as `akssl sweep` begins it."""
    common = {"data": DATA[data], "epochs": epochs}
    begin(sweep, None, common)
    return common


def swept(job: Job, sweep: Path, epochs: int) -> akssl_core.Result:
    """The run of a sweep, which is made if it is not there; the tables of the sweep are left to `akssl sweep`."""
    one = Combination(job.system, {}, job.seed)
    folder, common = sweep / one.folder, begin_sweep(job.data, sweep, epochs)
    perform_one(folder, one, None, common, installed(), report=False)
    return akssl_core.resume(folder, report=False)


def untrained(job: Job, name: str = BACKBONE, **settings: Any) -> tuple[Backbone, Preprocess]:
    """A backbone as drawn from the seed."""
    source = job.source
    mean, std = source.mean, source.std
    if mean is None:
        pixels = source.train().fetch(range(IMAGES)).images.double().div(255).transpose(0, 1).flatten(1)
        mean, std = (tuple(of.tolist()) for of in (pixels.mean(1), pixels.std(1)))
    image = ImageSpec(source.natural_size, len(mean), mean, std)
    torch.manual_seed(job.seed)
    return akssl_core.build("backbone", name, image, **settings), Preprocess.of(image)


def trained_by_peer(job: Job, factors: Factors) -> tuple[Backbone, Preprocess, dict[str, float]]:
    """The same backbone, trained on the same images by another library."""
    import peers  # benchmark extra

    library, name = job.system.split()
    if library == STABLE:
        import peers_stable  # not among the extras: it says why

        make = peers_stable.METHODS[name]
    else:
        make = peers.METHODS[name]
    backbone, preprocess = untrained(job)
    images = job.source.train().fetch(range(IMAGES)).images
    given = {
        "epochs": EPOCHS,
        "seed": job.seed,
        "image": backbone.image,
        "methods": {name: painted(make, factors.colours)},
    }
    rate = RATES.get(job.system, 1.0) * factors.rate
    encoder, seconds = peers.train(name, images, backbone, rate=rate, **given)
    return encoder, preprocess, {"minutes": round(seconds / 60, 2)}


def score(job: Job, backbone: Backbone, preprocess: Preprocess) -> dict[str, float]:
    """k-NN and linear probe of the features, and how they fill their space."""
    bank, queries = job.source.probe()
    bank, queries = sample(bank, BANK), sample(queries, QUERIES)
    device = torch.device("cpu")
    rows = [embed(backbone, images, preprocess, device=device) for images in (bank, queries)]
    shape = spectrum(rows[1])
    return {
        **probes(rows[0], bank.labels, rows[1], queries.labels),
        "std_ratio": round(shape.std_ratio, 3),
        "rankme": round(shape.rankme, 1),
    }


def score_pixels(job: Job) -> dict[str, float]:
    """The same scores of the pixels themselves."""
    bank, queries = job.source.probe()
    bank, queries = sample(bank, BANK), sample(queries, QUERIES)
    preprocess = untrained(job)[1]
    rows = [pixels_as_features(images, preprocess) for images in (bank, queries)]
    return probes(rows[0], bank.labels, rows[1], queries.labels)


def probes(bank: Any, bank_labels: Any, queries: Any, query_labels: Any) -> dict[str, float]:
    """Accuracies in percent."""
    right = linear_guesses(bank, bank_labels, queries)[0] == query_labels
    nearest = knn(bank, bank_labels, queries, query_labels)
    return {"knn": round(nearest, 2), "linear": round(100 * right.double().mean().item(), 2)}


# -- the table ------------------------------------------------------------------------------------
def summary(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One line for each data set and system, in the table's order."""
    lines = []
    for data in SEEDS:
        for system in systems_on(data):
            mine = sorted((r for r in rows if r["data"] == data and r["system"] == system), key=lambda r: r["seed"])
            if mine:
                lines.append({"data": data, **line(system, mine)})
    return lines


def line(system: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Means over the seeds, accuracies with their standard deviation; of minutes, some on a busy machine, medians."""
    values = [system, str(len(rows)), *(over(rows, key) for key in ACCURACIES), over(rows, "z_std_ratio", 2)]
    minutes = [row["minutes"] for row in rows if "minutes" in row]
    values += [over(rows, "rankme"), f"{statistics.median(minutes):.1f}" if minutes else "-"]
    return dict(zip(COLUMNS, values, strict=True))


def over(rows: list[dict[str, Any]], key: str, digits: int = 1) -> str:
    """Mean and standard deviation of one value; a dash where it was not measured."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return "-"
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and key in ACCURACIES else text


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """The rows, their summary and the page."""
    caption = (
        f"{EPOCHS} epochs of {IMAGES} images ({EPOCHS * IMAGES} seen), default recipes, backbone `{BACKBONE}` "
        f"(`{OF_TOKENS}` for methods over patch tokens), accuracies in percent (mean ± standard deviation over seeds), "
        f"{os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__}."
    )
    lines = summary(rows)
    table = {"caption": caption, "columns": list(COLUMNS), "summary": lines, "rows": rows}
    file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    parts = ["# Accuracy", "", caption, ""]
    for data in dict.fromkeys(entry["data"] for entry in lines):
        cells = [[entry[name] for name in COLUMNS] for entry in lines if entry["data"] == data]
        parts += [f"## {data}", "", describe.markdown(COLUMNS, cells), ""]
    file.with_suffix(".md").write_text("\n".join(parts))


def job_of(row: dict[str, Any]) -> Job:
    """What a row was measured by."""
    return Job(row["data"], row["system"], row["seed"])


def as_chosen(row: dict[str, Any]) -> bool:
    """Whether a row has the factors that are chosen now, where it is of a tuned system."""
    return "rate" not in row or Factors(row["rate"], row["colours"]) == chosen(row["system"])


def main(given: list[str] | None = None) -> None:
    """Run what is asked for, and write the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "systems", nargs="*", help="only these methods, baselines or 'lightly NAME', 'stable-pretraining NAME'"
    )
    parser.add_argument("--work", type=Path, help="folder to keep rows in, and go on after them; another begins anew")
    parser.add_argument("--sweeps", type=Path, help="folder of a sweep for each data set: runs of default recipes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one share of cores each")
    parser.add_argument("--data", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="only these")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10: train/ and test/, a folder of files a class")
    parser.add_argument("--precision", default="auto", help="of our runs; another than auto has a table of its own")
    arguments = parser.parse_args(given)
    if arguments.cifar is not None:
        read_cifar(arguments.cifar, arguments.sweeps)
    suffix = "" if arguments.precision == "auto" else f"-{arguments.precision}"
    file = RESULTS / f"accuracy{suffix}.json"
    RESULTS.mkdir(exist_ok=True)
    wanted = [job for job in jobs(arguments.systems) if job.data in arguments.data and job.seed in arguments.seeds]
    kept = Kept(arguments.work and arguments.work / f"rows{suffix}.jsonl")
    mine = [row for row in kept.rows if job_of(row) in wanted and as_chosen(row)]
    rows, done = [row for row in known(file) if job_of(row) not in wanted] + mine, set(map(job_of, mine))
    sweeps = arguments.sweeps if arguments.precision == "auto" else None
    for data in {job.data for job in wanted if sweeps and job.system in ALONE}:
        begin_sweep(data, sweeps / data, EPOCHS)  # before several processes do
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context("spawn")
    failed = []
    with ProcessPoolExecutor(arguments.jobs, context, initializer=know, initargs=(DATA,)) as pool:
        left = [job for job in wanted if job not in done]
        futures = {pool.submit(perform, job, threads, arguments.precision, sweeps): job for job in left}
        for future in as_completed(futures):
            if error := future.exception():  # the other runs go on
                failed.append(f"{futures[future]}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            rows.append(future.result())
            kept.add(rows[-1])
            print(json.dumps(rows[-1]), flush=True)
            write(rows, file)
    write(rows, file)
    if failed:
        sys.exit(f"{len(failed)} of {len(left)} runs failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()

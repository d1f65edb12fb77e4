"""Runs beside each other: the settings in which they differ, what came out, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import describe
from ..config.schema import leaves, user_path
from ..errors import ConfigError
from ..rundir.files import refuse_file, write_atomic
from .charts import CURVES
from .files import RunFiles, tell_damage, text_of
from .html import Html, join, page, section, table, tag
from .records import TRAINED, judgements
from .svg import Point, overlay_chart, series, short

COSTS = {"seconds": "seconds of training", "images_per_s": "images/s", "images_seen": "images seen"}
WIDEST = 40  # characters of a setting's value in a table of text


@dataclass(frozen=True, slots=True)
class Measured:
    """A number, and its 95 % interval where one is known."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """`61.4`, or `61.4 [60.2, 62.6]`; a dash where there is none."""
        if not math.isfinite(self.value):
            return "-"
        if self.low is None or self.high is None:
            return short(self.value)
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]"

    def record(self) -> dict[str, float | None]:
        """As plain values, fit for JSON."""
        found = {"value": self.value if math.isfinite(self.value) else None, "low": self.low, "high": self.high}
        return {key: value for key, value in found.items() if key == "value" or value is not None}


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in a comparison."""

    name: str
    path: Path
    status: str
    method: str
    settings: Mapping[str, Any]  # by dotted path
    metrics: Mapping[str, Measured]
    cost: Mapping[str, float]  # the keys of COSTS
    files: RunFiles

    @classmethod
    def read(cls, path: Path, name: str) -> Summary:
        """A run from its folder; raises what `RunFiles.read` does."""
        run = RunFiles.read(path)
        tell_damage(run)
        final = {key: Measured(value) for key, value in run.final.items() if key != "seconds"}
        return cls(
            name=name,
            path=path,
            status=str(run.manifest.get("status", "unknown")),
            method=str(run.manifest.get("method", run.setting("method.name"))),
            settings=dict(leaves(run.config)),
            metrics={**final, **_above(run), **dict(_evaluated(path))},
            cost=_cost(run),
            files=run,
        )

    @property
    def verdict(self) -> str:
        """The verdict in short; a dash where the run has not ended and shows no fault."""
        found = self.files.diagnosis
        return found.words if self.files.final or found.verdict != "healthy" else "-"

    def curve(self, name: str) -> list[Point]:
        """(epoch, value) of a number of the rows, gaps as NaN; empty where it was never finite."""
        points = self.files.column(name)
        return points if any(math.isfinite(y) for _, y in points) else []

    def record(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "status": self.status,
            "method": self.method,
            "verdict": self.verdict,
            "diagnosis": asdict(self.files.diagnosis),
            "metrics": {key: value.record() for key, value in self.metrics.items()},
            "cost": dict(self.cost),
        }


def _cost(run: RunFiles) -> dict[str, float]:
    """Over all rows: those of a resumed run hold the time before it was stopped too."""
    timed = [row for row in run.rows if isinstance(row.get("seconds"), int | float)]
    seconds = math.fsum(row["seconds"] for row in timed)
    seen = math.fsum(row["seconds"] * (row.get("images_per_s") or 0.0) for row in timed)
    batch = run.setting("train.batch_size")
    found = {"seconds": seconds} if timed else {}
    found |= {"images_per_s": seen / seconds} if seconds > 0 else {}
    found |= {"images_seen": float(run.rows[-1]["step"] * batch)} if run.rows and isinstance(batch, int) else {}
    return found


def _above(run: RunFiles) -> dict[str, Measured]:
    """How many points the final k-NN is above each baseline, paired by test image."""
    return {f"knn_top1 - knn_{name}": Measured(by["mean"], by["low"], by["high"]) for name, by in run.above.items()}


def _evaluated(path: Path) -> Iterator[tuple[str, Measured]]:
    """The accuracies of the trained backbone that `akssl eval` has found: by protocol, data and share of the labels."""
    for share in judgements(path):
        if (score := share.scores().get(TRAINED)) is not None:
            yield (
                f"{share.protocol} on {share.data}, labels {share.labels}",
                Measured(score.accuracy, score.low, score.high),
            )


@dataclass(frozen=True, slots=True)
class Compared:
    """Some runs, and `settings`: the values of those that differ, by path and in the order of the runs."""

    runs: tuple[Summary, ...]
    """One summary a run, in the order of the folders."""
    settings: Mapping[str, tuple[Any, ...]]
    file: Path | None = None
    """The page, where one was written."""

    @property
    def text(self) -> str:
        """Three tables, as `akssl compare` prints them: settings that differ, final numbers, cost."""
        names = [run.name for run in self.runs]
        chosen = [[path, *(_narrow(text_of(value)) for value in values)] for path, values in self.settings.items()]
        parts = [describe.table(["setting", *names], chosen) if chosen else "All settings are the same."]
        parts += [describe.table(*_score_table(self.runs))]
        parts += [
            describe.table(["run", *COSTS.values()], _costs(self.runs)),
            *([f"The page: {self.file}"] if self.file else []),
        ]
        return "\n\n".join(parts)

    def record(self) -> dict[str, Any]:
        """Everything as plain values, fit for JSON."""
        return {
            "runs": [run.record() for run in self.runs],
            "settings": {path: list(values) for path, values in self.settings.items()},
        }

    def page(self, title: str = "Comparison of runs", *, first: Sequence[Html] = ()) -> str:
        """Everything and the curves as one self-contained HTML document; `first` stands before them."""
        runs, header = self.runs, tag("header", tag("h1", title), tag("div", f"{len(self.runs)} runs", class_="quiet"))
        scores = section("Scores", table(*_score_table(runs), kind="numbers"))
        costs = section("Cost", table(["Run", *COSTS.values()], _costs(runs), kind="numbers"))
        return page(title, header, *first, scores, *_curves(runs), costs, *_settings(runs, self.settings))


def compare(*run_dirs: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Compared:
    """Put runs beside each other; with `out`, as one HTML page too, in place of a file there with `overwrite`.

    Numbers carry a 95 % interval where `akssl eval` has left one in the run's `evaluation.json`.

    Raises:
        ConfigError: no runs are named, or the page cannot be written there.
        RunDirError: a folder holds no run.
    """
    if not run_dirs:
        raise ConfigError("compare: expected the folders of two or more runs, got none.")
    file = None if out is None else user_path(out)
    if file is not None:
        refuse_file(file, overwrite=overwrite, name="out", page=True)
    found = compared(list(dict.fromkeys(map(user_path, run_dirs))))
    if file is not None:
        write_atomic(file, found.page().encode())
        found = replace(found, file=file)
    return found


def compared(paths: Sequence[Path]) -> Compared:
    """The runs in these folders, named by their folders as far as that tells them apart."""
    short = [path.resolve().name for path in paths]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    runs = tuple(Summary.read(path, name) for path, name in zip(paths, names, strict=True))
    known = dict.fromkeys(path for run in runs for path in run.settings)
    values = {
        path: tuple(run.settings.get(path, run.settings.get(path.removesuffix(".start"))) for run in runs)
        for path in known
        if f"{path}.start" not in known  # a number that stands for a schedule of another run
    }
    return Compared(runs, {path: of for path, of in values.items() if any(value != of[0] for value in of)})


def _narrow(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


# -- the page: one self-contained file made of the report's own pieces -----------------------------
def _score_table(runs: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table: every number that one of the runs has, and the verdicts."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    numbers = [[number(run.metrics.get(name)) for name in names] for run in runs]
    lines = [[run.name, run.method, run.status, *of, run.verdict] for run, of in zip(runs, numbers, strict=True)]
    return ["run", "method", "status", *names, "verdict"], lines


def number(value: Measured | float | None) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else str(value) if isinstance(value, Measured) else short(value)


def _curves(runs: Sequence[Summary]) -> list[Html]:
    """One chart for each number that any of the runs has, with all runs in it; a run keeps its colour in all charts."""
    figures = []
    for name, title in CURVES.items():
        curves = [(run.name, run.curve(name)) for run in runs]
        if any(points for _, points in curves):
            chart = overlay_chart(curves, title=title, x_label="epoch")
            figures.append(tag("figure", tag("h3", title), chart))
    if not figures:
        return []
    legend = tag("ul", *(tag("li", _swatch(i), run.name) for i, run in enumerate(runs)), class_="runs")
    return [section("Curves", legend, tag("div", *figures, class_="charts"))]


def _swatch(place: int) -> Html:
    """The line of the nth run."""
    line = tag("g", tag("path", d="M0 5L28 5", class_="curve"), class_=series(place))
    return tag("svg", line, viewBox="0 0 28 10", aria_hidden="true")


def _costs(runs: Sequence[Summary]) -> list[list[str]]:
    return [[run.name, *(number(run.cost.get(key)) for key in COSTS)] for run in runs]


def _settings(runs: Sequence[Summary], settings: Mapping[str, Sequence[Any]]) -> list[Html]:
    if not settings:
        return [section("Settings that differ", tag("p", "None."))] if len(runs) > 1 else []
    rows = [[path, *(tag("span", text_of(value), class_="value") for value in of)] for path, of in settings.items()]
    return [section("Settings that differ", join([table(["Setting", *(run.name for run in runs)], rows)]))]

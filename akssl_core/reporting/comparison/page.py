"""The page of a comparison: one self-contained file made of the report's own pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..charts import CURVES
from ..files import text_of
from ..html import Html, join, page, section, table, tag
from ..svg import overlay_chart, series, short
from .summary import COSTS, Measured, Summary


def comparison_page(
    runs: Sequence[Summary], settings: Mapping[str, Sequence[Any]], *, title: str, first: Sequence[Html] = ()
) -> str:
    """A whole HTML document: scores, curves, cost, settings that differ; `first` stands before them."""
    header = tag("header", tag("h1", title), tag("div", f"{len(runs)} runs", class_="quiet"))
    return page(title, header, *first, *_scores(runs), *_curves(runs), *_cost(runs), *_settings(runs, settings))


def score_table(runs: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table: every number that one of the runs has, and the verdicts."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    numbers = [[number(run.metrics.get(name)) for name in names] for run in runs]
    lines = [[run.name, run.method, run.status, *of, run.verdict] for run, of in zip(runs, numbers, strict=True)]
    return ["run", "method", "status", *names, "verdict"], lines


def number(value: Measured | float | None) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else str(value) if isinstance(value, Measured) else short(value)


def _scores(runs: Sequence[Summary]) -> list[Html]:
    return [section("Scores", table(*score_table(runs), kind="numbers"))]


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


def _cost(runs: Sequence[Summary]) -> list[Html]:
    rows = [[run.name, *(number(run.cost.get(key)) for key in COSTS)] for run in runs]
    return [section("Cost", table(["Run", *COSTS.values()], rows, kind="numbers"))]


def _settings(runs: Sequence[Summary], settings: Mapping[str, Sequence[Any]]) -> list[Html]:
    if not settings:
        return [section("Settings that differ", tag("p", "None."))] if len(runs) > 1 else []
    rows = [[path, *(tag("span", text_of(value), class_="value") for value in of)] for path, of in settings.items()]
    return [section("Settings that differ", join([table(["Setting", *(run.name for run in runs)], rows)]))]

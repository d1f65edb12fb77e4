"""The sections of numbers: final scores as bars, curves, how much of the space features fill, where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.diagnosis import collapse_bound
from .files import RunFiles, drawable
from .html import Html, details, section, table, tag
from .svg import Point, line_chart, short

SCORES = {
    "knn_top1": "trained backbone",
    "knn_start": "the weights it began from",
    "knn_random_init": "same backbone, untrained",
    "knn_raw_pixels": "raw pixels",
}
MEANINGS = {
    "loss": "of the last rows, as the method minimises it",
    "std_ratio": "spread of the features: 1 when they point everywhere, 0 when they are all the same",
    "rankme": "effective number of dimensions that the features use (RankMe)",
    "alpha_req": "how fast the spectrum of the features falls: near 1 is good (alpha-ReQ)",
    "uniformity": "near -4 when features point everywhere, 0 when they are all the same",
    "alignment": "squared distance of two views' features: 0 when they agree, 2 when they are unrelated",
    "lidar": "effective number of directions that tell images apart rather than views (LiDAR)",
    "seconds": "training and evaluation together",
}
CURVES = {
    "loss": "Loss",
    "knn_top1": "k-NN accuracy, %",
    "std_ratio": "Std ratio (1 healthy, 0 collapsed)",
    "rankme": "RankMe, effective dimensions",
    "lr": "Learning rate",
    "images_per_s": "Images per second",
}
TIMES = "time_"
NOT_DRAWN = ("step", "epoch", "seconds")
MOST_ROWS = 40


# -- final scores ---------------------------------------------------------------------------------
def scores(run: RunFiles) -> list[Html]:
    """The final scores: accuracies side by side as bars, then everything else."""
    if not run.final:
        return []
    bars = [(label, run.final[key], _above(run, key)) for key, label in SCORES.items() if key in run.final]
    classes = run.manifest.get("data", {}).get("classes")
    if bars and isinstance(classes, int) and classes > 0:
        bars.append((f"chance ({classes} classes)", 100 / classes, ""))
    rest = [[key, short(value), MEANINGS.get(key, "")] for key, value in run.final.items() if key not in SCORES]
    parts = [_bars(run, bars)] if bars else []
    return [section("Scores", *parts, table(["Number", "Value", "Meaning"], rest) if rest else "")]


def _bars(run: RunFiles, bars: Sequence[tuple[str, float, str]]) -> Html:
    k = run.setting("evaluate.k")
    caption = (
        f"Accuracy of a {f'{k}-NN' if k else 'k-NN'} classifier on frozen features, in percent, and how many points "
        "the trained backbone is above, paired by test image, with 95 % intervals"
    )
    rows = [
        [label, f"{value:.1f}", above, _bar(value, own=label == SCORES["knn_top1"])] for label, value, above in bars
    ]
    return table(["Features", "Accuracy", "Trained is above by", ""], rows, caption=caption, kind="bars")


def _above(run: RunFiles, key: str) -> str:
    """How many points the trained backbone is above a baseline, where that is known."""
    by = run.above.get(key.removeprefix("knn_"))
    return f"{by['mean']:+.1f} [{by['low']:+.1f}, {by['high']:+.1f}]" if by else ""


def _bar(percent: float, *, own: bool) -> Html:
    width = f"width: {max(0.0, min(percent, 100.0)):.1f}%"
    fill = tag("div", class_="fill own" if own else "fill", style=width)
    return tag("div", fill, class_="track", aria_hidden="true")


# -- curves ---------------------------------------------------------------------------------------
def curves(run: RunFiles) -> list[Html]:
    """A chart for every number of the rows that was finite at least once."""
    names = [*CURVES, *_terms(run)]
    drawn = [figure for name in names if (figure := _figure(run, name))]
    return [section("Curves", tag("div", *drawn, class_="charts"), _numbers(run))] if drawn else []


def _terms(run: RunFiles) -> list[str]:
    """The further terms that the method logs, in the order in which they appear."""
    names = dict.fromkeys(name for row in run.rows for name in row)
    return [name for name in names if name not in (*CURVES, *NOT_DRAWN) and not name.startswith(TIMES)]


def _figure(run: RunFiles, name: str) -> Html | None:
    points = run.column(name)
    if not any(math.isfinite(y) for _, y in points):
        return None
    title = CURVES.get(name, name)
    chart = line_chart(points, title=title, x_label="epoch", marks=_marks(run, name))
    described = _described(run, name)
    said = [f"Expected: {described['shape']}"] if described.get("shape") else []
    said += [_held_against(described["expected"], points)] if described.get("expected") else []
    return tag("figure", tag("h3", title), chart, *(tag("figcaption", words) for words in said))


def _held_against(expected: Mapping[str, Any], points: Sequence[Point]) -> str:
    """Whether a curve goes as that of others of its recipe did, by the last epoch that is known of both."""
    epochs = expected["epochs"]
    known = {int(x): y for x, y in points if x == int(x) and 1 <= x <= len(epochs) and math.isfinite(y)}
    before = f"{expected['runs']} runs of this recipe on the same data ({expected['data']}) had reached"
    if not known:
        return f"{before} {epochs[-1]['mean']:.1f} % after {len(epochs)} epochs."
    epoch, reached = max(known.items())
    mean, low, high = (epochs[epoch - 1][name] for name in ("mean", "low", "high"))
    word = "less than expected" if reached < low else "more than expected" if reached > high else "as expected"
    return (
        f"{before} {mean:.1f} % after {epoch} of {len(epochs)} epochs, and {low:.1f} to {high:.1f} % is as expected of "
        f"another seed. This one has {reached:.1f} %: {word}."
    )


def _described(run: RunFiles, name: str) -> Mapping[str, Any]:
    """The method's description of this curve: "shape" in words, and "lines" to read it against."""
    found: Mapping[str, Any] = run.manifest.get("curves", {}).get(name, {})
    return found


def _marks(run: RunFiles, name: str) -> list[tuple[str, float]]:
    """Values that a curve is read against."""
    bound = collapse_bound(name)
    if bound is not None:
        return [("collapsed below", bound)]
    if name != "knn_top1":
        return [(label, value) for label, value in _described(run, name).get("lines", {}).items()]
    known: Mapping[str, float | None] = {**run.manifest.get("baselines", {}), **run.final}
    named = [(SCORES[key], known.get(key)) for key in SCORES if key != "knn_top1"]
    return [(label, value) for label, value in named if value is not None and math.isfinite(value)]


def _numbers(run: RunFiles) -> Html:
    """The rows behind the curves as a table, thinned to the last of each stretch."""
    columns = [*NOT_DRAWN, *(name for name in [*CURVES, *_terms(run)] if any(name in row for row in run.rows))]
    every = math.ceil(len(run.rows) / MOST_ROWS)
    shown = run.rows[::-1][::every][::-1]
    cells = [["" if row.get(name) is None else short(row[name]) for name in columns] for row in shown]
    return details("The numbers behind the curves", table(columns, cells, kind="numbers"))


def spectrum(run: RunFiles) -> list[Html]:
    """The variances along the principal directions of the features, on a logarithmic scale."""
    variances = run.samples.get("spectrum")
    if variances is None or not (variances > 0).any():
        return []
    points = [(float(i + 1), math.log10(v) if v > 0 else math.nan) for i, v in enumerate(variances.tolist())]
    title = "log10 of the share of variance"
    chart = tag("figure", tag("h3", title), line_chart(points, title=title, x_label="principal direction"))
    said = (
        "Features that use their space fall slowly; a cliff after a few directions is dimensional collapse "
        "(Jing et al. 2022, arXiv 2110.09348)."
    )
    return [section("Spectrum", tag("p", said, class_="quiet"), tag("div", chart, class_="charts"))]


# -- time -----------------------------------------------------------------------------------------
def times(run: RunFiles) -> list[Html]:
    """Where the wall-clock time went, over all rows."""
    spent: dict[str, float] = {}
    for row in run.rows:
        for name, value in row.items():
            if name.startswith(TIMES):
                part = name.removeprefix(TIMES)
                seconds = drawable(value) * drawable(row.get("seconds"))
                spent[part] = spent.get(part, 0.0) + (seconds if math.isfinite(seconds) else 0.0)
    total = sum(spent.values())
    if total <= 0:
        return []
    shares = [(part, 100 * value / total) for part, value in sorted(spent.items(), key=lambda item: -item[1])]
    rows = [[part, f"{share:.1f} %", _bar(share, own=False)] for part, share in shares]
    return [section("Time", table(["Part", "Share", ""], rows, caption="Share of the time spent", kind="bars"))]

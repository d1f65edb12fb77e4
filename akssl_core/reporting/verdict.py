"""The report's first sentence: whether the run learned something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..metrics import COLLAPSED_PROJECTION, COLLAPSED_STD
from .files import RunFiles, drawable
from .svg import short

CLEAR = 2.0  # points of accuracy; with 1000 queries the standard error of a k-NN score is up to 1.6


@dataclass(frozen=True, slots=True)
class Headline:
    """One sentence and how it is coloured."""

    tone: Literal["good", "bad", "open"]
    sentence: str


def headline(run: RunFiles) -> Headline:
    """What became of the run, in a sentence; of a run that failed to learn also why, and what to do."""
    if run.status == "running":
        return Headline("open", f"Still running{_so_far(run)}.")
    if run.status == "stopped":
        return Headline("open", f"Stopped{_so_far(run)}. Go on with: akssl resume {run.path}")
    if run.status == "failed":
        return Headline("bad", f"Failed{_so_far(run)}: {run.manifest.get('error', 'no reason was recorded')}")
    score = run.final.get("knn_top1")
    compared = None if score is None else _compare(score, _baselines(run))
    stuck = run.manifest.get("verdict") == "not learning"
    if compared and compared.tone == "good" and run.status != "collapsed" and not stuck:
        return compared  # accuracy is a better witness than any spread
    return _diagnosed(run) or _collapse(run) or compared or _without_labels(run)


def _diagnosed(run: RunFiles) -> Headline | None:
    """What the run itself found at its end."""
    found = run.manifest.get("diagnosis") or {}
    if not found.get("evidence"):
        return None
    verdict = str(found["verdict"]).capitalize()
    return Headline("bad", f"{verdict}: {found['evidence']} Cause: {found['cause']} What to do: {found['cure']}")


def collapse_bound(name: str) -> float | None:
    """The value below which a number of the rows tells of a collapse; None when it never does.

    Methods log the spread of their projections as `<what>_std_ratio`. A projector may collapse while the
    features before it still differ.
    """
    if not name.endswith("std_ratio"):
        return None
    return COLLAPSED_STD if name == "std_ratio" else COLLAPSED_PROJECTION


def _collapse(run: RunFiles) -> Headline | None:
    """The numbers at the end that tell of a collapse, or what the run itself said."""
    row = run.rows[-1] if run.rows else {}
    last = {**{name: drawable(value) for name, value in row.items()}, **run.final}
    bounds = {name: bound for name in last if (bound := collapse_bound(name)) is not None}
    low = [f"{name} {short(last[name])}" for name, bound in bounds.items() if not last[name] >= bound]
    if not low and run.status != "collapsed":
        return None
    found = f" ({', '.join(low)}; healthy is near 1, collapsed is 0)" if low else ""
    return Headline("bad", f"Collapsed: different images give nearly the same features or projections{found}.")


def _compare(score: float, baselines: dict[str, float]) -> Headline:
    """The score against the best of what needs no training."""
    if not baselines:
        return Headline("open", f"Finished: k-NN accuracy {score:.1f} %. No baseline was measured.")
    name, best = max(baselines.items(), key=lambda item: item[1])
    gain = f"k-NN accuracy {score:.1f} %, {name} {best:.1f} %"
    if score >= best + CLEAR:
        return Headline("good", f"Learned: {gain} ({score - best:+.1f} points).")
    if score > best:
        return Headline("open", f"Barely better than {name}: {gain} ({score - best:+.1f} points).")
    return Headline("bad", f"Did not beat {name}: {gain} ({score - best:+.1f} points).")


def _baselines(run: RunFiles) -> dict[str, float]:
    """What training is compared with, by a name that fits into a sentence."""
    named = {"raw pixels": "knn_raw_pixels", "the untrained backbone": "knn_random_init"}
    return {name: run.final[key] for name, key in named.items() if key in run.final}


def _so_far(run: RunFiles) -> str:
    """How far the run came, from its last row."""
    if not run.rows:
        return " before its first row of metrics"
    last = run.rows[-1]
    loss = f", loss {short(last['loss'])}" if last.get("loss") is not None else ""
    return f" at step {last['step']}, epoch {short(last['epoch'])}{loss}"


def _without_labels(run: RunFiles) -> Headline:
    """How the features fill their space, where that was measured."""
    known = [f"{name} {short(run.final[name])}" for name in ("std_ratio", "rankme") if name in run.final]
    spread = f": the features are spread ({', '.join(known)})" if known else ""
    return Headline("open", f"Finished{spread}. Without labels there is no accuracy to compare.")

"""The report's first sentence: whether the run learned something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..evaluation import COLLAPSED_STD
from .files import RunFiles
from .svg import short

CLEAR = 2.0  # points of accuracy; with 1000 queries the standard error of a k-NN score is up to 1.6


@dataclass(frozen=True, slots=True)
class Headline:
    """One sentence and how it is coloured."""

    tone: Literal["good", "bad", "open"]
    sentence: str


def headline(run: RunFiles) -> Headline:
    """What became of the run, in one sentence."""
    if run.status == "running":
        return Headline("open", f"Still running{_so_far(run)}.")
    if run.status == "stopped":
        return Headline("open", f"Stopped{_so_far(run)}. Go on with: akssl resume {run.path}")
    if run.status == "failed":
        return Headline("bad", f"Failed{_so_far(run)}: {run.manifest.get('error', 'no reason was recorded')}")
    std = run.final.get("std_ratio")
    if run.status == "collapsed" or (std is not None and not std >= COLLAPSED_STD):
        found = "" if std is None else f" (std ratio {short(std)}; healthy is near 1, collapsed is 0)"
        return Headline("bad", f"Collapsed: the features of different images are nearly the same{found}.")
    if "knn_top1" not in run.final:
        return Headline("open", f"Finished{_spread(run)}. Without labels there is no accuracy to compare.")
    return _compare(run.final["knn_top1"], _baselines(run))


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


def _spread(run: RunFiles) -> str:
    """How the features fill their space, where that was measured."""
    numbers = {"std ratio": run.final.get("std_ratio"), "RankMe": run.final.get("rankme")}
    known = [f"{name} {short(value)}" for name, value in numbers.items() if value is not None]
    return f": the features are spread ({', '.join(known)})" if known else ""

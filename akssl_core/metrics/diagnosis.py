"""Whether a run learns, is stuck or has collapsed: from its rows, with evidence, cause and cure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..method import Landmark
from .collapse import COLLAPSED_PROJECTION, COLLAPSED_STD, Verdict

STEPS = 50  # the stretch of last steps that must all agree
FEWEST_ROWS = 2  # in that stretch, or before it
CLEAR = 5.0  # points of k-NN accuracy above every baseline: no fault of that kind can be
HALF = 0.5  # of their first spread and of 1: healthy projections of all first-party methods keep more than 0.7
LEAST_RATE = 1e-7  # a smaller learning rate may move weights by less than they can hold

STEP, LOSS = "backbone_step", "loss"
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What became of a run; evidence, cause and cure are empty where it is healthy."""

    verdict: Literal["healthy", "not learning", "dimensional collapse", "collapsed"]
    evidence: str = ""
    cause: str = ""
    cure: str = ""

    def __str__(self) -> str:
        return (
            f"{self.verdict}: {self.evidence} Cause: {self.cause} Cure: {self.cure}" if self.evidence else self.verdict
        )


HEALTHY = Diagnosis("healthy")
ALIKE = "different images are all but the same"
FEW_DIRECTIONS = "the final features differ along less than 1 % of the directions that they could use."
USUAL = "a missing stop-gradient, centre or batch norm, a teacher that is not sharper than its student, or a huge step"
LOOK = (
    "look at what the method's paper does against collapse, lower optimizer.lr, and compare with the method's default "
    "recipe."
)


def diagnose(
    rows: Sequence[Row],
    landmarks: Sequence[Landmark] = (),
    *,
    scores: Mapping[str, float] | None = None,
    features: Verdict = "healthy",
    stopped: bool = False,
) -> Diagnosis:
    """The verdict on a run by its rows so far.

    Args:
        rows: those of metrics.jsonl, in order.
        landmarks: of the method; they are looked at before the general ones, for they know the cause.
        scores: final numbers; k-NN accuracy well above all baselines outweighs what any spread says.
        features: what the spread of the final features says.
        stopped: the run was stopped as collapsed, so that no accuracy outweighs what its rows say.
    """
    if rows and _gone([rows[-1].get(LOSS, 0.0)]):
        return Diagnosis(
            "not learning",
            f"the loss of step {rows[-1]['step']} is not a finite number.",
            "the steps are too large, or a number overflows at this precision.",
            "lower optimizer.lr, set train.clip, or use --precision fp32.",
        )
    learned = not stopped and _clearly_learned(scores or {})
    for landmark in (*landmarks, NO_GRADIENT, *(() if learned else spreads(rows, ended=scores is not None))):
        if evidence := _at(landmark, rows):
            return Diagnosis(landmark.verdict, evidence, landmark.cause, landmark.cure)
    if not learned and features != "healthy":
        evidence = f"the final features say that {ALIKE}." if features == "collapsed" else FEW_DIRECTIONS
        return Diagnosis(features, evidence, f"{USUAL}.", LOOK)
    return HEALTHY


NO_GRADIENT = Landmark(
    "not learning",
    {STEP: (0.0, 0.0), "lr": (LEAST_RATE, math.inf)},
    "the backbone does not move while the learning rate is above 0",
    "no gradient reaches the backbone: something between it and the loss is detached, under no_grad or frozen.",
    "look for .detach(), torch.no_grad() and requires_grad_(False) on the way from the features to the loss; only "
    "targets are cut off.",
    after=20,
    throughout=True,
)


def spreads(rows: Sequence[Row], *, ended: bool) -> list[Landmark]:
    """The landmarks of every run whose features, or whose method's projections, have their spread in the rows.

    Projections of some networks begin almost parallel (ReLU features share a large mean) and spread with time: where
    they did, the bound holds at the end alone.
    """
    found: list[Landmark] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        if name == "std_ratio":
            found.append(_alike(name, COLLAPSED_STD, f"the features of {ALIKE}", after=100))
        elif name.endswith("std_ratio") and (start := _first(rows, name)) is not None:
            if ended or start >= 2 * COLLAPSED_PROJECTION:
                found.append(_alike(name, COLLAPSED_PROJECTION, f"the projections of {ALIKE}", after=20))
            shrunk = f"the projections shrink together, from {start:.3g} at first"
            found.append(_alike(name, HALF * min(start, 1.0), shrunk, after=100))
    return found


def _alike(name: str, bound: float, meaning: str, after: int) -> Landmark:
    return Landmark("collapsed", {name: (0.0, bound)}, meaning, f"{USUAL}.", LOOK, after)


def _first(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in rows if row.get(name) is not None), None)


def _at(landmark: Landmark, rows: Sequence[Row]) -> str:
    """The evidence that the last rows are at a landmark; nothing where they are not."""
    told = [row for row in rows if all(name in row for name in landmark.where)]
    if not told or told[-1]["step"] < landmark.after:
        return ""
    last = told[-1]["step"]
    recent = [row for row in told if landmark.throughout or row["step"] > last - STEPS]
    recent = recent if len(recent) >= FEWEST_ROWS else told[-FEWEST_ROWS:]
    if len(recent) < FEWEST_ROWS or not all(_between(row[n], *b) for row in recent for n, b in landmark.where.items()):
        return ""
    values = ", ".join(f"{name} {told[-1][name]:.4g} ({_bounds(*b)})" for name, b in landmark.where.items())
    return f"{landmark.meaning}: {values} in {len(recent)} rows up to step {last}."


def _between(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


def _bounds(low: float, high: float) -> str:
    if low == high:
        return f"bound: {low:.4g}"
    if high == math.inf:
        return f"bound: above {low:.4g}"
    return f"bound: below {high:.4g}" if low in (0.0, -math.inf) else f"bounds: {low:.4g} to {high:.4g}"


def _gone(values: Sequence[float | None]) -> bool:
    return any(value is None or not math.isfinite(value) for value in values)


def _clearly_learned(scores: Mapping[str, float]) -> bool:
    baselines = [scores[name] for name in ("knn_raw_pixels", "knn_random_init") if name in scores]
    return bool(baselines) and scores.get("knn_top1", -math.inf) >= max(baselines) + CLEAR

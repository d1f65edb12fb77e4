"""The verdict on a run: its health, with evidence, cause and cure, and whether it beat what needs no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from ..method import Headline, Landmark
from .health import Spectrum
from .interval import NORMAL, Interval

Rows = Sequence[Mapping[str, Any]]
Verdict = Literal["healthy", "not learning", "dimensional collapse", "collapsed"]

COLLAPSED_STD = 0.01  # of features; below, the mean cosine between two images is above 0.9999
COLLAPSED_PROJECTION = 0.1  # of projections, which a method spreads on purpose; below, it is above 0.99
COLLAPSED_RANK = 0.01  # below: less than this share of the dimensions that could be in use is
STEPS = 50  # the stretch of last steps that must all agree
FEWEST_ROWS = 2  # in that stretch, or before it
HALF = 0.5  # of their first spread and of 1: healthy projections of all first-party methods keep more than 0.7
LEAST_RATE = 1e-7  # a smaller learning rate may move weights by less than they can hold
QUERIES = 1000  # images that an accuracy is taken to be of where their answers were not recorded

STEP, LOSS, LEARNED = "backbone_step", "loss", "learned"
BELOW, WORSE, UNJUDGED = "did not beat", "worse than the start", "not judged by"
JUDGES = {"knn": "k-NN", "linear": "a linear probe", "finetune": "fine-tuning"}
BASELINES = {"raw_pixels": "raw pixels", "random_init": "the untrained backbone", "start": "the start"}
"""What needs no training, by the ends of the names of its numbers: knn_raw_pixels."""
START = "start"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict on a run, in the words in which everything that shows it does."""

    verdict: Verdict
    """Its health: whether a fault was seen."""
    evidence: str = ""
    """The numbers behind it, in a sentence."""
    cause: str = ""
    """The usual reason of it; empty where there is nothing to mend."""
    cure: str = ""
    """How to mend it."""
    outcome: str = ""
    """Learned, barely better than ..., did not beat ..., worse than the start, not judged by ... yet; empty before the
    end, without labels or baselines, and where a fault was seen although the accuracy is good."""

    @property
    def words(self) -> str:
        """The verdict in short: "healthy, learned"."""
        but = "but " if self.verdict == "healthy" and self.outcome != LEARNED else ""
        return f"{self.verdict}, {but}{self.outcome}" if self.outcome else self.verdict

    @property
    def fell_short(self) -> bool:
        """Whether something that needs no training is as good or better."""
        return self.outcome.startswith((BELOW, WORSE))

    def __str__(self) -> str:
        parts = [f"{self.words}: {self.evidence}" if self.evidence else f"{self.words}."]
        return " ".join([*parts, *([f"Cause: {self.cause}", f"Cure: {self.cure}"] if self.cause else [])])


ALIKE = "different images are all but the same"
FEW_DIRECTIONS = "the final features differ along less than 1 % of the directions that they could use."
USUAL = (
    "a missing stop-gradient, centre or batch norm, a teacher that is not sharper than its student, a huge step, or "
    "images that are all alike themselves"
)
LOOK = (
    "look at what the method's paper does against collapse, lower optimizer.lr, and compare with the method's default "
    "recipe."
)
NO_GAIN = "what it learns is not what the labels ask for, or it trained too little."
GAIN_MORE = "train longer, or try other settings (akssl sweep, akssl choose) and milder views."
UNDONE = "training has undone what the start knew: its steps were too large, or new heads pulled the backbone along."
KEEP = (
    "'akssl adapt', which returns the best of the start, what it became and their mixtures; a lower optimizer.lr, by "
    "three to ten times; a longer start.warm_heads, so that heads learn before the backbone moves."
)


def diagnose(
    rows: Rows,
    landmarks: Sequence[Landmark] = (),
    *,
    scores: Mapping[str, float] | None = None,
    features: Verdict = "healthy",
    stopped: bool = False,
    paired: Mapping[str, Interval] = MappingProxyType({}),
    headline: Headline = "knn",
    collapses: bool = True,
) -> Diagnosis:
    """The verdict on a run by its rows so far.

    Args:
        rows: those of metrics.jsonl, in order.
        landmarks: of the method; they are looked at before the general ones, for they know the cause.
        scores: final numbers; k-NN accuracy clearly above all baselines outweighs what any spread says.
        features: what the spread of the final features says.
        stopped: the run was stopped as collapsed, so that no accuracy outweighs what its rows say.
        paired: how many points the k-NN is above each baseline, image by image, by the baseline's name: they decide
            what is clear.
        headline: the protocol that the method is judged by; of any other than k-NN the verdict says that it is to come.
        collapses: whether a spread can tell of a fault of this method.
    """
    outcome = ("", "") if scores is None else compare_scores(scores, paired)
    learned = not stopped and outcome[0] == LEARNED
    quiet = learned or not collapses
    fault = _fault(rows, landmarks, features=features, quiet=quiet, ended=scores is not None)
    if headline != "knn" and outcome[0] and fault is None:
        by = JUDGES[headline]
        said = f"{outcome[1]} This method is judged by {by}, which akssl eval has yet to do with all labels."
        return Diagnosis("healthy", said, outcome=f"{UNJUDGED} {by} yet")
    return _with_outcome(fault, *outcome)


def judged(headline: str, score: float, known: Mapping[str, float], above: Mapping[str, Interval]) -> Diagnosis:
    """The verdict on a healthy run by the protocol that its method is judged by: accuracies, and gains by baseline."""
    return _with_outcome(None, *_compare(f"accuracy by {JUDGES[headline]}", score, known, above))


def read_diagnosis(manifest: Mapping[str, Any], rows: Rows) -> Diagnosis:
    """The verdict that a run's manifest holds; made from its rows and scores where it holds none, or an earlier form.

    Before `outcome` was recorded, a verdict had evidence only where it was a bad one.
    """
    told = manifest.get("diagnosis")
    told = {key: str(value) for key, value in told.items()} if isinstance(told, Mapping) else {}
    known: dict[str, Any] = {field.name: told.get(field.name, "") for field in fields(Diagnosis)}
    if "outcome" in told:
        return Diagnosis(**known)
    scores = {name: value for name, value in (manifest.get("final") or {}).items() if value is not None} or None
    if told.get("evidence"):
        return _with_outcome(Diagnosis(**known), *(compare_scores(scores, {}) if scores else ("", "")))
    collapsed = manifest.get("status") == "collapsed"
    alike = collapsed or not (scores or {}).get("std_ratio", math.inf) >= COLLAPSED_STD
    features: Verdict = "collapsed" if alike else "healthy"
    collapses = bool(manifest.get("collapses", True))
    return diagnose(rows, scores=scores, features=features, stopped=collapsed, collapses=collapses)


def compare_scores(scores: Mapping[str, float], paired: Mapping[str, Interval]) -> tuple[str, str]:
    """The outcome of training by the final k-NN accuracies, and these in a sentence."""
    score = scores.get("knn_top1", math.nan)
    if not math.isfinite(score):
        spread = ", ".join(f"{name} {scores[name]:.4g}" for name in ("std_ratio", "rankme") if name in scores)
        return "", f"{f'{spread}; ' if spread else ''}without labels there is no accuracy to compare."
    known = {name: scores[f"knn_{name}"] for name in BASELINES if f"knn_{name}" in scores}
    above = {name: paired.get(name) or unpaired(score, of) for name, of in known.items()}
    return _compare("k-NN accuracy", score, known, above)


def _compare(what: str, score: float, known: Mapping[str, float], above: Mapping[str, Interval]) -> tuple[str, str]:
    said = ", ".join(_beside(BASELINES[name], of, above[name]) for name, of in known.items())
    return outcome_of(above), f"{what} {score:.1f} %; {said or 'no baseline was measured'}."


def _beside(name: str, accuracy: float, by: Interval) -> str:
    return f"{name} {accuracy:.1f} % ({by.mean:+.1f} points [{by.low:+.1f}, {by.high:+.1f}])"


def outcome_of(above: Mapping[str, Interval]) -> str:
    """The outcome of training by how far it is above each baseline."""
    if START in above and above[START].high < 0:
        return WORSE
    if not above:
        return ""
    if below := [BASELINES[name] for name, by in above.items() if not by.mean > 0]:
        return f"{BELOW} {' and '.join(below)}"
    if near := [BASELINES[name] for name, by in above.items() if by.low <= 0]:
        return f"barely better than {' and '.join(near)}"
    return LEARNED


def unpaired(score: float, of: float) -> Interval:
    """The 95 % interval of a difference of accuracies in percent of which nobody has the single answers."""
    by, chance = score - of, margin(score, of, QUERIES)
    return Interval(by, by - chance, by + chance)


def margin(first: float, second: float, queries: int) -> float:
    """Points by which two accuracies in percent, each of so many images, may differ by chance: a 95 % interval.

    The normal approximation, with one right and one wrong image added to each (Agresti and Caffo 2000).
    """
    shares = [(of / 100 * queries + 1) / (queries + 2) for of in (first, second)]
    return 100 * NORMAL * math.sqrt(sum(share * (1 - share) for share in shares) / (queries + 2))


def verdict(spectrum: Spectrum) -> Verdict:
    """The health of features by their spread alone.

    "collapsed": the standard deviation is under 1 % of that of features which point everywhere, or not a number.
    Untrained networks in eval mode set the bound: a ResNet-18 has 0.14, a ResNet-50 0.05, a ResNet-101 0.013,
    a ViT-B 0.7, while a constant encoder has less than 0.001. "dimensional collapse": images differ, but along
    less than 1 % of the directions that min(N, D) allows; the untrained networks use 1 to 40 %. Both bounds are
    low on purpose, for a false alarm would end a good run; a projector may collapse well before its backbone.
    """
    if not spectrum.std_ratio >= COLLAPSED_STD:
        return "collapsed"
    full = min(spectrum.count, spectrum.dim)
    if full > 1 and spectrum.rankme < 1 + COLLAPSED_RANK * (full - 1):
        return "dimensional collapse"
    return "healthy"


def collapse_bound(name: str) -> float | None:
    """The value below which a number of the rows tells of a collapse; None when it never does.

    Methods log the spread of their projections as `<what>_std_ratio`.
    """
    return {"std_ratio": COLLAPSED_STD}.get(name, COLLAPSED_PROJECTION) if name.endswith("std_ratio") else None


def _with_outcome(fault: Diagnosis | None, outcome: str, said: str) -> Diagnosis:
    """The whole verdict of a run: a fault is never said to have learned, but it is said that it fell short."""
    if fault is None:
        mend = (UNDONE, KEEP) if outcome == WORSE else (NO_GAIN, GAIN_MORE)
        return Diagnosis("healthy", said, *(mend if outcome not in ("", LEARNED) else ("", "")), outcome)
    if not outcome:
        return fault
    return replace(fault, evidence=f"{fault.evidence} {said}", outcome="" if outcome == LEARNED else outcome)


def _fault(
    rows: Rows, landmarks: Sequence[Landmark], *, features: Verdict, quiet: bool, ended: bool
) -> Diagnosis | None:
    """The first fault that a run shows; `quiet`: spreads tell nothing, for it has learned or cannot collapse."""
    last = rows[-1].get(LOSS, 0.0) if rows else 0.0
    if last is None or not math.isfinite(last):
        return Diagnosis(
            "not learning",
            f"the loss of step {rows[-1]['step']} is not a finite number.",
            "the steps are too large, or a number overflows at this precision.",
            "lower optimizer.lr, set train.clip, or use --precision fp32.",
        )
    for landmark in (*landmarks, NO_GRADIENT, *(() if quiet else spreads(rows, ended=ended))):
        if evidence := _at(landmark, rows):
            return Diagnosis(landmark.verdict, evidence, landmark.cause, landmark.cure)
    if quiet or features == "healthy":
        return None
    evidence = f"the final features say that {ALIKE}." if features == "collapsed" else FEW_DIRECTIONS
    return Diagnosis(features, evidence, f"{USUAL}.", LOOK)


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


def spreads(rows: Rows, *, ended: bool) -> list[Landmark]:
    """The landmarks of every run whose features, or whose method's projections, have their spread in the rows.

    Projections of some networks begin almost parallel (ReLU features share a large mean) and spread with time: where
    they did, the bound holds at the end alone.
    """
    found: list[Landmark] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        if name == "std_ratio":
            found.append(_alike(name, COLLAPSED_STD, f"the features of {ALIKE}", after=100))
        elif name.endswith("std_ratio") and (told := [row[name] for row in rows if row.get(name) is not None]):
            start = told[0]
            if ended or start >= 2 * COLLAPSED_PROJECTION:
                found.append(_alike(name, COLLAPSED_PROJECTION, f"the projections of {ALIKE}", after=20))
            shrunk = f"the projections shrink together, from {start:.3g} at first"
            found.append(_alike(name, HALF * min(start, 1.0), shrunk, after=100))
    return found


def _alike(name: str, bound: float, meaning: str, after: int) -> Landmark:
    return Landmark("collapsed", {name: (0.0, bound)}, meaning, f"{USUAL}.", LOOK, after)


def _at(landmark: Landmark, rows: Rows) -> str:
    """The evidence that the last rows are at a landmark; nothing where they are not."""
    told = [row for row in rows if all(name in row for name in landmark.where)]
    if not told or told[-1]["step"] < landmark.after:
        return ""
    last = told[-1]["step"]
    recent = [row for row in told if landmark.throughout or row["step"] > last - STEPS]
    recent = recent if len(recent) >= FEWEST_ROWS else told[-FEWEST_ROWS:]
    known = [(row[name], *bounds) for row in recent for name, bounds in landmark.where.items()]
    if len(recent) < FEWEST_ROWS or any(value is None or not low <= value <= high for value, low, high in known):
        return ""
    values = ", ".join(f"{name} {told[-1][name]:.4g} ({_bounds(*b)})" for name, b in landmark.where.items())
    return f"{landmark.meaning}: {values} in {len(recent)} rows up to step {last}."


def _bounds(low: float, high: float) -> str:
    if low == high:
        return f"bound: {low:.4g}"
    if high == math.inf:
        return f"bound: above {low:.4g}"
    return f"bound: below {high:.4g}" if low in (0.0, -math.inf) else f"bounds: {low:.4g} to {high:.4g}"

"""The result of an evaluation, as objects, as plain values and as one sentence, with its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import describe
from ..metrics.diagnosis import KEEP, START
from ..reporting.records import metric_of
from ..rundir.files import jsonable

TRAINED, RANDOM, PIXELS, GIVEN = "trained", "random init", "raw pixels", "given weights"
NAMES = {TRAINED: "top1", RANDOM: "random_init", PIXELS: "raw_pixels", START: "start", GIVEN: "given_weights"}
RECORDED = "protocol meaning interval data split labels k answer metrics scores comparisons notes"  # in this order
HOW = (
    "mean over the draws; 95 % interval: Student's t over the draws and the normal approximation over the test images "
    "(to which one right and one wrong are added), independent, so added in quadrature; differences are paired by draw "
    "and test image"
)


@dataclass(frozen=True, slots=True)
class Score:
    """The accuracy (or mean IoU) of one system in percent, with its 95 % interval and that of each draw of labels."""

    system: str
    """"trained", "random init", "raw pixels", "start" (the weights that the run began from) or "given weights"."""
    labels: float
    """Share of the labels, above 0 and at most 1."""
    images: int
    """Labelled images that the classifier learned from."""
    k: int | None
    """Neighbours, for k-NN alone."""
    accuracy: float
    low: float
    high: float
    draws: tuple[float, ...]
    """The accuracy of each draw of labels."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better the trained backbone is than another system, in points, with its 95 % interval."""

    against: str
    labels: float
    k: int | None
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """The result of a protocol. `answer` says in one sentence whether training has helped."""

    protocol: str
    """"knn", "linear", "finetune" or "segment"."""
    meaning: str
    """The protocol in words."""
    interval: str
    """How the intervals are computed."""
    data: str
    """The data in words: a path, or a source with its settings."""
    split: Mapping[str, Any]
    """Which images, how many, and how many in both parts."""
    k: int | None
    """Neighbours of the comparisons, the answer and `metrics`, for k-NN alone."""
    scores: tuple[Score, ...]
    """The accuracy of each system, share of labels and k."""
    comparisons: tuple[Comparison, ...]
    """The trained backbone against each other system."""
    notes: tuple[str, ...] = ()
    """Warnings for the reader of the numbers."""
    file: Path | None = None
    """The file that collects results; None: it could not be written."""

    @property
    def labels(self) -> tuple[float, ...]:
        """The shares of labels, as they were asked for."""
        return tuple(dict.fromkeys(score.labels for score in self.scores))

    @property
    def accuracy(self) -> float:
        """The trained backbone's accuracy (of a segmentation: mean IoU) in percent with the most labels."""
        return self._headline()[TRAINED].accuracy

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies with the most labels, named as those of a run: knn_top1, knn_random_init, knn_raw_pixels."""
        names = NAMES | ({TRAINED: "miou"} if self.protocol == "segment" else {})
        return {f"{self.protocol}_{names[system]}": score.accuracy for system, score in self._headline().items()}

    @property
    def answer(self) -> str:
        """One sentence that says whether it helped."""
        return sentence(self.scores, self.comparisons, self.k)

    @property
    def text(self) -> str:
        """A table of the scores, what they mean, and the answer: what `akssl eval` prints."""
        split = self.split
        with_k, number = self.protocol == "knn", metric_of(self.protocol)
        header = ["labels", "images", *(["k"] if with_k else []), "system", number, "95 % interval", "draws"]
        lines = [
            [
                f"{100 * score.labels:g} %",
                str(score.images),
                *([str(score.k)] if with_k else []),
                score.system,
                f"{score.accuracy:.2f} %",
                f"{score.low:.2f} to {score.high:.2f}",
                str(len(score.draws)),
            ]
            for score in self.scores
        ]
        both = split["overlap"]
        overlap = f"{both} test images are also training images" if both else "no equal image in both"
        return "\n".join(
            [
                f"Protocol: {self.protocol}, {self.meaning}",
                f"Data: {self.data}, {split['train_images']} training and {split['test_images']} test images of "
                f"{split['classes']} classes ({split['how']}); {overlap}",
                f"Interval: {self.interval}",
                "",
                describe.table(header, lines),
                "",
                *(f"Note: {note}" for note in self.notes),
                self.answer,
                *([f"Written: {self.file}"] if self.file else []),
            ]
        )

    def only(self, labels: float) -> Evaluation:
        """The part of the result that belongs to one share of the labels."""
        scores = tuple(score for score in self.scores if score.labels == labels)
        comparisons = tuple(one for one in self.comparisons if one.labels == labels)
        return replace(self, scores=scores, comparisons=comparisons)

    def record(self) -> dict[str, Any]:
        """Everything as plain values, fit for JSON."""
        known = asdict(self) | {name: getattr(self, name) for name in ("labels", "answer", "metrics")}
        found: dict[str, Any] = jsonable({name: known[name] for name in RECORDED.split()})
        return found

    def _headline(self) -> dict[str, Score]:
        most = max(self.labels)
        return {score.system: score for score in self.scores if score.labels == most and score.k == self.k}


def sentence(scores: Sequence[Score], comparisons: Sequence[Comparison], k: int | None) -> str:
    """Did it help? For each share of labels, from the intervals of the differences.

    "yes": better than the same backbone untrained, than raw pixels and than the weights that the run began from, all
    intervals above zero. "partly": better than untrained alone, and it says how the others stand. "cannot be told":
    the interval against untrained holds zero. "no": worse than untrained or, with what to do, than the start.
    """
    shares = list(dict.fromkeys(score.labels for score in scores))
    words: dict[str, list[float]] = {}
    for share in shares:
        words.setdefault(_word([one for one in comparisons if one.labels == share]), []).append(share)
    verdicts = "; ".join(f"{word} with {_shares(of)} of the labels" for word, of in words.items())
    first = shares[0]
    trained = next(s for s in scores if s.system == TRAINED and s.labels == first and s.k == k)
    than = " and ".join(_points(one) for one in comparisons if one.labels == first)
    where = f"with {_shares([first])} " if len(shares) > 1 else ""
    cure = f" Try {KEEP}" if any(one.against == START and one.high < 0 for one in comparisons) else ""
    return f"Did it help? {verdicts[0].upper()}{verdicts[1:]}: {where}{trained.accuracy:.1f} % is {than}.{cure}"


def _word(comparisons: Sequence[Comparison]) -> str:
    against = {one.against: one for one in comparisons}
    if against[RANDOM].low <= 0:
        return "no" if against[RANDOM].high < 0 else "cannot be told"
    if START in against and against[START].high < 0:
        return "no (worse than the start)"
    unsure = [_stands(against[name]) for name in (START, PIXELS) if name in against and against[name].low <= 0]
    return f"partly (better than untrained, {', '.join(unsure)})" if unsure else "yes"


def _points(one: Comparison) -> str:
    """The difference and its interval, with the digits that tell bounds from zero, where the answer hangs on them."""
    n = next((n for n in (1, 2, 3) if all(round(bound, n) for bound in (one.low, one.high) if bound)), 4)
    n = min(n, 2) if one.low <= 0 <= one.high else n
    side = "above" if one.difference >= 0 else "below"
    return f"{abs(one.difference):.{n}f} points {side} {one.against} [{one.low:+.{n}f}, {one.high:+.{n}f}]"


def _stands(one: Comparison) -> str:
    return f"{'worse' if one.high < 0 else 'not surely better'} than {one.against}"


def _shares(shares: Sequence[float]) -> str:
    """1 %, 10 % and 100 %."""
    texts = [f"{100 * share:g} %" for share in shares]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"

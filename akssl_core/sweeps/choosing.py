"""Which method and settings fit some images, found without labels: many short runs, few long ones, one to the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import describe
from ..config.schema import leaves, user_path
from ..data import ImageSet
from ..errors import ConfigError, shown
from ..exporting.backbone_file import load_backbone
from ..plugins.manager import Plugins, installed
from ..reporting.comparison import Summary
from ..reporting.svg import short
from ..rundir.files import json_bytes, write_atomic
from ..running.estimate import seconds_per_step
from ..running.launch import new_path
from ..running.plan import make_plan
from ..settings import Given, merged, seconds_of, sections, table_of
from .folder import EVERY, asked, begin, listed, none_can, perform, plan_of, refuse_own
from .grid import Combination, combinations
from .judge import told_apart

FEWER = 4  # of the candidates of a round one in so many goes on, with so many times the images
FORMAT = "akssl-choice-1"
COLUMNS = ("round", "candidate", "images seen", "seconds", "told apart", "k-NN (unused)", "verdict", "")

Tell = Callable[[str], None]
Steps = Callable[["_Candidate", int], int]  # of a candidate in a round, counted from 0


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate in one round."""

    candidate: str
    """The method, with the settings in which it differs from others."""
    run_dir: Path
    """Its run folder."""
    images_seen: int
    """Images trained on."""
    seconds: float
    """Of training, as its run counts them."""
    told_apart: float | None
    """The label-free score; None: it collapsed, or its features are not finite."""
    knn: float | None
    """k-NN accuracy in percent where there are labels: shown, never used."""
    verdict: str
    """Health and outcome of the run."""
    kept: bool = False
    """Whether it goes on to the next round; of the last, whether it is the one chosen."""

    @property
    def rank(self) -> tuple[bool, float]:
        """The best first."""
        return (self.told_apart is None, -(self.told_apart or 0.0))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The candidate that was chosen, and the rounds that led to it."""

    out: Path
    """The folder of all rounds."""
    run_dir: Path
    """The run that was chosen: a run folder like any other."""
    rounds: tuple[tuple[Trial, ...], ...]
    """The candidates of each round, the best first."""
    left_out: Mapping[str, str]
    """Candidates that could not be trained: why, by name."""

    @property
    def text(self) -> str:
        """All rounds as a table, and where the backbone is: what `akssl choose` prints."""
        rows = [
            [str(number), *_cells(trial), "kept" if trial.kept else ""]
            for number, trials in enumerate(self.rounds, 1)
            for trial in trials
        ]
        left = [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        use = [
            f"chosen: {self.run_dir}",
            f"Look at it: {self.run_dir / 'report.html'}",
            "  import akssl_core",
            f"  backbone = akssl_core.load_backbone({str(self.run_dir)!r})",
        ]
        return "\n".join([describe.table(COLUMNS, rows), *left, "", *use])

    def record(self) -> dict[str, Any]:
        """Everything as plain values, fit for JSON."""
        rounds = [[{**asdict(trial), "run_dir": str(trial.run_dir)} for trial in trials] for trials in self.rounds]
        return {"format": FORMAT, "run_dir": str(self.run_dir), "rounds": rounds, "left_out": dict(self.left_out)}


def choose(
    methods: str | Sequence[str] = EVERY,
    *,
    data: Any = None,
    out: str | Path | None = None,
    budget: str | float | None = None,
    epochs: int | None = None,
    varied: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    config: str | Path | Mapping[str, Any] | None = None,
    plugins: Plugins | None = None,
    tell: Tell = lambda text: None,
    **common: Any,
) -> Chosen:
    """Find the method and settings that fit images, without labels, and train them.

    Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all candidates are trained for a short time, a
    quarter of them, the best, anew for four times as long, and so on until one is left, which is trained to the end.
    The score of a round is `metrics.health.told_apart` on views that are the same for all. A run that has collapsed
    comes last. The same call again goes on with one that was stopped.

    Args:
        methods: names of methods, or "all" for every one that is installed and needs nothing but images.
        data: as for `run`; labels are not used. Default: drawn shapes.
        out: the folder for all of it. Default: a new one under `runs/`.
        budget: the time for all rounds together, the same for each: "30m", "2h" or seconds. How many steps of
            each candidate fit in is found by timing a few.
        epochs: instead of a budget, the passes over the images of the last round; then nothing depends on the clock.
        varied: settings by dotted path with the values to try: {"optimizer.lr": [0.1, 0.3]}.
        seed: of all runs.
        config: as for `run`, for all runs.
        plugins: another plugin manager than the process-wide one.
        tell: called with a line when a run begins or has failed.
        **common: any other keyword of `run`, the same for all runs.

    Raises:
        AksslError: a setting is wrong, no candidate can be trained, or `out` holds something else.
    """
    plugins = plugins or installed()
    allowed = _seconds(budget, epochs)
    values = {str(path): listed(str(path), given) for path, given in table_of("varied", varied or {}).items()}
    common = {**({} if data is None else {"data": data}), **common}
    _refuse_decided(common, values)
    named, every = asked(methods, plugins)
    planned = combinations(named, (seed,), values)
    path = new_path("choice") if out is None else user_path(out)
    search = _Search(path, config, common, plugins, tell)
    search.check(planned, all_of_them=every)
    tell(f"all rounds are in {path}")
    candidates = [one.folder for one in search.candidates]  # others would be trained for another time
    begin(search.out, config, common, rounds={"budget": budget, "epochs": epochs, "candidates": candidates})
    try:
        return search.narrowed(search.by_epochs(epochs or 1) if allowed is None else search.by_time(allowed))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"stopped; the same choose, with --out {path}, goes on with it") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """What there is to know of a candidate before it is trained."""

    combination: Combination
    given: Given
    images: int
    batch_size: int

    @property
    def name(self) -> str:
        """The method, with the settings that vary."""
        return self.combination.name

    @property
    def folder(self) -> str:
        """The name of its run folders."""
        return self.combination.folder


class _Search:
    """The candidates and the rounds."""

    def __init__(self, out: Path, config: Any, common: Mapping[str, Any], plugins: Plugins, tell: Tell) -> None:
        self.out, self.config, self.common, self.plugins, self.tell = out, config, common, plugins, tell
        self.candidates: list[_Candidate] = []
        self.images: ImageSet | None = None  # by which all are judged: those of the first candidate
        self.left_out: dict[str, str] = {}

    def check(self, planned: Sequence[Combination], *, all_of_them: bool) -> None:
        """Check all candidates before any is trained; of "all", those that need more than images are left out.

        Raises:
            AksslError: one that was named cannot be trained, or none can.
        """
        for one in planned:
            try:
                given, plan = plan_of(one, self.config, self.common, self.plugins)
            except Exception as error:
                if not all_of_them:
                    raise
                self._leave_out(one.name, error)
                continue
            self.candidates.append(_Candidate(one, given, len(plan.images), plan.spec.train.batch_size or 1))
            self.images = self.images or plan.images
        if not self.candidates:
            raise none_can(self.left_out)

    def counts(self) -> list[int]:
        """How many candidates each round has: 16, 4, 1."""
        found = [len(self.candidates)]
        while found[-1] > 1:
            found.append(math.ceil(found[-1] / FEWER))
        return found

    def by_epochs(self, epochs: int) -> Steps:
        """Steps of a candidate in a round, where all see as many images."""
        last = len(self.counts()) - 1

        def steps(one: _Candidate, number: int) -> int:
            return max(1, round(epochs * one.images / one.batch_size / float(FEWER) ** (last - number)))

        return steps

    def by_time(self, seconds: float) -> Steps:
        """Steps of a candidate in a round, where all have as much time; what a step takes is measured once."""
        file, counts = self.out / "seconds.json", self.counts()
        if not file.is_file():
            self.tell(f"timing steps of {len(self.candidates)} candidates")
            timed = {one.folder: seconds_per_step(make_plan(one.given, self.plugins))[0] for one in self.candidates}
            write_atomic(file, json_bytes(timed))
        each: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))

        def steps(one: _Candidate, number: int) -> int:
            return max(1, int(seconds / len(counts) / counts[number] / each[one.folder]))

        return steps

    def narrowed(self, steps: Steps) -> Chosen:
        """All rounds; the last one's best is chosen.

        Raises:
            ConfigError: no candidate of a round could be trained, or all collapsed.
        """
        rounds, left = [], list(self.candidates)
        for number, count in enumerate(self.counts()):
            trials: dict[_Candidate, Trial] = {}
            for one in left[:count]:
                self.tell(f"round {number + 1}: {one.name}, {steps(one, number)} steps")
                try:
                    trials[one] = self._tried(one, self.out / f"round-{number + 1}", steps(one, number))
                except Exception as error:  # whatever stops one run does not stop the others
                    self._leave_out(one.name, error)
            left = sorted(trials, key=lambda one: trials[one].rank)
            if not left or trials[left[0]].told_apart is None:
                why = next(iter(self.left_out.values()), "All have collapsed: give a larger budget or other methods.")
                raise ConfigError(f"choose: no candidate of round {number + 1} has learned anything. {why}")
            going = math.ceil(count / FEWER)
            rounds.append(tuple(replace(trials[one], kept=place < going) for place, one in enumerate(left)))
            self._write(rounds)
        return Chosen(self.out, rounds[-1][0].run_dir, tuple(rounds), self.left_out)

    def _tried(self, one: _Candidate, folder: Path, steps: int) -> Trial:
        """A candidate, trained from its beginning for so many steps."""
        epochs = math.ceil(steps / max(1, one.images // one.batch_size))
        length = {"train": {"steps": steps, "epochs": epochs}, "evaluate": {"every": epochs}}
        path = folder / one.folder
        folder.mkdir(parents=True, exist_ok=True)
        perform(path, one.combination, self.config, merged(sections(self.common), length), self.plugins, report=True)
        run = Summary.read(path, path.name)
        assert self.images is not None
        score = told_apart(load_backbone(path, plugins=self.plugins), self.images)
        lost = run.files.diagnosis.verdict == "collapsed" or not math.isfinite(score)
        return Trial(
            candidate=one.name,
            run_dir=path,
            images_seen=int(run.cost.get("images_seen", 0)),
            seconds=run.cost.get("seconds", 0.0),
            told_apart=None if lost else score,
            knn=run.metrics["knn_top1"].value if "knn_top1" in run.metrics else None,
            verdict=run.verdict,
        )

    def _leave_out(self, name: str, error: Exception) -> None:
        self.left_out[name] = str(error) or type(error).__name__
        self.tell(f"left out: {name}: {self.left_out[name]}")

    def _write(self, rounds: Sequence[tuple[Trial, ...]]) -> None:
        """What is known so far, for the eyes of those who wait."""
        found = Chosen(self.out, rounds[-1][0].run_dir, tuple(rounds), self.left_out)
        write_atomic(self.out / "choice.json", json_bytes(found.record()))


def _seconds(budget: str | float | None, epochs: int | None) -> float | None:
    """A budget in seconds; None where epochs are told.

    Raises:
        ConfigError: both are given or none, or it is no time.
    """
    if (budget is None) == (epochs is None):
        raise ConfigError("budget: give a time for all rounds, as 30m or 2h, or --epochs of the last one; not both.")
    if budget is None:
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ConfigError(f"epochs: expected 1 or more, got {shown(epochs)}.")
        return None
    return seconds_of(budget)


def _refuse_decided(common: Mapping[str, Any], varied: Mapping[str, Any]) -> None:
    """Refuse what would make runs of one round unlike long."""
    refuse_own(common)
    told = {path.removeprefix("train.") for path in (*dict(leaves(sections(common))), *varied)}
    if wrong := sorted(told & {"epochs", "steps"}):
        raise ConfigError(f"choose: '{wrong[0]}' follows from the budget. Give budget or epochs alone.")


def _cells(trial: Trial) -> list[str]:
    numbers = [short(value) if value is not None else "-" for value in (trial.told_apart, trial.knn)]
    return [trial.candidate, str(trial.images_seen), f"{trial.seconds:.0f}", *numbers, trial.verdict]

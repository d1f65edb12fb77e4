"""What happens around training: rows of metrics, probes of the encoder, checkpoints, a progress bar."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from . import dist
from .config import Component, Ref, Schema
from .console import attended, say
from .data.base import ImageSet
from .data.preprocess import Preprocess
from .errors import AksslError, RunStopped
from .evaluation import Verdict, embed, knn, of_features, pixels_as_features, spectrum, verdict
from .interrupt import Interrupted, Signals
from .optim import state_by_name
from .rundir import RunDir
from .sharding import gathered, share_of

if TYPE_CHECKING:
    from .backbone import Backbone
    from .engine import Engine, Terms


CURE = "Lower optimizer.lr, set train.clip, or use --precision fp32; the last checkpoint is from before."


class Diverged(RunStopped):
    """The loss is no longer a number."""


class Callback(Component):
    """Something that happens around training, in the order in which the run lists it."""

    kind = "callback"

    def __init__(self, config: Any) -> None:
        self.config = config

    def on_start(self, engine: Engine) -> None:
        """Before the first step of this process; `engine.now` tells where a resumed run stands."""

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """After each optimizer step. Reading `terms` makes the host wait for the device."""

    def on_epoch(self, engine: Engine) -> None:
        """After each epoch, and when a run ends within one."""

    def on_end(self, engine: Engine) -> None:
        """After the last step."""

    def state(self) -> dict[str, Any]:
        """What a resumed run must know to go on as if it had not stopped; JSON, stored with each checkpoint.

        Called in every process; that of the main one is kept.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, before `on_start`."""


class Logger(Component):
    """Observes a run from the main process and never sees the engine, so it cannot change what is trained.

    It is listed among a run's callbacks. If it raises, it is dropped with one warning and the run goes on.
    """

    kind = "callback"

    def __init__(self, config: Any) -> None:
        self.config = config

    def on_run(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """Before the first row of this process: the resolved settings, and the folder that later holds everything."""

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Each row of `metrics.jsonl`, as it is written."""

    def on_finish(self, metrics: Mapping[str, float] | None) -> None:
        """When the run ends: the final numbers, or None when it was stopped or failed."""


def _dropped(logger: str, error: Exception) -> None:
    warnings.warn(f"logger '{logger}' failed and is dropped: {error!r}", stacklevel=3)


class Observers:
    """The loggers of a run, told one after the other; one that raises hears nothing more."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    @classmethod
    def built(cls, refs: Sequence[Ref]) -> Observers:
        """The loggers that a run lists, without those that cannot be built.

        Raises:
            AksslError: one of them was told something that the user can mend.
        """
        loggers = []
        for ref in refs:
            try:
                loggers.append(ref.build())
            except AksslError:
                raise
            except Exception as error:  # as below
                _dropped(ref.name, error)
        return cls(loggers)

    def tell(self, event: Literal["on_run", "on_row", "on_finish"], *facts: Any) -> None:
        """Call one method of every logger, in the main process alone."""
        for logger in list(self.loggers) if dist.is_main() else ():
            try:
                getattr(logger, event)(*facts)
            except Exception as error:  # an observer must not stop a run
                self.loggers.remove(logger)
                _dropped(logger.name, error)


class EvaluateSpec(Schema):
    """How the encoder is probed while it trains and at the end."""

    every: float | None = Field(None, gt=0, description="epochs between probes; null: about ten in a run")
    k: int = Field(20, ge=1, description="neighbours of the k-NN probe")
    temperature: float = Field(0.07, gt=0, description="temperature of the k-NN votes")
    online_bank: int = Field(2000, ge=2, description="labelled images an online probe searches")
    online_queries: int = Field(1000, ge=2, description="images an online probe asks for")
    bank: int = Field(20_000, ge=2, description="labelled images the final k-NN searches")
    queries: int = Field(5000, ge=2, description="images the final k-NN asks for")
    batch_size: int = Field(256, ge=1, description="images a forward pass of the probe")


@dataclass(frozen=True, slots=True)
class ProbeData:
    """What an encoder is probed with."""

    queries: ImageSet
    bank: ImageSet | None  # None: no labels, so no k-NN
    preprocess: Preprocess

    def score(self, features: Callable[[ImageSet], Tensor], spec: EvaluateSpec) -> tuple[Tensor, dict[str, float]]:
        """Features of the queries and the k-NN accuracy in percent, where labels exist."""
        queries = features(self.queries)
        if self.bank is None or self.bank.labels is None or self.queries.labels is None:
            return queries, {}
        accuracy = knn(
            features(self.bank),
            self.bank.labels,
            queries,
            self.queries.labels,
            k=spec.k,
            temperature=spec.temperature,
        )
        return queries, {"knn_top1": accuracy}

    def encoder_scores(
        self, encoder: Backbone, device: torch.device, spec: EvaluateSpec
    ) -> tuple[dict[str, float], Verdict, dict[str, str]]:
        """k-NN accuracy and health numbers of an encoder, whether it has collapsed, and why a number is missing."""

        def features(images: ImageSet) -> Tensor:
            return embed(encoder, images, self.preprocess, batch_size=spec.batch_size, device=device)

        queries, scores = self.score(features, spec)
        shape = spectrum(queries)
        health = of_features(queries)
        known = {"std_ratio": shape.std_ratio, "rankme": shape.rankme, **health.numbers}
        return {**scores, **known}, verdict(shape), health.missing

    def pixel_scores(self, spec: EvaluateSpec) -> dict[str, float]:
        """The same k-NN on raw pixels."""
        return self.score(lambda images: pixels_as_features(images, self.preprocess), spec)[1]


class Recorder(Callback):
    """Writes the rows of `metrics.jsonl` and shows them: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, run_dir: RunDir, log_every: int, checkpoint_every: int, observers: Observers) -> None:
        self.run_dir, self.observers = run_dir, observers
        self.periods = (log_every, checkpoint_every)  # a row before each checkpoint, so that a resume repeats it
        self._terms: dict[str, Tensor] = {}
        self._count = 0
        self._diverged: Tensor | None = None  # the first step whose loss is no number; 0: none
        self._extra: dict[str, float] = {}
        self.written = -1  # the step of the last row
        self._since = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0

    def note(self, values: Mapping[str, float]) -> None:
        """Numbers that belong into the row of this step."""
        self._extra.update(values)

    def on_start(self, engine: Engine) -> None:
        """Open the progress bar."""
        if dist.is_main():
            now, hidden = engine.now, not attended()
            self._bar = tqdm(total=now.total_steps, initial=now.step, unit="step", disable=hidden, file=sys.stderr)
        self._since = time.perf_counter()

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """Add up the terms; write a row where one is due."""
        for name, value in terms.items():
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        self._count += 1
        self._note_divergence(terms, engine.now.step)
        if self._bar is not None:
            self._bar.update()
        if not engine.at_epoch_end and self.due(engine, engine.now.step):
            self._write(engine)

    def due(self, engine: Engine, step: int) -> bool:
        """Whether a row follows this step; after the last step of an epoch it follows the probes."""
        ends = step % engine.now.steps_per_epoch == 0 or step >= engine.now.total_steps
        return ends or any(step % period == 0 for period in self.periods)

    def on_epoch(self, engine: Engine) -> None:
        """The row of an epoch's last step, with what the probes found."""
        self._write(engine)

    def on_end(self, engine: Engine) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def state(self) -> dict[str, Any]:
        """The sums of steps that have no row yet, over the processes; a float32 is exact in JSON, null is no number."""
        return {"sums": self._over_processes(), "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with these sums."""
        sums = {name: math.nan if value is None else value for name, value in state["sums"].items()}
        self._terms = {name: torch.tensor(value, dtype=torch.float32) for name, value in sums.items()}
        self._count = state["count"]

    def _over_processes(self) -> dict[str, float]:
        """The sums of the terms, averaged over the processes: each has seen a share of every batch."""
        if not self._terms:
            return {}
        sums = dist.mean(torch.stack([value.float() for value in self._terms.values()])).tolist()
        return dict(zip(self._terms, sums, strict=True))

    def check(self, engine: Engine) -> None:
        """Stop a run whose loss is no number, before anything of it is kept.

        Raises:
            Diverged: it is, with the step at which it began.
        """
        first = int(self._diverged) if self._diverged is not None else 0
        if dist.any_rank(first > 0):
            raise Diverged(f"the loss of step {first or engine.now.step} is not a finite number. {CURE}")

    def _note_divergence(self, terms: Terms, step: int) -> None:
        """Remember the first step without a finite loss, on the device: nobody waits for it here."""
        loss = dict(terms.items()).get("loss")
        if loss is not None:
            here = torch.where(loss.isfinite(), 0, step)
            earlier = here if self._diverged is None else self._diverged
            self._diverged = torch.where(earlier > 0, earlier, here)

    def _write(self, engine: Engine) -> None:
        self.check(engine)
        seconds = max(time.perf_counter() - self._since, 1e-6)  # a coarse clock may not have moved
        means = {name: value / self._count for name, value in self._over_processes().items()}
        row = {
            "step": engine.now.step,
            "epoch": round(engine.now.epoch, 6),
            **means,
            "lr": engine.optimizer.param_groups[0]["lr"],
            "images_per_s": round(self._count * engine.batch_size / seconds, 2),
            "seconds": round(seconds, 3),
            **_shares(engine.clock.read()),
            **self._extra,
        }
        self._terms, self._count, self._extra = {}, 0, {}
        self.written = engine.now.step
        self._since = time.perf_counter()
        if dist.is_main():
            self.run_dir.log(row)
            self._show(row, engine.now.total_steps)
            self.observers.tell("on_row", row)

    def _show(self, row: Mapping[str, Any], total: int) -> None:
        parts = [f"epoch {row['epoch']:g}"]
        parts += [f"{name} {row[name]:.4g}" for name in ("loss", "knn_top1", "std_ratio", "rankme") if name in row]
        text = ", ".join([*parts, f"{row['images_per_s']:.0f} images/s"])
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif "std_ratio" in row or row["step"] == total or time.perf_counter() - self._shown > 10:
            self._shown = time.perf_counter()
            say(f"step {row['step']}/{total}: {text}")


def _shares(spent: Mapping[str, float]) -> dict[str, float]:
    """Each part of the loop as a share of the time between two rows."""
    total = sum(spent.values()) or 1.0
    return {f"time_{part}": round(seconds / total, 4) for part, seconds in spent.items()}


class Probe(Callback):
    """Every so many epochs: k-NN and collapse numbers of the encoder, without touching it."""

    def __init__(self, data: ProbeData, spec: EvaluateSpec, every: float, recorder: Recorder) -> None:
        self.data, self.spec, self.every, self.recorder = data, spec, every, recorder

    def on_epoch(self, engine: Engine) -> None:
        """Probe when a multiple of `every` epochs was passed, and at the end of the run."""
        now = engine.now
        due = now.epoch // self.every > max(now.epoch - 1, 0) // self.every
        if due or now.step >= now.total_steps:
            encoder = engine.encoder()  # in every process
            if dist.is_main():
                self.recorder.note(self.data.encoder_scores(encoder, engine.device, self.spec)[0])


def _check_weights(engine: Engine) -> None:
    """Stop before weights that are no numbers take the place of good ones: a finite loss may have such gradients.

    Raises:
        Diverged: some are, with the step after which they were.
    """
    finite = [share_of(weights).isfinite().all() for weights in engine.method.parameters()]
    if dist.any_rank(not bool(torch.stack(finite).all())):
        raise Diverged(
            f"the weights after step {engine.now.step} are not finite numbers, though the loss was one: its gradients "
            f"overflowed. {CURE}"
        )


class Checkpoints(Callback):
    """Saves everything that training needs to go on bit for bit."""

    def __init__(
        self, run_dir: RunDir, every: int, keep: int, settings: Mapping[str, Any], recorder: Recorder, signals: Signals
    ) -> None:
        self.run_dir, self.every, self.keep, self.settings = run_dir, every, keep, settings
        self.recorder, self.signals = recorder, signals

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """Save within an epoch where one is due."""
        if not engine.at_epoch_end:
            self._save_if(engine, due=engine.now.step % self.every == 0)

    def on_epoch(self, engine: Engine) -> None:
        """Save at the end of an epoch where one is due, and at the end of the run."""
        last = engine.now.step >= engine.now.total_steps
        self._save_if(engine, due=last or engine.now.step % self.every == 0)

    def _save_if(self, engine: Engine, *, due: bool) -> None:
        """Save where it is due, or where the run is asked to stop.

        Raises:
            Interrupted: it was asked to, and all is saved.
        """
        asked = self.signals.asked()
        if due or asked:
            self.recorder.check(engine)
            _check_weights(engine)
            self.save(engine)
        if asked and engine.now.step < engine.now.total_steps:
            raise Interrupted(
                f"stopped by {asked} at step {engine.now.step}; all is saved: "
                f"'akssl resume {self.run_dir.path}' goes on from there."
            )

    def save(self, engine: Engine) -> None:
        """One checkpoint of the engine as it stands."""
        states = [[type(one).__name__, state] for one in engine.callbacks if (state := one.state())]
        model, optimizer = gathered(engine.method.state_dict()), gathered(state_by_name(engine.optimizer))
        if not dist.is_main():
            return
        last = self.run_dir.history[-1] if self.run_dir.history else {}
        state = {
            "step": engine.now.step,
            "score": last.get("knn_top1") if last.get("step") == engine.now.step else None,
            "settings": self.settings,
            "callbacks": states,
            "scaler": engine.scaler.state_dict(),
            "torch": torch.__version__,
        }
        self.run_dir.save_checkpoint(model, optimizer, state, keep=self.keep)

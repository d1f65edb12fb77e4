"""The order of what happens after a step: the run's callbacks, probe, row, watch, checkpoint.

SIGINT, SIGTERM and SIGUSR1: a run saves and stops at the end of its step; a second SIGINT stops it at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from .. import dist
from .callback import Callback
from .checkpoint import Checkpoints
from .engine import Engine, Terms
from .rows import Rows
from .watch import Probe, Vitals, Watch

USER = getattr(signal, "SIGUSR1", signal.SIGTERM)  # a system without it has no scheduler that sends it
ASKS = tuple(dict.fromkeys((signal.SIGINT, signal.SIGTERM, USER)))
SAME = 1.0  # seconds within which a launcher's copy of a signal counts as the same one
TALK = 1.0  # seconds between the steps at which processes ask each other for signals


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved a checkpoint of the step it stands at."""


class Signals:
    """While it lasts, the first of `ASKS` is remembered instead of ending the process.

    Outside of the main thread nothing is changed, since Python hands signals to that thread alone.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._when = 0.0
        self._left = self._steps = 1  # until processes talk again, and from the last time to then
        self._talked = time.monotonic()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in ASKS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> str | None:
        """The signal's name, once any process of the run was asked to stop; all of them say so after the same step.

        Called after each step. Several processes wait for each other about once a second only.
        """
        told = self._asked is not None
        if dist.world() > 1:
            self._left -= 1
            if self._left > 0:
                return None
            told = self._talk()
        if not told:
            return None
        return self._asked.name if self._asked else "a signal to another process"

    def _talk(self) -> bool:
        """Whether any process was asked to stop; all agree on how many steps it takes until they talk again."""
        now = time.monotonic()
        steps = min(TALK * self._steps / max(now - self._talked, 1e-3), 2 * self._steps)
        answers = dist.gather(torch.tensor([[float(self._asked is not None), steps]]))
        self._left = self._steps = max(int(answers[:, 1].min()), 1)
        self._talked = now
        return bool(answers[:, 0].any())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Ask again, and SIGINT stops at once. Others may come again from whoever asked, while the run is saved."""
        again = self._asked is not None and time.monotonic() - self._when > (SAME if dist.world() > 1 else 0)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked, self._when = signal.Signals(number), time.monotonic()


@dataclass
class Recorder:
    """Keeps what a run finds while it trains. A row has what the probe found, and no checkpoint precedes its row."""

    callbacks: Sequence[Callback]
    """Those that the run lists."""
    probe: Probe
    vitals: Vitals
    rows: Rows
    watch: Watch
    checkpoints: Checkpoints
    signals: Signals
    log_every: int
    """Steps from row to row."""
    checkpoint_every: int | None
    """Steps from checkpoint to checkpoint; None: one with each probe, and with a row where the last is long ago."""

    def on_start(self, engine: Engine) -> None:
        """Before the first step of this process."""
        for callback in self.callbacks:
            callback.on_start(engine)
        if self._row_due(engine, engine.now.step + 1):
            self.vitals.remember(engine)
        self.rows.start(engine)

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """After each optimizer step; the last one of an epoch has its row and checkpoint in `on_epoch`."""
        for callback in self.callbacks:
            callback.on_step(engine, terms)
        step = engine.now.step
        row_due = self._row_due(engine, step)
        if row_due:
            self.rows.note(self.vitals.measure(engine))
        if self._row_due(engine, step + 1):
            self.vitals.remember(engine)
        self.rows.add(terms, step)
        if not engine.at_epoch_end:
            if row_due:
                self.rows.write(engine)
                self.watch.look(step)
            self._save(engine, due=self._due(step, has_row=row_due))

    def on_epoch(self, engine: Engine) -> None:
        """After each epoch, and where the run ends within one."""
        for callback in self.callbacks:
            callback.on_epoch(engine)
        step, last = engine.now.step, engine.now.step >= engine.now.total_steps
        probed = last or self.probe.due(engine.now.epoch)
        scores = self.probe.scores(engine) if probed else {}
        self.rows.note(scores)
        self.rows.write(engine)
        self.watch.look(step)
        self._save(engine, due=last or self._due(step, probed=probed), score=scores.get("knn_top1"))

    def on_end(self, engine: Engine) -> None:
        """After the last step."""
        for callback in self.callbacks:
            callback.on_end(engine)
        self.rows.close()

    def restore(self, states: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Give each part the state that a checkpoint has under its name."""
        left = list(states)
        for name, part in self._parts():
            place = next((i for i, (known, _) in enumerate(left) if known == name), None)
            if place is not None:
                part.restore(left.pop(place)[1])

    def _parts(self) -> list[tuple[str, Callback | Rows]]:
        """All that has a state, by the names that checkpoints know."""
        return [*((type(callback).__name__, callback) for callback in self.callbacks), ("Recorder", self.rows)]

    def _row_due(self, engine: Engine, step: int) -> bool:
        """Whether a row follows this step; each checkpoint has one, so that a resumed run writes the same rows."""
        ends = step % engine.now.steps_per_epoch == 0 or step >= engine.now.total_steps
        return ends or step % self.log_every == 0 or step % (self.checkpoint_every or self.log_every) == 0

    def _due(self, step: int, *, has_row: bool = True, probed: bool = False) -> bool:
        """Whether a checkpoint follows this step; the clock of the main process speaks for all."""
        if self.checkpoint_every is not None:
            return step % self.checkpoint_every == 0
        return probed or (has_row and dist.any_rank(dist.is_main() and self.checkpoints.ripe))

    def _save(self, engine: Engine, *, due: bool, score: float | None = None) -> None:
        """Save where it is due, or where the run is asked to stop: then it is Interrupted, once all is saved."""
        self.checkpoints.settle(wait=False)
        asked = self.signals.asked()
        if due or asked:
            self.rows.check(engine.now.step)
            states = [(name, state) for name, part in self._parts() if (state := part.state())]
            self.checkpoints.save(engine, states, score)
        if asked and engine.now.step < engine.now.total_steps:
            self.checkpoints.settle()
            dist.any_rank(False)  # all wait for the one that writes: a launcher stops it where another has ended
            raise Interrupted(
                f"stopped by {asked} at step {engine.now.step}; all is saved: "
                f"'akssl resume {self.checkpoints.run_dir.path}' goes on from there."
            )

"""A checkpoint's way: saved while a run trains, checked against changed settings, and taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .. import dist
from ..config.changes import changes, is_harmless
from ..dist.sharding import gathered, share_as, share_of
from ..errors import ConfigError
from ..optim import load_state_by_name, state_by_name
from ..rundir.folder import Checkpoint, RunDir
from ..settings import RunSpec
from .callback import Callback
from .interrupt import Interrupted, Signals
from .rows import CURE, Diverged, Recorder

if TYPE_CHECKING:
    from .engine import Engine, Terms


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


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put an engine where a checkpoint was taken."""
    now = engine.method.state_dict()
    engine.method.load_state_dict({name: share_as(now[name], value) for name, value in checkpoint.model.items()})
    load_state_by_name(engine.optimizer, checkpoint.optimizer)
    engine.scaler.load_state_dict(checkpoint.state["scaler"])
    engine.go_to(checkpoint.state["step"])
    states = [(name, state) for name, state in checkpoint.state["callbacks"]]
    for callback in engine.callbacks:
        place = next((i for i, (name, _) in enumerate(states) if name == type(callback).__name__), None)
        if place is not None:
            callback.restore(states.pop(place)[1])


def accept(folder: RunDir, spec: RunSpec, checkpoint: Checkpoint | None) -> list[str]:
    """What was changed since the checkpoint, in words.

    Raises:
        ConfigError: a run cannot go on with some of it.
    """
    found = changes(checkpoint.state["settings"], spec.table()) if checkpoint else []
    if harmful := [str(change) for change in found if not is_harmless(change.path, spec)]:
        raise ConfigError(
            f"{folder.path}: a run goes on with the settings it began with, and these differ: {'; '.join(harmful)}. "
            f"Put them back, or start a new run: akssl run --config {folder.path / 'config.yaml'} --out NEW_DIR."
        )
    return [f"resumed with other settings: {'; '.join(map(str, found))}"] if found else []

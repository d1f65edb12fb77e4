"""A checkpoint's way: saved while a run trains, checked against changed settings, and taken back."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import dist
from ..config.schema import Change, changes, is_default, is_harmless, leaves
from ..dist.sharding import gathered, share_as, share_of
from ..errors import ConfigError, RunStopped
from ..method import Method
from ..nn import Frozen
from ..optim import load_state_by_name, state_by_name
from ..rundir.checkpoints import Checkpoint, CheckpointState
from ..rundir.folder import RunDir
from ..settings import RunSpec
from .engine import Engine

APART = 60.0  # seconds at least between checkpoints where nobody has set the steps between them


class Diverged(RunStopped):
    """The loss or a weight is NaN or infinite."""


class Checkpoints:
    """Saves everything that training needs to go on bit for bit: copied at once, written while training goes on.

    Leaving its context waits for what is still being written.
    """

    def __init__(self, run_dir: RunDir, keep: int, settings: Mapping[str, Any]) -> None:
        self.run_dir, self.keep, self.settings = run_dir, keep, settings
        self._writing: Future[Path] | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self.settle()

    @property
    def ripe(self) -> bool:
        """Whether the last one is long ago, and on the disk."""
        return self._writing is None and time.monotonic() - self._last >= APART

    def settle(self, *, wait: bool = True) -> None:
        """Hear of the one that is being written once it is done, or `wait` for it.

        Raises:
            CannotWrite: the disk has refused it.
        """
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()

    def cure(self) -> str:
        """What may help a run that has `Diverged`, and what is left of it once all is written."""
        self.settle()
        left = "; the last checkpoint is from before" if self.run_dir.checkpoints() else ""
        return f"Lower optimizer.lr, set train.clip, or use --precision fp32{left}."

    def save(self, engine: Engine, callbacks: list[tuple[str, dict[str, Any]]], score: float | None) -> None:
        """One checkpoint of the engine as it stands and of what is around it; every process has a part in it.

        Raises:
            Diverged: some weights are NaN or infinite, which must not take the place of good ones.
            CannotWrite: the disk has refused the one before.
        """
        self.settle()  # so that one copy is in memory at most
        finite = [share_of(weights).isfinite().all() for weights in engine.method.parameters()]
        if dist.any_rank(not bool(torch.stack(finite).all())):
            raise Diverged(
                f"the weights after step {engine.now.step} are not finite numbers, though the loss was one: its "
                f"gradients overflowed. {self.cure()}"
            )
        model, optimizer = gathered(engine.method.state_dict()), gathered(state_by_name(engine.optimizer))
        if dist.is_main():
            scaler, version = engine.scaler.state_dict(), torch.__version__
            around = copy.deepcopy(callbacks)
            state = CheckpointState(engine.now.step, score, self.settings, around, scaler, version)
            parts = _copied(model), _copied(optimizer)
            if engine.device.type == "cuda":
                torch.cuda.current_stream(engine.device).synchronize()
            pool = ThreadPoolExecutor(1, thread_name_prefix="akssl-checkpoint")
            self._writing = pool.submit(self.run_dir.save_checkpoint, *parts, state, keep=self.keep)
            pool.shutdown(wait=False)  # its thread ends with this task
            self._last = time.monotonic()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory; those of a GPU's tensors are on their way, and done when its stream is."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put an engine where a checkpoint was taken."""
    now = engine.method.state_dict()
    engine.method.load_state_dict({name: share_as(now[name], value) for name, value in checkpoint.model.items()})
    load_state_by_name(engine.optimizer, checkpoint.optimizer)
    engine.scaler.load_state_dict(dict(checkpoint.state.scaler))
    engine.go_to(checkpoint.state.step)


def refuse_misfit(method: Method, checkpoint: Checkpoint | None) -> None:
    """Compare the weights of a checkpoint with the method that is to take them, before a file of the run changes.

    Raises:
        ConfigError: they are of another network, as a module given from Python can be.
    """
    if checkpoint is None:
        return
    tables = checkpoint.model, method.state_dict()
    before, after = ({name: tuple(value.shape) for name, value in table.items()} for table in tables)
    if odd := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        raise ConfigError(
            f"{checkpoint.path}: it was saved of another network: '{odd[0]}' is of shape {before.get(odd[0], 'none')}, "
            f"here {after.get(odd[0], 'none')}. Give the backbone that the run began with."
        )
    for name, part in method.named_modules():
        if isinstance(part, Frozen) and not torch.equal(checkpoint.model[f"{name}.sha256"], part.sha256):
            began = bytes(checkpoint.model[f"{name}.sha256"].tolist()).hex()
            raise ConfigError(
                f"method.{name}: {part.about.get('source', 'it')} holds other weights than those that the run began "
                f"with: their SHA-256 is {part.about['sha256'][:16]}..., it was {began[:16]}.... Put the file back, or "
                f"start a new run."
            )


def changed(before: Mapping[str, Any], spec: RunSpec) -> list[Change]:
    """The settings that differ from a table of before; one that did not exist then is as good as at its default."""
    known = dict(leaves(before))
    return [one for one in changes(before, spec.table()) if one.path in known or not is_default(one.path, spec)]


def accept(folder: RunDir, spec: RunSpec, checkpoint: Checkpoint | None, end: int, *, same_images: bool) -> list[str]:
    """The settings that were changed since the checkpoint, in words.

    Args:
        folder: of the run.
        spec: the settings to go on with.
        checkpoint: where it stands; None before the first one.
        end: the step at which the run ends with these settings and data.
        same_images: whether the images are those that the run began with; then another source of them is harmless.

    Raises:
        ConfigError: a run cannot go on with some of it.
    """
    found = changed(checkpoint.state.settings, spec) if checkpoint else []
    other_source = any(change.path == "data.name" for change in found)
    here = ("data.",) if other_source and same_images else ()
    if harmful := [str(one) for one in found if not (is_harmless(one.path, spec) or one.path.startswith(here))]:
        refused = other_source and not same_images
        why = " (of another source, images must be the same to the bit, and these are not)" if refused else ""
        raise ConfigError(
            f"{folder.path}: a run goes on with the settings it began with, and these differ{why}: "
            f"{'; '.join(harmful)}. Put them back, or start a new run: "
            f"akssl run --config {folder.path / 'config.yaml'} --out NEW_DIR."
        )
    if checkpoint and checkpoint.state.step > end:
        raise ConfigError(
            f"{folder.path}: step {checkpoint.state.step} is reached, and with these epochs and data the run would end "
            f"at step {end}. Give more epochs, or the data that it began with."
        )
    return [f"resumed with other settings: {'; '.join(map(str, found))}"] if found else []

"""Watches a run: how far its backbone and its slow copies move, and whether it has collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import dist
from ..errors import RunStopped
from ..method import Landmark
from ..metrics import Diagnosis, diagnose
from ..nn import EMA
from ..rundir.folder import RunDir
from .callback import Callback
from .rows import Recorder

if TYPE_CHECKING:
    from .engine import Engine, Terms


class Collapsed(RunStopped):
    """A run has collapsed and was asked to stop then."""


class Vitals(Callback):
    """Adds to each row how far the last step moved, relative to its length, and how far slow copies are behind.

    `backbone_step` is |w - w before| / |w| over the backbone's trained parameters: exactly 0 where no gradient reaches
    it. `ema_distance` is |slow - fast| / |fast| of the method's moving averages, the largest of them. With shared-out
    parameters neither is measured.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._before: list[Tensor] | None = None

    def on_start(self, engine: Engine) -> None:
        """Remember the weights where the first step has a row."""
        self._remember(engine)

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """Measure where a row follows; remember the weights where the next step's does."""
        if not engine.sharded and self.recorder.due(engine, engine.now.step):
            self.recorder.note(self._measure(engine))
        self._remember(engine)

    @torch.no_grad()
    def _measure(self, engine: Engine) -> dict[str, float]:
        found = {}
        after = _weights(engine)
        if self._before and after:
            moved = torch.stack(torch._foreach_norm(torch._foreach_sub(after, self._before))).norm()
            found["backbone_step"] = float(moved / torch.stack(torch._foreach_norm(after)).norm().clamp(min=1e-12))
        distances = [float(part.distance()) for part in engine.method.modules() if isinstance(part, EMA)]
        if distances:
            found["ema_distance"] = max(distances)
        return found

    def _remember(self, engine: Engine) -> None:
        wanted = not engine.sharded and self.recorder.due(engine, engine.now.step + 1)
        self._before = [weight.detach().clone() for weight in _weights(engine)] if wanted else None


def _weights(engine: Engine) -> list[Tensor]:
    return [weight for weight in engine.method.backbone.parameters() if weight.requires_grad]


class Watch(Callback):
    """Says once that a run has collapsed, in its manifest; stops it there where it was asked to."""

    def __init__(self, run_dir: RunDir, recorder: Recorder, landmarks: Sequence[Landmark], *, stops: bool) -> None:
        self.run_dir, self.recorder, self.landmarks, self.stops = run_dir, recorder, landmarks, stops
        self._said = False

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """Look at the rows after a new one."""
        if not engine.at_epoch_end:
            self._look(engine)

    def on_epoch(self, engine: Engine) -> None:
        """Look at the rows after an epoch's last one."""
        self._look(engine)

    def _look(self, engine: Engine) -> None:
        """Every process must see that one of them, the main one, has found a collapse.

        Raises:
            Collapsed: it has, and the run was asked to stop.
        """
        if self.recorder.written != engine.now.step:
            return
        found = diagnose(self.run_dir.history, self.landmarks) if dist.is_main() else Diagnosis("healthy")
        if found.verdict == "collapsed" and not self._said:
            self._said = True
            self.run_dir.update_manifest(verdict="collapsed", diagnosis=asdict(found))
        if self.stops and dist.any_rank(found.verdict == "collapsed"):
            raise Collapsed(f"{found} Stopped at step {engine.now.step}.")

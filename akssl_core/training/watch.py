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
from ..metrics.diagnosis import Diagnosis, diagnose
from ..nn import EMA, relative_distance
from ..rundir.folder import RunDir
from ..rundir.schemas import Manifest

if TYPE_CHECKING:
    from .engine import Engine


class Collapsed(RunStopped):
    """A run has collapsed and was asked to stop then."""


class Vitals:
    """Measures for each row how far the last step moved, relative to its length, and how far slow copies are behind.

    `backbone_step` is |w - w before| / |w| over the backbone's trained parameters: exactly 0 where no gradient reaches
    it. `ema_distance` is |slow - fast| / |fast| of the method's moving averages, the largest of them. With shared-out
    parameters neither is measured.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []

    def remember(self, engine: Engine) -> None:
        """Keep the weights before a step that has a row."""
        self._before = [] if engine.sharded else [weight.detach().clone() for weight in _weights(engine)]

    @torch.no_grad()
    def measure(self, engine: Engine) -> dict[str, float]:
        """The numbers of the step whose weights were remembered."""
        if engine.sharded:
            return {}
        found = {}
        (before, self._before), after = (self._before, []), _weights(engine)
        if before and after:
            found["backbone_step"] = float(relative_distance(before, after))
        distances = [float(part.distance()) for part in engine.method.modules() if isinstance(part, EMA)]
        if distances:
            found["ema_distance"] = max(distances)
        return found


def _weights(engine: Engine) -> list[Tensor]:
    return [weight for weight in engine.method.backbone.parameters() if weight.requires_grad]


class Watch:
    """Says once that a run has collapsed, in its manifest; stops it there where it was asked to."""

    def __init__(self, run_dir: RunDir, landmarks: Sequence[Landmark], *, stops: bool) -> None:
        self.run_dir, self.landmarks, self.stops = run_dir, landmarks, stops
        self._said = False

    def look(self, step: int) -> None:
        """Look at the rows after a new one, in every process: what the main one finds stops all.

        Raises:
            Collapsed: it has, and the run was asked to stop.
        """
        found = diagnose(self.run_dir.history, self.landmarks) if dist.is_main() else Diagnosis("healthy")
        if found.verdict == "collapsed" and not self._said:
            self._said = True
            self.run_dir.update_manifest(Manifest(verdict="collapsed", diagnosis=asdict(found)))
        if self.stops and dist.any_rank(found.verdict == "collapsed"):
            raise Collapsed(f"{found} Stopped at step {step}.")

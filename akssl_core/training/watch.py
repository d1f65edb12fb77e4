"""Looks at a run while it trains: how good its encoder is, how far weights move, and whether it has collapsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dist
from ..backbone import Backbone
from ..data.base import ImageSet
from ..data.preprocess import Preprocess
from ..errors import RunStopped
from ..method import Landmark
from ..metrics.diagnosis import Diagnosis, Verdict, diagnose, verdict
from ..metrics.features import embed, pixels_as_features
from ..metrics.health import of_features, spectrum
from ..metrics.nearest import knn_right, percent
from ..nn import EMA, relative_distance
from ..rundir.folder import RunDir
from ..rundir.schemas import Manifest
from ..settings import EvaluateSpec
from .engine import Engine


class Scored(NamedTuple):
    """What a probe says of an encoder."""

    numbers: dict[str, float]
    verdict: Verdict = "healthy"
    missing: Mapping[str, str] = MappingProxyType({})
    """Why a number is missing."""
    right: Tensor | None = None
    """Whether k-NN is right, for each query (Q,) with a label; None without labels."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The images that an encoder is probed with, every so many epochs and at the end, without touching it."""

    queries: ImageSet
    bank: ImageSet | None  # None: no labels, so no k-NN
    preprocess: Preprocess
    spec: EvaluateSpec

    def answers(self, features: Callable[[ImageSet], Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features of the queries, and whether k-NN is right for each (Q,) in the main process, where labels exist."""
        queries = features(self.queries)
        if self.bank is None or self.bank.labels is None or self.queries.labels is None:
            return queries, None
        bank, k, temperature = features(self.bank), self.spec.k, self.spec.temperature
        if not dist.is_main():
            return queries, None
        known = bank, self.bank.labels, queries, self.queries.labels
        return queries, knn_right(*known, k=k, temperature=temperature, device=device)

    def encoder_scores(self, encoder: Backbone, device: torch.device) -> Scored:
        """k-NN accuracy and health numbers of an encoder, whether it has collapsed, and why a number is missing.

        The processes share the images, so all must ask together; the main one alone gets an answer.
        """
        size = self.spec.batch_size

        def features(images: ImageSet) -> Tensor:
            return embed(encoder, images, self.preprocess, batch_size=size, device=device, shared=True)

        queries, right = self.answers(features, device)
        if not dist.is_main():
            return Scored({})
        scores = {} if right is None else {"knn_top1": percent(right)}
        shape = spectrum(queries)
        health = of_features(queries)
        known = {"std_ratio": shape.std_ratio, "rankme": shape.rankme, **health.numbers}
        return Scored({**scores, **known}, verdict(shape), health.missing, right)

    def pixels_right(self, device: torch.device) -> Tensor | None:
        """Whether the same k-NN on raw pixels is right, for each query (Q,)."""
        return self.answers(lambda images: pixels_as_features(images, self.preprocess, shared=True), device)[1]

    def due(self, epoch: float) -> bool:
        """Whether a multiple of `evaluate.every` epochs was passed in the last one."""
        every = self.spec.every
        assert every is not None
        return epoch // every > max(epoch - 1, 0) // every

    def scores(self, engine: Engine) -> dict[str, float]:
        """The numbers of the encoder as it stands: in the main process, while all must ask for them together."""
        return self.encoder_scores(engine.encoder(), engine.device).numbers


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
        if before and len(before) == len(after):  # they are fewer while heads learn alone
            found["backbone_step"] = float(relative_distance(before, after))
        distances = [float(part.distance()) for part in engine.method.modules() if isinstance(part, EMA)]
        if distances:
            found["ema_distance"] = max(distances)
        return found


def _weights(engine: Engine) -> list[Tensor]:
    return [weight for weight in engine.method.backbone.parameters() if weight.requires_grad]


class Watch:
    """Says once that a run has collapsed, in its manifest; stops it there where it was asked to."""

    def __init__(self, run_dir: RunDir, landmarks: Sequence[Landmark], *, stops: bool, collapses: bool) -> None:
        self.run_dir, self.landmarks, self.stops, self.collapses = run_dir, landmarks, stops, collapses
        self._said = False

    def look(self, step: int) -> None:
        """Look at the rows after a new one, in every process: what the main one finds stops all.

        Raises:
            Collapsed: it has, and the run was asked to stop.
        """
        found = Diagnosis("healthy")
        if dist.is_main():
            found = diagnose(self.run_dir.history, self.landmarks, collapses=self.collapses)
        if found.verdict == "collapsed" and not self._said:
            self._said = True
            self.run_dir.update_manifest(Manifest(verdict="collapsed", diagnosis=asdict(found)))
        if self.stops and dist.any_rank(found.verdict == "collapsed"):
            raise Collapsed(f"{found} Stopped at step {step}.")

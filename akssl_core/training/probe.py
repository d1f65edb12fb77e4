"""How good the encoder is while it trains: k-NN accuracy and health numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import dist
from ..data.base import ImageSet
from ..data.preprocess import Preprocess
from ..metrics.diagnosis import Verdict, verdict
from ..metrics.features import embed, pixels_as_features
from ..metrics.health import of_features, spectrum
from ..metrics.nearest import knn
from ..settings import EvaluateSpec

if TYPE_CHECKING:
    from ..backbone import Backbone
    from .engine import Engine


@dataclass(frozen=True, slots=True)
class ProbeData:
    """The images that an encoder is probed with."""

    queries: ImageSet
    bank: ImageSet | None  # None: no labels, so no k-NN
    preprocess: Preprocess

    def score(self, features: Callable[[ImageSet], Tensor], spec: EvaluateSpec) -> tuple[Tensor, dict[str, float]]:
        """Features of the queries and the k-NN accuracy in percent, where labels exist."""
        queries = features(self.queries)
        if self.bank is None or self.bank.labels is None or self.queries.labels is None:
            return queries, {}
        known = features(self.bank), self.bank.labels, queries, self.queries.labels
        accuracy = knn(*known, k=spec.k, temperature=spec.temperature)
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


@dataclass(frozen=True, slots=True)
class Probe:
    """Every so many epochs: k-NN and collapse numbers of the encoder, without touching it."""

    data: ProbeData
    spec: EvaluateSpec
    every: float
    """Epochs."""

    def due(self, epoch: float) -> bool:
        """Whether a multiple of `every` epochs was passed in the last one."""
        return epoch // self.every > max(epoch - 1, 0) // self.every

    def scores(self, engine: Engine) -> dict[str, float]:
        """The numbers of the encoder as it stands: in the main process, while all must ask for them together."""
        encoder = engine.encoder()
        return self.data.encoder_scores(encoder, engine.device, self.spec)[0] if dist.is_main() else {}

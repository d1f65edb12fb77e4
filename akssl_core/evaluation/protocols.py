"""The protocols: from a system and labelled images to the guesses for the test images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..backbone import Backbone
from ..data import ImageSet, Preprocess
from ..errors import DataError
from ..metrics import LARGE, embed, knn_guesses, linear_guesses, linear_guesses_sgd, pixels_as_features
from .finetune import IMAGES_A_STEP, LEAST, RATE, FineTuning
from .split import Split

Solver = Literal["auto", "lbfgs", "sgd"]
Guesses = dict[int | None, Tensor]  # (Q,) labels, by the number of neighbours where there are any


@dataclass(frozen=True)
class System:
    """A backbone to judge, and how it is fed; without one, the pixels themselves."""

    name: str
    backbone: Backbone | None
    preprocess: Preprocess

    def features(self, images: ImageSet, *, batch_size: int, device: torch.device) -> Tensor:
        """Features (N, D) float32 on the CPU."""
        if self.backbone is None:
            return pixels_as_features(images, self.preprocess, batch_size=batch_size)
        self.backbone.to(device)
        try:
            return embed(self.backbone, images, self.preprocess, batch_size=batch_size, device=device)
        finally:
            self.backbone.to("cpu")


class Learner(ABC):
    """One system with one split, ready to learn from any rows of the training images."""

    repeats: ClassVar[bool] = False  # whether a seed matters when all labels are used

    @abstractmethod
    def guesses(self, rows: Tensor, seed: int) -> Guesses:
        """The labels given to the test images after learning from these rows (n,)."""


class Protocol(ABC):
    """A way of judging a system."""

    name: ClassVar[str]
    meaning: str
    repeats: ClassVar[bool] = False  # as its learners

    @abstractmethod
    def learner(self, system: System, split: Split) -> Learner:
        """The system, ready to be judged."""


@dataclass(frozen=True)
class _Frozen(Learner):
    """Features that were computed once."""

    protocol: Knn | Linear
    split: Split
    train: Tensor
    test: Tensor

    def guesses(self, rows: Tensor, seed: int) -> Guesses:
        return self.protocol.judge(self.train[rows], self.split.labels[rows], self.test, seed)


@dataclass(frozen=True)
class Knn(Protocol):
    """The weighted k-NN classifier."""

    name = "knn"
    ks: Sequence[int]
    batch_size: int
    device: torch.device

    @property
    def meaning(self) -> str:  # type: ignore[override]
        """The protocol in words."""
        return (
            f"weighted k-NN on frozen features: cosine similarity, votes weighted with exp(similarity / 0.07), "
            f"k = {', '.join(map(str, self.ks))} (at most all labelled images); nothing is trained"
        )

    def learner(self, system: System, split: Split) -> Learner:
        """Features of both parts."""
        return _frozen(self, system, split)

    def judge(self, bank: Tensor, labels: Tensor, queries: Tensor, seed: int) -> Guesses:
        """The guesses by the number of neighbours."""
        return dict(knn_guesses(bank, labels, queries, ks=self.ks).items())


@dataclass(frozen=True)
class Linear(Protocol):
    """The linear probe."""

    name = "linear"
    solver: Solver
    batch_size: int
    device: torch.device

    @property
    def meaning(self) -> str:  # type: ignore[override]
        """The protocol in words."""
        return (
            "linear probe on frozen features of unaugmented images: logistic regression on standardised features, by "
            "L-BFGS with the L2 penalty chosen on a fifth of each class of the labelled images, or, where these are "
            f"more than {LARGE // 10**6} million numbers (or solver = sgd), by SGD with the learning rate chosen so"
        )

    def learner(self, system: System, split: Split) -> Learner:
        """Features of both parts.

        Raises:
            DataError: they are not finite.
        """
        found = _frozen(self, system, split)
        if not (found.train.isfinite().all() and found.test.isfinite().all()):
            raise DataError(
                f"linear: features of '{system.name}' are not finite. The weights have diverged, or belong to another "
                f"network; k-NN (--protocol knn) still gives a number."
            )
        return found

    def judge(self, bank: Tensor, labels: Tensor, queries: Tensor, seed: int) -> Guesses:
        """The guesses of the classifier with the best setting."""
        by_sgd = self.solver == "sgd" or (self.solver == "auto" and bank.numel() > LARGE)
        solve = linear_guesses_sgd if by_sgd else linear_guesses
        return {None: solve(bank, labels, queries, seed=seed)[0]}


@dataclass(frozen=True)
class _Tuned(Learner):
    repeats = True
    system: System
    split: Split
    tuning: FineTuning

    def guesses(self, rows: Tensor, seed: int) -> Guesses:
        assert self.system.backbone is not None
        train, labels = self.split.train.subset(rows), self.split.labels[rows]
        found = self.tuning.guesses(
            self.system.backbone, self.system.preprocess, train, labels, self.split.test, seed=seed
        )
        return {None: found}


@dataclass(frozen=True)
class FineTune(Protocol):
    """Fine-tuning; raw pixels have no network to tune, so they get a linear probe."""

    name = "finetune"
    repeats = True
    tuning: FineTuning

    @property
    def meaning(self) -> str:  # type: ignore[override]
        """The protocol in words."""
        return (
            f"fine-tuning of a copy of the whole backbone with a linear head: {self.tuning.epochs} epochs, at least "
            f"{LEAST} steps, of {IMAGES_A_STEP} images, AdamW at {RATE:g} with warm-up and cosine, no augmentation; "
            f"raw pixels, which have nothing to tune: a linear probe"
        )

    def learner(self, system: System, split: Split) -> Learner:
        """The system's network, or a linear probe where there is none."""
        if system.backbone is None:
            return Linear("auto", self.tuning.batch_size, self.tuning.device).learner(system, split)
        return _Tuned(system, split, self.tuning)


def _frozen(protocol: Knn | Linear, system: System, split: Split) -> _Frozen:
    train, test = (
        system.features(images, batch_size=protocol.batch_size, device=protocol.device)
        for images in (split.train, split.test)
    )
    return _Frozen(protocol, split, train, test)

"""The protocols: from a system and labelled images to the guesses for the test images."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone
from ..data import ImageSet, Preprocess
from ..errors import DataError
from ..metrics import LARGE, embed, knn_guesses, linear_guesses, linear_guesses_sgd, pixels_as_features
from .split import Split

IMAGES_A_STEP = 64  # of the fine-tuning
RATE, DECAY, WARMUP = 1e-3, 0.05, 0.1  # AdamW's peak rate and weight decay, share of warm-up
LEAST = 100  # steps, where few labels would give fewer
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
    repeats: ClassVar[bool] = False  # as its learners

    @property
    @abstractmethod
    def meaning(self) -> str:
        """The protocol in words."""

    @abstractmethod
    def learner(self, system: System, split: Split) -> Learner:
        """The system, ready to be judged."""


@dataclass(frozen=True)
class _OnFeatures(Protocol):
    """A protocol on the features of a frozen backbone, which are computed once."""

    batch_size: int
    device: torch.device

    def learner(self, system: System, split: Split) -> _Frozen:
        """The system with the features of both parts."""
        train, test = (
            system.features(images, batch_size=self.batch_size, device=self.device)
            for images in (split.train, split.test)
        )
        return _Frozen(self, split, train, test)

    @abstractmethod
    def judge(self, bank: Tensor, labels: Tensor, queries: Tensor, seed: int) -> Guesses:
        """The guesses for the queries (Q, D) after learning from the bank (N, D) and its labels (N,)."""


@dataclass(frozen=True)
class _Frozen(Learner):
    """Features (N, D) and (Q, D) of both parts."""

    protocol: _OnFeatures
    split: Split
    train: Tensor
    test: Tensor

    def guesses(self, rows: Tensor, seed: int) -> Guesses:
        return self.protocol.judge(self.train[rows], self.split.labels[rows], self.test, seed)


@dataclass(frozen=True)
class Knn(_OnFeatures):
    """The weighted k-NN classifier."""

    name = "knn"
    ks: Sequence[int]

    @property
    def meaning(self) -> str:
        """The protocol in words."""
        return (
            f"weighted k-NN on frozen features: cosine similarity, votes weighted with exp(similarity / 0.07), "
            f"k = {', '.join(map(str, self.ks))} (at most all labelled images); nothing is trained"
        )

    def judge(self, bank: Tensor, labels: Tensor, queries: Tensor, seed: int) -> Guesses:
        """The guesses by the number of neighbours."""
        return dict(knn_guesses(bank, labels, queries, ks=self.ks).items())


@dataclass(frozen=True)
class Linear(_OnFeatures):
    """The linear probe."""

    name = "linear"
    solver: Solver = "auto"

    @property
    def meaning(self) -> str:
        """The protocol in words."""
        return (
            "linear probe on frozen features of unaugmented images: logistic regression on standardised features, by "
            "L-BFGS with the L2 penalty chosen on a fifth of each class of the labelled images, or, where these are "
            f"more than {LARGE // 10**6} million numbers (or solver = sgd), by SGD with the learning rate chosen so"
        )

    def learner(self, system: System, split: Split) -> _Frozen:
        """The system with the features of both parts.

        Raises:
            DataError: they are not finite.
        """
        found = super().learner(system, split)
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
class FineTune(Protocol):
    """Fine-tuning of all of a backbone with a linear head; raw pixels have nothing to tune: a linear probe."""

    name = "finetune"
    repeats = True
    epochs: int
    batch_size: int  # images of a forward pass that trains nothing
    device: torch.device

    @property
    def meaning(self) -> str:
        """The protocol in words."""
        return (
            f"fine-tuning of a copy of the whole backbone with a linear head: {self.epochs} epochs, at least {LEAST} "
            f"steps, of {IMAGES_A_STEP} images, AdamW at {RATE:g} with warm-up and cosine, no augmentation; raw "
            f"pixels, which have nothing to tune: a linear probe"
        )

    def learner(self, system: System, split: Split) -> Learner:
        """The system's network, or a linear probe where there is none."""
        if system.backbone is None:
            return Linear(self.batch_size, self.device).learner(system, split)
        return _Tuned(self, system, system.backbone, split)


@dataclass(frozen=True)
class _Tuned(Learner):
    """A backbone, of which a copy is trained for each draw of labels."""

    repeats = True
    tuning: FineTune
    system: System
    backbone: Backbone
    split: Split

    def guesses(self, rows: Tensor, seed: int) -> Guesses:
        device = self.tuning.device
        classes, targets = torch.unique(self.split.labels[rows], return_inverse=True)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            head = nn.Linear(self.backbone.embed_dim, len(classes))
            nn.init.zeros_(head.weight)
            model = nn.Sequential(copy.deepcopy(self.backbone), head).to(device)
            self._train(model, self.split.train.subset(rows), targets, seed)
            return {None: classes[self._judge(model)]}

    def _train(self, model: nn.Module, train: ImageSet, targets: Tensor, seed: int) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=RATE)
        batch = min(IMAGES_A_STEP, len(train))
        per_epoch = len(train) // batch
        total = max(LEAST, self.tuning.epochs * per_epoch)
        generator = torch.Generator().manual_seed(seed)
        model.train()
        for step in range(total):
            if step % per_epoch == 0:
                order = torch.randperm(len(train), generator=generator)
            index = order[step % per_epoch * batch :][:batch]
            images = self.system.preprocess.pixels(train.fetch(index.tolist()).to(self.tuning.device))
            for group in optimizer.param_groups:
                group["lr"] = RATE * _course(step, total)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images).float(), targets[index].to(self.tuning.device))
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it without types
            optimizer.step()

    def _judge(self, model: nn.Module) -> Tensor:
        model.eval()
        found, test, size = [], self.split.test, self.tuning.batch_size
        with torch.no_grad():
            for start in range(0, len(test), size):
                index = range(start, min(start + size, len(test)))
                scores = model(self.system.preprocess.pixels(test.fetch(index).to(self.tuning.device)))
                found.append(scores.argmax(1).cpu())
        return torch.cat(found)


def _course(step: int, total: int) -> float:
    """The rate's share at a step: linear over the first tenth, then a cosine to zero."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

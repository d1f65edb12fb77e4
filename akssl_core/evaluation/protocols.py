"""The protocols: from a system and labelled images to the guesses for the test images."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..augment import PolicyTransform, ViewPolicy
from ..backbone import Backbone, TokenBackbone
from ..console import Progress
from ..data import ImageSet, Preprocess
from ..draws import Draws
from ..errors import DataError
from ..metrics.features import embed, pixels_as_features
from ..metrics.linear import LARGE, linear_guesses, linear_guesses_sgd
from ..metrics.nearest import knn_guesses
from ..training.hardware import kept_random_state, seed_generators
from .split import Split

IMAGES_A_STEP = 64  # of the fine-tuning
RATE, DECAY, WARMUP = 1e-3, 0.05, 0.1  # AdamW's peak rate and weight decay, share of warm-up
LAYERS, WIDE, LAYERS_OF_WIDE = 0.75, 768, 0.65  # factor of the rate from a transformer's layer to the one below
SMOOTHING = 0.1  # of the labels
VIEW = ViewPolicy(scale=(0.5, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)
EPOCHS, LEAST = 10, 500  # where nobody says how long: so many, and at least so many steps
Solver = Literal["auto", "lbfgs", "sgd"]
Guesses = dict[int | None, Tensor]  # (Q,) labels, by the number of neighbours where there are any
Learner = Callable[[Tensor, int], Guesses]  # what it gives the test images after learning from these rows (n,), by seed


@dataclass(frozen=True)
class System:
    """A backbone to judge, and how it is fed; without one, the pixels themselves."""

    name: str
    backbone: Backbone | None
    preprocess: Preprocess


class Protocol(ABC):
    """A way of judging a system."""

    name: ClassVar[str]
    repeats: ClassVar[bool] = False  # whether a seed matters when all labels are used

    @property
    @abstractmethod
    def meaning(self) -> str:
        """The protocol in words."""

    def settles(self, images: int) -> bool:
        """Whether the verdict of a run may rest on it, after learning from so many images."""
        return True

    @abstractmethod
    def learner(self, system: System, split: Split) -> Learner:
        """The system with this split, ready to learn from any rows of the training images."""


@dataclass(frozen=True)
class _OnFeatures(Protocol):
    """A protocol on the features of a frozen backbone, which are computed once."""

    batch_size: int
    device: torch.device

    def features(self, system: System, images: ImageSet) -> Tensor:
        """The system's features (N, D) float32 of these images, on the CPU."""
        if system.backbone is None:
            return pixels_as_features(images, system.preprocess, batch_size=self.batch_size)
        system.backbone.to(self.device)
        try:
            return embed(system.backbone, images, system.preprocess, batch_size=self.batch_size, device=self.device)
        finally:
            system.backbone.to("cpu")

    def learner(self, system: System, split: Split) -> Learner:
        """The system with the features of both parts."""
        train, test = self.features(system, split.train), self.features(system, split.test)
        return lambda rows, seed: self.judge(train[rows], split.labels[rows], test, seed)

    @abstractmethod
    def judge(self, bank: Tensor, labels: Tensor, queries: Tensor, seed: int) -> Guesses:
        """The guesses for the queries (Q, D) after learning from the bank (N, D) and its labels (N,)."""


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
        return dict(knn_guesses(bank, labels, queries, ks=self.ks, device=self.device).items())


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

    def features(self, system: System, images: ImageSet) -> Tensor:
        """The system's features (N, D) of these images.

        Raises:
            DataError: they are not finite.
        """
        found = super().features(system, images)
        if not found.isfinite().all():
            raise DataError(
                f"linear: features of '{system.name}' are not finite. The weights have diverged, or belong to another "
                f"network; k-NN (--protocol knn) still gives a number."
            )
        return found

    def judge(self, bank: Tensor, labels: Tensor, queries: Tensor, seed: int) -> Guesses:
        """The guesses of the classifier with the best setting."""
        if self.solver == "lbfgs" or (self.solver == "auto" and bank.numel() <= LARGE):
            return {None: linear_guesses(bank, labels, queries, seed=seed)[0]}  # in float64, which few GPUs are good at
        fits = self.device.type == "cuda" and 2 * bank.nbytes < torch.cuda.mem_get_info(self.device)[0]
        near = self.device if fits else bank.device
        return {None: linear_guesses_sgd(bank.to(near), labels, queries.to(near), seed=seed)[0]}


@dataclass(frozen=True)
class FineTune(Protocol):
    """Fine-tuning of all of a backbone with a linear head; raw pixels have nothing to tune: a linear probe."""

    name = "finetune"
    repeats = True
    epochs: int | None
    """Of training; None: 10, and at least 500 steps, so that few labels have time to be learned."""
    batch_size: int  # images of a forward pass that trains nothing
    device: torch.device

    @property
    def meaning(self) -> str:
        """The protocol in words."""
        length = f"{self.epochs} epoch{'s' if self.epochs != 1 else ''} in steps"
        if self.epochs is None:
            length = f"{EPOCHS} epochs, at least {LEAST} steps,"
        return (
            f"fine-tuning of a copy of the whole backbone with a linear head: {length} of {IMAGES_A_STEP} images, "
            f"AdamW at {RATE:g} with warm-up and cosine (in a transformer {LAYERS:g} of it for each layer further "
            f"down, {LAYERS_OF_WIDE:g} from {WIDE} channels on), crops of half of the image or more, mirrored or not, "
            f"and labels smoothed by {SMOOTHING:g}; raw pixels, which have nothing to tune: a linear probe"
        )

    def settles(self, images: int) -> bool:
        """Not if it is shorter than where nobody says how long."""
        return steps_of(self.epochs, images) >= steps_of(None, images)

    def learner(self, system: System, split: Split) -> Learner:
        """The system's network, of which a copy is trained for each draw of labels; a linear probe without one."""
        backbone, feed = system.backbone, system.preprocess
        if backbone is None:
            return Linear(self.batch_size, self.device).learner(system, split)

        def learn(rows: Tensor, seed: int) -> Guesses:
            classes, targets = torch.unique(split.labels[rows], return_inverse=True)
            with kept_random_state(self.device):
                seed_generators(self.device, seed)
                head = nn.Linear(backbone.embed_dim, len(classes))
                nn.init.zeros_(head.weight)
                model = nn.Sequential(copy.deepcopy(backbone), head).to(self.device)
                train = split.train.subset(rows)
                train_whole(model, feed, train, targets, epochs=self.epochs, seed=seed, device=self.device)
                return {None: classes[scores_of(model, feed, split.test, self.batch_size, self.device).argmax(1)]}

        return learn


def steps_of(epochs: int | None, images: int) -> int:
    """How many steps `epochs` of so many images are; None as `FineTune` has it."""
    an_epoch = images // min(IMAGES_A_STEP, images)
    return max(LEAST, EPOCHS * an_epoch) if epochs is None else epochs * an_epoch


def train_whole(
    model: nn.Module,
    feed: Preprocess,
    train: ImageSet,
    targets: Tensor,
    *,
    epochs: int | None,
    seed: int,
    device: torch.device,
) -> None:
    """Fine-tune a backbone with the head that follows it, in place, as `FineTune` says; targets are (N,) from 0 on."""
    optimizer = torch.optim.AdamW(_groups(model), lr=RATE)
    view = PolicyTransform(VIEW, feed.size, feed)
    batch = min(IMAGES_A_STEP, len(train))
    per_epoch, total = len(train) // batch, steps_of(epochs, len(train))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with Progress(total, "step", leave=False) as progress:
        for step in range(total):
            if step % per_epoch == 0:
                order = torch.randperm(len(train), generator=generator)
            index = order[step % per_epoch * batch :][:batch]
            images = view(train.fetch(index.tolist()).to(device), Draws.of(seed, step // per_epoch, index))
            for group in optimizer.param_groups:
                group["lr"] = RATE * group["factor"] * _course(step, total)
            optimizer.zero_grad(set_to_none=True)
            guesses, truth = model(images).float(), targets[index].to(device)
            loss = F.cross_entropy(guesses, truth, label_smoothing=SMOOTHING)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it without types
            optimizer.step()
            progress.update()


def scores_of(model: nn.Module, feed: Preprocess, images: ImageSet, batch_size: int, device: torch.device) -> Tensor:
    """What a network in eval mode gives images as `feed` makes them, (N, K) float32 on the CPU."""
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            index = range(start, min(start + batch_size, len(images)))
            found.append(model(feed.pixels(feed.fetch(images, index).to(device))).float().cpu())
    return torch.cat(found)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters of a backbone and its head: matrices decay, and a transformer's layers learn less further down.

    (Bao, Dong and Wei 2021, arXiv 2106.08254, appendix; He et al. 2021, arXiv 2111.06377, table 9.)
    """
    factors, (backbone, _) = {}, model.children()
    if isinstance(backbone, TokenBackbone):
        layers = LAYERS_OF_WIDE if backbone.token_dim >= WIDE else LAYERS
        factors = {f"0.{name}": layers**depth for name, depth in backbone.depths().items()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((factors.get(name, 1.0), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": some, "factor": factor, "weight_decay": DECAY if decays else 0.0}
        for (factor, decays), some in groups.items()
    ]


def _course(step: int, total: int) -> float:
    """The rate's share at a step: linear over the first tenth, then a cosine to zero."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

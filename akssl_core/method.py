"""The base of methods: a module whose forward pass is one training step's loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, variance
from typing import Any, ClassVar, Generic, Literal, get_args, get_origin

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from .backbone.base import Backbone
from .config.schema import Component
from .data.base import Batch, Views
from .draws import drawing
from .errors import PluginError, shown
from .schedule import Now, Schedule


@dataclass(frozen=True, slots=True)
class ParamRule:
    """How the parameters whose name matches a pattern are trained. Factors multiply the base value."""

    match: str
    """A pattern of names as `fnmatch` takes it: "predictor.*"."""
    lr: float = 1.0
    """Factor of the learning rate."""
    weight_decay: float = 1.0
    """Factor of the weight decay; 0.0: exempt."""
    fixed_lr: bool = False
    """The learning rate stays at its start value (SimSiam's predictor)."""
    adapt: bool = True
    """False: no LARS trust ratio."""
    frozen_epochs: float = 0.0
    """Gradients are dropped for so many epochs (SwAV's prototypes, DINO's last layer)."""
    rise_epochs: float = 0.0
    """After `frozen_epochs` the learning rate rises from 0 for so many epochs."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The numbers of a run that are known before its method is built."""

    images: int
    """Training images."""
    batch_size: int
    """Images a step, over all processes and micro-batches."""
    forward_size: int
    """Images of one forward pass in one process."""
    image_size: int
    """Side of the global views in pixels."""
    epochs: float
    """Passes over the images; a part of one where `train.steps` ends the run before."""
    views: Mapping[str, int]
    """How many views of each group the augmentation makes."""
    peak_rate: float = 0.0
    """The largest learning rate, scaled to the batch; 0 where it is not known."""
    labelled: int = 0
    """Training images that have a label; the others have -1."""
    classes: int = 0
    """Labels are from 0 to `classes - 1`; 0: there are none."""
    channels: int = 3
    """Of every image: 3 for colour, 1 for gray."""
    backbone: str = ""
    """The family of the backbone, the letters that its name begins with: "vit" of `vit_tiny`, "resnet" of `resnet50`,
    "mobilenetv" of `timm/mobilenetv3_small_050`, "custom" for a module that was passed from Python."""
    embed_dim: int = 0
    """The width of the backbone's features; 0 where it is not known."""
    tokens: tuple[int, int] | None = None
    """Rows and columns of the patches of a global view; None: the backbone has no tokens, as a convolution has none."""

    def outputs(self, wanted: int, *, images_each: int = 8, least: int = 256) -> Choice | None:
        """Fewer outputs than `wanted` for a head over prototypes; None where these are not too many.

        At most one for every `images_each` training images (published recipes have 12 to 156), but not below `least`.
        """
        most = max(least, 1 << (max(self.images // images_each, 1).bit_length() - 1))
        if wanted <= most:
            return None
        each = f"at most one output for every {images_each} of the {self.images} training images"
        return Choice(most, f"a power of two, {each}, at least {least}")

    def within_run(self, schedule: Schedule) -> Choice | None:
        """The schedule with its end at that of the run; None where it ends before, or is constant."""
        if schedule.end is None or (schedule.over or 0) <= self.epochs:
            return None
        shorter = schedule.model_copy(update={"over": self.epochs}).model_dump()
        return Choice(shorter, f"its end is reached within the {self.epochs:.3g} epochs of the run")

    def part_of_run(self, epochs: float | None) -> Choice | None:
        """A tenth of the run, where so many `epochs` would be all of it; None where they are fewer, or none are set."""
        if epochs is None or epochs < self.epochs:
            return None
        return Choice(round(self.epochs / 10, 4), f"a tenth of the {self.epochs:.3g} epochs of the run")


@dataclass(frozen=True, slots=True)
class Shown:
    """The training images as a run shows them to its method."""

    images: int
    """How many there are."""
    batch_size: int
    """As many fit through a forward pass."""
    device: torch.device
    """Where views are made."""
    views: Callable[[Tensor, int, int], Views]
    """Views of the images at positions (n,), as an epoch under a seed shows them: `views(index, seed, epoch)`."""
    identity: Callable[[], Mapping[str, Any]]
    """What decides their pixels beside seed and epoch: data, augmentation and size, as plain values."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting's value that follows from the facts, and why."""

    value: Any
    """The value to take where the user gave none."""
    reason: str
    """The facts that it follows from, in words."""


@dataclass(frozen=True, slots=True)
class Landmark:
    """Values in a run's rows that tell of a fault, and what to do about it.

    A run is at a landmark when every term of `where` lies between its two bounds in all rows of the last steps.
    """

    verdict: Literal["collapsed", "not learning"]
    """The word for a run at this landmark."""
    where: Mapping[str, tuple[float, float]]
    """Column of the rows -> its lowest and highest value."""
    meaning: str
    """These values in words: "the teacher's outputs are even"."""
    cause: str
    """The usual reason why a run gets there."""
    cure: str
    """The remedy, in words."""
    after: int = 100
    """Optimizer steps before which the values mean nothing."""
    throughout: bool = False
    """Whether all rows of the run must be there, not only the last."""


@dataclass(frozen=True, slots=True)
class Curve:
    """How a logged term moves in a healthy run, for whoever looks at its chart."""

    shape: str
    """In words: "falls from log K to about half of it; a rise while the teacher warms up is normal"."""
    lines: Mapping[str, float] = field(default_factory=dict)
    """Values to read the curve against: "even outputs" -> log K."""


@dataclass(frozen=True, slots=True)
class Course:
    """How far runs of a default recipe came on one data set, epoch by epoch, each from a seed of its own.

    A run of that recipe on these data, of as many epochs, is held against it in its report.
    """

    data: str
    """The data in words: "10,000 images of shapes"."""
    sample: str
    """The hash of them that a run's manifest has under `data.sample`."""
    knn_top1: Sequence[Sequence[float]]
    """After each epoch the k-NN accuracy of each run in percent, of seeds 0, 1 and so on; of two runs at least."""

    def __post_init__(self) -> None:
        if any(len(runs) < 2 or len(runs) != len(self.knn_top1[0]) for runs in self.knn_top1):
            raise ValueError(f"Course: expected two runs or more, as many after each epoch, got {self.knn_top1}")

    def expected(self) -> list[tuple[float, float, float]]:
        """After each epoch the mean accuracy, and between which two one of another seed is as expected.

        Three standard deviations on both sides, pooled over the epochs because the runs are few, and three points at
        least: a thousand test images give no more exact an answer.
        """
        pooled = math.sqrt(mean(variance(runs) for runs in self.knn_top1))
        room = max(3 * pooled, 3.0)
        return [(mean(runs), mean(runs) - room, mean(runs) + room) for runs in self.knn_top1]


@dataclass(frozen=True, slots=True)
class Artefacts:
    """What a method has to show at the end of a run, beside its backbone."""

    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> (B, C, H, W), one for each image of the batch, values in [0, 1]: columns of a table in the report.
    `backbone.image.pictures` makes them of views."""
    numbers: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Name -> a number, which stands among the final scores."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> what to keep beside the backbone, in `method.safetensors`: the weights of a head."""


@dataclass(frozen=True, slots=True)
class Published:
    """The settings that the source of a recipe states. The kit compares it with the recipe, READMEs show both."""

    source: str
    """Who published it and where: authors' code or paper, with its arXiv number and section."""
    values: Mapping[str, Any]
    """The published settings as a partial run, nested as those of a recipe are."""
    differs: Mapping[str, str] = field(default_factory=dict)
    """A setting's path and why the recipe has another value, or one where the source has none."""
    beside: Sequence[str] = ()
    """Other differences, which no setting expresses."""


Headline = Literal["knn", "linear", "finetune"]
"""A protocol of `akssl eval`."""
B = TypeVar("B", bound=Backbone, default=Backbone, covariant=True)


class Method(nn.Module, Component, ABC, Generic[B]):
    """A self-supervised method. It is the module that DDP wraps, so its forward *is* the training step.

    `Method[TokenBackbone]` is one over patch tokens: it accepts no other backbone, and type checkers know it.
    """

    kind = "method"
    views: ClassVar[Mapping[str, int | range]] = {"global": 2}
    """How many views of each group it takes; a range where several numbers will do."""
    accepts: ClassVar[type[Backbone]] = Backbone  # type: ignore[type-abstract]
    """The backbones it works with; `Method[TokenBackbone]` sets it to those over patch tokens."""
    uses_labels: ClassVar[bool] = False
    """Whether `step` reads `batch.label`: a run without labels is refused, the report says so."""
    headline: ClassVar[Headline] = "knn"
    """The protocol of `akssl eval` that the method is judged by. A run ends with k-NN; another is waited for."""
    collapses: ClassVar[bool] = True
    """Whether features that are all alike can lower the loss. False for one on pixels, whose spread is no fault."""
    shared_batch_norm: bool = True
    """With several processes, batch norms see the batch of all (SyncBN)."""
    batch_norm_groups: int = 1
    """Where batch norms are not shared: parts of the batch of all with statistics of their own."""
    measures_statistics: bool = False
    """After the last step, batch norms of the encoder measure their statistics anew: views were unlike images."""
    accumulates: ClassVar[bool] = False
    """The loss of a batch is the mean over its micro-batches' losses."""
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Partial runs by name: "default", "cifar", "imagenet"."""
    published: ClassVar[Mapping[str, Published]] = {}
    """What the source of each recipe says, by the recipe's name."""
    courses: ClassVar[Sequence[Course]] = ()
    """How far runs of the recipe "default" have come, by data set: what a later run is held against."""
    paper: ClassVar[str] = ""
    """Authors, title, year and link."""
    trial_settings: ClassVar[Mapping[str, Any]] = {}
    """Own settings for the kit's small runs, where the defaults need something of the user's: a teacher, say."""

    def __init__(self, config: Any, backbone: B) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        for base in cls.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is Method and isinstance(get_args(base)[0], type):
                cls.accepts = get_args(base)[0]

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> Mapping[str, Choice]:
        """Own settings that should follow the data's size, by name; those that the user has set stay as they are.

        `config` holds the settings so far: the schema's defaults and the recipe's values, under the user's.
        """
        return {}

    @classmethod
    def check(cls, config: Any, facts: Facts) -> Sequence[str]:
        """Warnings about settings that go badly together; the user reads them before training starts.

        Raises:
            ConfigError: the settings cannot work with these facts.
        """
        return ()

    @classmethod
    def landmarks(cls, config: Any, facts: Facts) -> Sequence[Landmark]:
        """Values of the terms that `step` logs which tell of a fault: "a loss that stays at log K is uniform"."""
        return ()

    @classmethod
    def curves(cls, config: Any, facts: Facts) -> Mapping[str, Curve]:
        """The shape that terms which `step` logs take in a healthy run, by name; the report shows it beside them."""
        return {}

    @classmethod
    def derived(cls, config: Any, facts: Facts) -> Mapping[str, str]:
        """Numbers that follow from the settings, for `akssl explain`: negatives of an anchor, say."""
        return {}

    @abstractmethod
    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """The terms of one step: "loss" (a scalar) is minimised, the others are logged."""

    def forward(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """`step`, under the name by which DDP sees one forward.

        Raises:
            PluginError: what the step returns are no terms.
        """
        with drawing(batch.draws):
            terms: Any = self.step(batch, now)
        if not isinstance(terms, Mapping) or not isinstance(terms.get("loss"), Tensor):
            raise PluginError(
                f"method {self.name}: its step returned {shown(terms)}; expected tensors by name with one 'loss', as "
                "{'loss': loss}."
            )
        return terms  # type: ignore[return-value]

    def before_training(self, shown: Shown) -> None:
        """Called once in each process before its first step, with the images as they will be shown."""

    def drawn_by(self, seed: int, epoch: int) -> tuple[int, int]:
        """The seed and the epoch by which the views of an epoch are drawn, where a method shows views again."""
        return seed, epoch

    def param_rules(self) -> Sequence[ParamRule]:
        """Exceptions from "every parameter is trained alike"; later rules multiply onto earlier ones."""
        return ()

    def after_step(self, now: Now) -> None:
        """Called once after each real optimizer step, for slow state that no block covers."""

    def skip_step(self) -> None:
        """Called in place of `after_step` after a step that fp16 had to skip: forget what it left for that."""

    def artefacts(self, batch: Batch, now: Now) -> Artefacts:
        """What there is to show after the last step, of some training images that are the same for each method.

        It is asked once, in evaluation mode, without gradients and in the main process alone, where collectives see no
        other. `batch` has the views of the first epoch; `now` is the end. What cannot be kept is warned of.
        """
        return Artefacts()

    @classmethod
    def untrained(cls, config: Any, backbone: Any) -> Backbone:
        """The encoder before the first step, around a backbone with its first weights; without what else is read."""
        return cls(config, backbone).encoder

    @property
    def encoder(self) -> Backbone:
        """The network that is probed and exported; momentum methods may return their teacher's."""
        return self.backbone

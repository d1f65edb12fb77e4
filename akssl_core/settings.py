"""Every setting of a run on one page, and the forms in which they are given: keywords, flags, tables, `--set`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt
from pydantic.fields import FieldInfo

from .config.registry import STAND_IN
from .config.schema import (
    HARMLESS,
    AugmentationRef,
    BackboneRef,
    CallbackRef,
    DataRef,
    MethodRef,
    OptimizerRef,
    Schema,
    absolute_path,
)
from .config.yaml import DEEPEST
from .errors import ConfigError, did_you_mean, plain, shown

if TYPE_CHECKING:
    from .method import Choice, Method

T = TypeVar("T")
FLAG = "flag"
Flag = Annotated[T, FLAG]
"""The type of a field that is a keyword of `run` and an option of the command line by its own name."""
Harmless = Annotated[T, HARMLESS]
"""The type of a field with another value of which a run can be resumed."""


class Clip(Schema):
    """Gradient clipping: of the whole model's norm, each network's (arXiv 2304.07193) or parameter's (2104.14294)."""

    norm: float = Field(gt=0, description="largest L2 norm a gradient keeps")
    per: Literal["model", "network", "parameter"] = Field(
        "model", description="whose norm is limited; network: the backbone's, and that of each head"
    )


Threads = Annotated[PositiveInt | Literal["auto"], BeforeValidator(lambda raw: "auto" if raw is None else raw)]


class TrainSpec(Schema):
    """How long, in what batches and at what precision a run trains. Null means: decided by a stated rule."""

    epochs: Flag[Harmless[int | None]] = Field(None, ge=1, description="passes over the training images")
    steps: Flag[Harmless[int | None]] = Field(
        None, ge=1, description="stop after so many optimizer steps, even within an epoch"
    )
    batch_size: Flag[int | None] = Field(None, ge=1, description="images a step, over all processes")
    image_size: Flag[int | None] = Field(
        None, ge=8, le=1024, description="side in pixels of the images that the backbone is for, and of global views"
    )
    accumulate: int = Field(1, ge=1, description="micro-batches a step")
    precision: Flag[Literal["auto", "fp32", "bf16", "fp16"]] = Field(
        "auto", description="number format of the forward pass; what is float32 is never TF32"
    )
    device: Flag[Harmless[Literal["auto", "cpu", "cuda", "mps", "xpu"]]] = Field(
        "auto", description="where to train; auto: on a GPU where there is one"
    )
    strategy: Harmless[Literal["ddp", "fsdp"]] = Field(
        "ddp", description="with several processes: each has all parameters, or a share of them (large ViTs)"
    )
    devices: Flag[Harmless[int]] = Field(
        1, ge=1, description="processes; the command line starts them, torchrun those of a script"
    )
    workers: Flag[Harmless[int | None]] = Field(
        None,
        ge=0,
        description="processes that read a torch Dataset (null: none), or threads that decode files (one a core)",
    )
    threads: Harmless[Threads] = Field(
        "auto", description="threads a process computes with on a CPU; auto, or null: measured at the start of the run"
    )
    clip: Clip | None = Field(None, description="gradient clipping")
    compile: bool = Field(
        False, description="torch.compile the backbones for training; pays on long runs on a GPU, not on a CPU"
    )
    recompute: Harmless[bool] = Field(
        False,
        description="keep the insides of one backbone block at a time and compute the others again: less memory, "
        "about a third more time",
    )
    deterministic: bool = Field(False, description="only operations that give the same bits every time")
    stop_on_collapse: Flag[Harmless[bool]] = Field(
        False, description="end a run that has collapsed, scored and labelled as such; `akssl run` then exits with 1"
    )
    log_every: Harmless[int | None] = Field(None, ge=1, description="steps between rows of metrics.jsonl")
    checkpoint_every: Harmless[int | None] = Field(
        None, ge=1, description="steps between checkpoints; null: one with each probe, and one a minute"
    )
    keep: Harmless[int] = Field(2, ge=1, description="latest checkpoints to keep, beside the best")


class EvaluateSpec(Schema):
    """How the encoder is probed while it trains and at the end."""

    every: float | None = Field(None, gt=0, description="epochs between probes; null: about ten in a run")
    k: int = Field(20, ge=1, description="neighbours of the k-NN probe")
    temperature: float = Field(0.07, gt=0, description="temperature of the k-NN votes")
    online_bank: int = Field(2000, ge=2, description="labelled images an online probe searches")
    online_queries: int = Field(1000, ge=2, description="images an online probe asks for")
    bank: int = Field(20_000, ge=2, description="labelled images the final k-NN searches")
    queries: int = Field(5000, ge=2, description="images the final k-NN asks for")
    batch_size: int = Field(256, ge=1, description="images a forward pass of the probe")


UNITS = {"s": 1, "m": 60, "h": 3600}  # seconds in each
BUDGET = "budget"  # the origin of steps that were chosen to take a time begins with it
LENGTH = ("epochs", "steps")  # settings of `train` that say how long a run is
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")


def absolute_if_there(source: str) -> str:
    """A path that exists, or looks like one, holds from any folder; a backbone's name stays."""
    looks = source.startswith((".", "~", "/")) or source.lower().endswith((".safetensors", *PICKLES))
    return str(absolute_path(source)) if source and (looks or os.path.exists(source)) else source


class WeightsSpec(Schema):
    """Weights for a network, and how they know images."""

    source: Annotated[str, AfterValidator(absolute_if_there)] = Field(
        min_length=1,
        description="run folder, .safetensors file, or name of a backbone that has published weights",
    )
    prefix: str | None = Field(
        None, description="how the keys of the network begin where there are several networks; null: found"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="normalisation of the images that the weights know, a number a channel; null: of the data"
    )
    std: tuple[PositiveFloat, ...] | None = Field(None, description="as mean")


class StartSpec(WeightsSpec):
    """The weights that a run begins from, and what becomes of them."""

    keep: Literal["trained", "best"] = Field(
        "trained",
        description="what the run leaves: the trained weights, or the best of them, of those it began from, and of "
        "mixtures of both, chosen by images that are held out of training",
    )
    warm_heads: float | None = Field(
        None,
        ge=0,
        description="epochs in which new heads learn alone while the backbone stays; null: at most a tenth of the run",
    )
    warm_with: tuple[str, ...] | None = Field(
        None,
        description="patterns of the backbone's parameters that learn with the heads; null: the first convolution, "
        "where its channels were adapted",
    )
    freeze: tuple[str, ...] = Field(
        (), description='patterns of the backbone\'s parameters that stay for good: "layer1.*"'
    )
    statistics: Literal["keep", "measure"] = Field(
        "keep",
        description="running statistics of batch norms: those of the weights and then of the views, or measured on "
        "the images at the start and the end",
    )


class RunSpec(Schema):
    """A whole run. Null means: decided by a rule once the data is known."""

    method: MethodRef
    backbone: Flag[BackboneRef | None] = Field(None, description="registered name; null: chosen for the image size")
    augmentation: AugmentationRef
    data: Flag[DataRef] = Field(
        description="source name, folder, table, archive or prepared file; by default drawn shapes"
    )
    optimizer: OptimizerRef
    callbacks: Harmless[tuple[CallbackRef, ...]] = ()
    train: TrainSpec = TrainSpec()
    start: Flag[StartSpec | None] = Field(
        None, description="weights to begin from: run folder, .safetensors file or name; null: random ones"
    )
    evaluate: Harmless[EvaluateSpec] = EvaluateSpec()
    seed: Flag[int] = Field(0, ge=0, lt=2**63, description="decides weights, batches and views")
    recipe: Flag[str] = Field("default", description="the method's preset: default, cifar, imagenet, ...")

    @property
    def method_class(self) -> type[Method]:
        """The class of the method, for what it says of settings and facts."""
        found: type[Method] = self.method.component  # type: ignore[assignment]
        return found

    def table(self) -> dict[str, Any]:
        """The settings as plain values, as they stand in config.yaml."""
        return self.model_dump(mode="json")


def seconds_of(budget: object) -> float:
    """A time in seconds, of "90s", "30m", "2h" or a number of seconds.

    Raises:
        ConfigError: it is no time.
    """
    text = str(budget).strip().lower()
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ConfigError(f"budget: expected a time as 90s, 30m or 2h, got {shown(budget)}.")
    return seconds


def flags(schema: type[Schema]) -> dict[str, FieldInfo]:
    """The fields of a schema that are keywords and options by their own names."""
    return {name: field for name, field in schema.model_fields.items() if FLAG in field.metadata}


FLAT = flags(TrainSpec)  # keywords that are settings of `train`
COMPONENTS = ("method", "backbone", "augmentation", "data", "optimizer")
TABLES = ("train", "evaluate", "start")
PLAIN = ("seed", "recipe", "callbacks")
OF_RUN = ("config", "out", "budget", "overwrite", "resume", "report")  # keywords of `run` that are no settings
OF_DATA = {"test_data": "test", "labels": "labels"}  # keywords that are settings of the data
OBJECTS = ("data", "backbone", "augmentation")  # settings that may be Python objects


@dataclass(frozen=True)
class Given:
    """The request of a user: settings in layers, and Python objects that stand beside them."""

    layers: Sequence[tuple[str, Mapping[str, Any]]]
    """(Who gave them, settings), lowest first."""
    objects: Mapping[str, Any] = field(default_factory=dict)
    """By the names in OBJECTS."""


def sections(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keywords moved into their sections.

    Raises:
        ConfigError: a name that is neither a flat keyword nor a section, or one of files beside data that are objects.
    """
    result: dict[str, Any] = {}
    of_data: dict[str, Any] = {}
    allowed = [*COMPONENTS, *TABLES, *PLAIN, *FLAT, *OF_DATA, "options"]
    for key, given in settings.items():
        value = _plain(given)
        if key in FLAT:
            result.setdefault("train", {})[key] = value
        elif key in OF_DATA:
            of_data[OF_DATA[key]] = value
        elif key == "start" and (value is None or isinstance(value, str | Path)):
            result[key] = value if value is None else {"source": str(value)}
        elif key in ("options", *TABLES):
            result.setdefault("method" if key == "options" else key, {}).update(table_of(key, value))
        elif key == "method":
            result.setdefault(key, {}).update({"name": value} if isinstance(value, str) else table_of(key, value))
        elif key in (*COMPONENTS, *PLAIN):
            result[key] = value
        else:
            hint = did_you_mean(str(key), allowed)
            raise ConfigError(f"run: unknown setting '{key}'.{hint} Settings here: {', '.join(sorted(allowed))}.")
    if of_data:
        data = result.get("data", {})
        table = data if isinstance(data, Mapping) else {"name": data}
        name = table.get("name", "")
        if not isinstance(name, str | Path) or name == STAND_IN:
            alone = next(key for key in OF_DATA if key in settings)
            raise ConfigError(f"{alone}: it goes with data in files. Labels of objects: data=(images, labels).")
        result["data"] = {**table, **of_data}
    return result


def _plain(value: Any) -> Any:
    """A setting with numbers of Python in place of numpy's."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def table_of(key: str, value: Any) -> Mapping[str, Any]:
    """The value of a setting that must be a table.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected a table of settings (name: value), got {shown(value)}.")
    return value


def dotted(assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`[("optimizer.lr", 0.1)]` as nested tables, the form of `--set`. A text beside settings of its own is their name.

    Raises:
        ConfigError: a path goes through something that is not a table.
    """
    result: dict[str, Any] = {}
    for path, value in assignments:
        *parents, leaf = path.split(".")
        if len(parents) > DEEPEST:
            raise ConfigError(f"--set {path:.80}...: settings are not nested deeper than {DEEPEST}.")
        here = result
        for parent in parents:
            below = here.setdefault(parent, {})
            if isinstance(below, str):
                below = here[parent] = {"name": below}
            if not isinstance(below, dict):
                raise ConfigError(f"--set {path}={value}: '{parent}' was set to a value before, so it has no settings.")
            here = below
        if isinstance(value, str) and isinstance(here.get(leaf), dict):
            here, leaf = here[leaf], "name"
        here[leaf] = value
    return result


CORE = "core default"  # the origin of what the core decides for every run


def by_user(who: str) -> bool:
    """Whether this origin of a value is a keyword, a flag or a config file."""
    return not who.startswith((CORE, "recipe ", "rule: ", "default"))


@dataclass
class Layers:
    """Settings laid over each other, each leaf with who set it."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    """Who set each leaf, by its dotted path."""

    def put(self, settings: Mapping[str, Any], who: str = "") -> None:
        """Lay settings over those that are there; a component's name alone may stand for its table."""
        whole = {key: {"name": v} if key in COMPONENTS and isinstance(v, str) else v for key, v in settings.items()}
        self._merge(self.values, whole, (), who)

    def fill(self, choices: Mapping[str, Choice]) -> None:
        """Set what a rule has chosen, by dotted path."""
        for path, choice in choices.items():
            self.put(dotted([(path, choice.value)]), f"rule: {choice.reason}")

    def get(self, *path: str) -> Any:
        """One value, or None where nothing was set."""
        here: Any = self.values
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    def set_by_user(self, *path: str) -> bool:
        """Whether a keyword, a flag or a config file set this value or one below it."""
        name = ".".join(path)
        origins = [who for key, who in self.origin.items() if key == name or key.startswith(name + ".")]
        return any(map(by_user, origins))

    def _merge(self, base: dict[str, Any], new: Mapping[str, Any], path: tuple[str, ...], who: str) -> None:
        for key, value in new.items():
            here, old = (*path, str(key)), base.get(key)
            if here == ("optimizer", "lr") and isinstance(old, dict) and isinstance(value, int | float):
                value = {"start": value}  # a number is the peak; the recipe's warm-up and decay stay
            if isinstance(value, Mapping):
                if not isinstance(old, dict) or _other_component(old, value):
                    self._forget(here)
                    base[key] = old = {}
                self._merge(old, value, here, who)
            else:
                self._forget(here)
                base[key] = value
                self.origin[".".join(here)] = who

    def _forget(self, path: tuple[str, ...]) -> None:
        """A replaced value takes its origins with it (no LARS settings left over under AdamW)."""
        name = ".".join(path)
        for key in [k for k in self.origin if k == name or k.startswith(name + ".")]:
            del self.origin[key]


def _other_component(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both name a component and the names differ."""
    names = old.get("name"), new.get("name")
    return isinstance(names[0], str) and isinstance(names[1], str) and plain(names[0]) != plain(names[1])


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Settings laid over each other, the last on top."""
    layers = Layers()
    for table in tables:
        layers.put(table)
    return layers.values

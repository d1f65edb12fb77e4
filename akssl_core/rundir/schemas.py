"""The forms of a run's JSON files, by which they are written, and checked when a folder from anywhere is read.

Every field may be missing and others may be there, so that folders of older and newer versions stay readable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from ..config.schema import first_mistake
from ..errors import RunDirError, visible

MOST_BYTES = 2**26  # of a small file
Scalar = str | bool | int | float | None
Drawable = Annotated[float, Field(ge=-1e100, le=1e100)]


class _Open(BaseModel):
    """A table that may hold more than is named here."""

    model_config = ConfigDict(extra="allow")

    def table(self) -> dict[str, Any]:
        """The fields that were given, as plain values."""
        return self.model_dump(exclude_unset=True)


class Facts(_Open):
    """Plain values and lists by name."""

    __pydantic_extra__: dict[str, Scalar | list[Scalar]]


class Data(Facts):
    """The images of a run."""

    images: int | None = None
    channels: int | None = None
    classes: int | None = None  # of which there are images; None: no labels
    class_names: list[str] | None = None
    sample: str | None = None  # a hash of 16 images


class Interval(_Open):
    """A mean, and between which numbers it lies or others are to lie."""

    mean: Drawable
    low: Drawable
    high: Drawable


class Expected(_Open):
    """How far earlier runs of the same recipe came on the same data."""

    data: str = ""  # in words
    runs: int = 0
    epochs: list[Interval] = []  # after each: their mean, and between which accuracies another seed is as expected


class Described(_Open):
    """A method's words on one of its curves in a healthy run, and values to read it against."""

    shape: str = ""
    lines: dict[str, Drawable] = {}
    expected: Expected | None = None


class Manifest(_Open):
    """`manifest.json`, in the order in which a run writes it. Times are UTC."""

    created: str = ""
    status: str = "unknown"  # running, finished, failed, stopped or collapsed
    method: str = ""
    headline: str = "knn"  # the protocol of `akssl eval` that the method is judged by
    collapses: bool = True  # whether the spread of features can tell of a fault of this method
    trained_with_labels: bool | None = None  # the method has read them; else they are for scores alone
    seed: int | None = None
    image: dict[str, Any] | None = None  # what the network sees: size, channels, mean and standard deviation
    data: Data = Data()
    notes: list[str] = []  # what was decided or found along the way
    repeatable: bool | None = None  # by config.yaml alone: no Python objects were given
    hardware: Facts = Facts()
    curves: dict[str, Described] = {}  # by term
    versions: Facts = Facts()
    plugins: list[dict[str, Scalar]] = []
    updated: str = ""
    baselines: dict[str, Drawable | None] = {}  # accuracies that need no training, as they are before the first step
    resumed_at: int | None = None  # the step from which the run last went on
    error: str | None = None  # why it failed or stopped
    not_measured: dict[str, str] | None = None  # why a number is missing, by number
    unreadable: int | None = None  # images
    final: dict[str, float | None] | None = None  # None for NaN or infinite
    above: dict[str, Interval] | None = None  # points of k-NN above each baseline: raw_pixels
    verdict: str | None = None
    diagnosis: dict[str, Any] | None = None  # the verdict with its evidence, cause and cure


class Row(_Open):
    """A line of `metrics.jsonl`."""

    __pydantic_extra__: dict[str, float | None]
    step: int
    epoch: Drawable


class Judged(_Open):
    """The accuracy of one system in an evaluation, in percent."""

    system: str
    accuracy: Drawable
    k: int | None = None
    low: Drawable | None = None
    high: Drawable | None = None


class Judgement(_Open):
    """The findings of one protocol with one share of the labels, in `evaluation.json`."""

    scores: list[Judged]
    k: int | None = None
    answer: str = ""
    interval: str = ""
    notes: list[str] = []


class Evaluations(_Open):
    """`evaluation.json`."""

    format: int | str | None = None
    backbone: str = ""  # a hash of the weights that were judged
    results: dict[str, dict[str, dict[str, Judgement]]] = {}  # by protocol, data and share of the labels


class Mixture(_Open):
    """Weights between those that a run began from and those it trained, and their numbers by name."""

    __pydantic_extra__: dict[str, Drawable | None]
    share: float = Field(ge=0, le=1)  # of the trained weights


class Adaptation(_Open):
    """`adaptation.json`: the mixtures of the weights that a run began from and those it trained, and which is kept."""

    format: int | str | None = None
    kept: float  # the share of the trained weights: 0 for the start, 1 for what was trained
    answer: str  # what was kept and why, in a sentence
    how: str = ""  # it was chosen
    mixtures: list[Mixture]


class Origins(RootModel[dict[str, str]]):
    """`provenance.json`."""


T = TypeVar("T", bound=BaseModel)


def read_start(path: Path) -> bytes:
    """A small file, or the start of one that should be small.

    Raises:
        RunDirError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(min(os.fstat(file.fileno()).st_size + 1, MOST_BYTES))  # room is taken for all it might be
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from error


def checked(model: type[T], path: Path, table: Mapping[str, Any] | None = None) -> T:
    """The table of this form that a JSON file holds, or one of its lines.

    Raises:
        RunDirError: it cannot be read, or is of another form; with the first mistake.
    """
    try:
        return model.model_validate(json.loads(read_start(path)) if table is None else table, strict=True)
    except ValidationError as error:
        said = "a name is not valid Unicode"  # half a character in it
        with suppress(UnicodeEncodeError):
            said = visible(first_mistake(error))  # without the value, which may be of any length
        raise RunDirError(f"{path} is damaged: {said}.") from error
    except (ValueError, RecursionError) as error:
        raise RunDirError(f"{path} is damaged: it is not valid JSON: {error!s:.100}.") from error

"""What the JSON files of a run hold, checked before a report is made of them: they may come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from ..errors import RunDirError, visible

Scalar = str | bool | int | float | None
Drawable = Annotated[float, Field(ge=-1e100, le=1e100)]


class _Open(BaseModel):
    """A table that may hold more than is named here."""

    model_config = ConfigDict(extra="allow", strict=True)


class Facts(_Open):
    """Plain values and lists by name."""

    __pydantic_extra__: dict[str, Scalar | list[Scalar]]


class Data(Facts):
    """What the manifest says of the images."""

    classes: int | None = None
    class_names: list[str] | None = None


class Described(_Open):
    """What a method says of one of its curves."""

    shape: str = ""
    lines: dict[str, Drawable] = {}


class Manifest(_Open):
    """`manifest.json`."""

    status: str
    method: str = ""
    error: str = ""
    notes: list[str] = []
    final: dict[str, float | None] = {}
    baselines: dict[str, Drawable | None] = {}
    curves: dict[str, Described] = {}
    data: Data = Data()
    hardware: Facts = Facts()
    versions: Facts = Facts()
    plugins: list[dict[str, Scalar]] = []


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
    """What one protocol has found with one share of the labels, in `evaluation.json`."""

    scores: list[Judged]
    k: int | None = None
    answer: str = ""
    interval: str = ""
    notes: list[str] = []


class Origins(RootModel[dict[str, str]]):
    """`provenance.json`."""


T = TypeVar("T", bound=BaseModel)


def _first(error: ValidationError) -> str:
    """The first mistake, without the value, which may be of any length."""
    try:
        item = error.errors(include_url=False, include_input=False, include_context=False)[0]
    except UnicodeEncodeError:  # half a character in a name
        return "a name is not valid Unicode"
    return visible(f"{'.'.join(map(str, item['loc'])):.60} {item['msg']:.100}".strip())


def checked(model: type[T], path: Path, data: bytes | Mapping[str, Any]) -> dict[str, Any]:
    """A table of this form as plain values, without what it leaves out.

    Raises:
        RunDirError: it is none, with the first mistake.
    """
    try:
        found = model.model_validate(json.loads(data) if isinstance(data, bytes) else data)
    except ValidationError as error:
        raise RunDirError(f"{path} is damaged: {_first(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise RunDirError(f"{path} is damaged: it is not valid JSON: {error!s:.100}.") from error
    result: dict[str, Any] = found.model_dump(exclude_unset=True)
    return result

"""What `data` means: from a name, a path, a section of settings or a Python object to the source that reads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ..config.registry import STAND_IN
from ..config.schema import DataRef, Lookup, Schema, validate
from ..errors import DataError, UnknownComponent, did_you_mean, plain
from .arrays import Arrays
from .base import DatasetSource
from .folder import Folder
from .prepared import SUFFIX, Prepared
from .scan import existing_path, expanded, nearest_path
from .wrapped import Wrapped


def source_from(data: object, image_size: int | None = None) -> DatasetSource | None:
    """The source for a Python object or a path; None for anything else, a source's name among it.

    An array or tensor, alone or as a pair (images, labels); a torch `Dataset`; a `DatasetSource`, as it is;
    a `Path`, or the text of a path that exists, of a folder or a prepared file. Names are looked up before, so
    write "./name" for a folder that bears the name of a source.

    Raises:
        DataError: the object is of these kinds and cannot be used.
    """
    if isinstance(data, DatasetSource):
        return data
    if isinstance(data, Dataset):
        return Wrapped(data, image_size=image_size)
    if isinstance(data, Tensor | np.ndarray):
        return Arrays(data, image_size=image_size)
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray):
        return Arrays(data[0], data[1], image_size=image_size)
    if isinstance(data, Path) or (isinstance(data, str) and existing_path(data)):
        path = expanded(data)
        source: Any = source_at(path)
        result: DatasetSource = source(source.Config.model_validate({"path": path}), image_size)
        return result
    return None


def source_at(path: Path) -> type[Folder | Prepared]:
    """The source that reads what lies at a path: a prepared file by its suffix, else a folder."""
    return Prepared if path.suffix.lower() == SUFFIX and not os.path.isdir(path) else Folder


def no_such_data(text: str, names: Iterable[str]) -> DataError:
    """The error for a text that is neither a source's name nor an existing path, with what was perhaps meant."""
    names = sorted(names)
    near = nearest_path(Path(text))
    is_path = "/" in text or text.startswith((".", "~"))
    hint = "" if is_path else did_you_mean(text, names)
    if not hint and near is not None:
        hint = f" Did you mean the {'folder' if os.path.isdir(near) else 'file'} '{near}'?"
    known = ", ".join(names)
    return DataError(
        f"data: '{text:.300}' is neither a data source nor an existing folder or prepared file.{hint} Sources: {known}."
    )


class Sources(Lookup, Protocol):
    """What opening a source by name takes: the installed plugins, seen from below."""

    def provides(self, kind: str, name: str) -> bool:
        """Whether a component of this kind and name can be had."""

    def names(self, kind: str) -> list[str]:
        """All names of one kind that could be meant."""


def name_data(settings: Mapping[str, Any], plugins: Sources) -> Mapping[str, Any]:
    """A data source's name stays; a path becomes the source that reads what lies there."""
    data = settings.get("data")
    more = dict(data) if isinstance(data, Mapping) else {}
    text = more.pop("name", None) if isinstance(data, Mapping) else data
    if not isinstance(text, str | Path):
        return settings
    if isinstance(text, str) and (plain(text) == STAND_IN or plugins.provides("data", text)):
        return settings
    if path := existing_path(text):
        return {**settings, "data": {"name": source_at(path).name, "path": str(path), **more}}
    try:
        plugins.get("data", str(text))
    except UnknownComponent as error:
        raise no_such_data(str(text), plugins.names("data")) from error
    return settings


class DataSpec(Schema):
    """The data alone, for what trains nothing."""

    data: DataRef


def data_source(settings: Mapping[str, Any], plugins: Sources, image_size: int | None = None) -> DatasetSource:
    """The source that the section `data` of some settings means, as a run would build it.

    Raises:
        AksslError: no such source or path, a wrong setting, or any section beside `data`.
    """
    spec = validate(DataSpec, name_data(settings, plugins), registry=plugins)
    source: DatasetSource = spec.data.build(image_size)
    return source

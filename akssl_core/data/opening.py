"""From a name, a path, a section of settings or a Python object to the data source that reads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..config.registry import STAND_IN
from ..config.schema import DataRef, Lookup, Schema, user_path, validate
from ..errors import DataError, UnknownComponent, did_you_mean, plain
from .arrays import Arrays
from .base import DatasetSource
from .files import FolderFiles
from .folder import Folder, FolderConfig
from .places import decoder_for, matches
from .prepared import Prepared
from .scan import nearest_path
from .shards import is_prepared
from .tables import Reading, picked
from .wrapped import Wrapped


class Sources(Lookup, Protocol):
    """The part of the plugin manager that opening a source by name needs."""

    def provides(self, kind: str, name: str) -> bool:
        """Whether a component of this kind and name can be had."""

    def names(self, kind: str) -> list[str]:
        """All names of one kind that could be meant."""


class DataSpec(Schema):
    """The data alone, for what trains nothing."""

    data: DataRef


def open_source(data: Any, plugins: Sources, image_size: int | None = None) -> DatasetSource:
    """The source that `data` means, whatever its form, for views of `image_size` px.

    A `DatasetSource`, as it is; a torch `Dataset` or one of Hugging Face; an array or tensor, or a list of paths or
    images, alone or as a pair (images, labels); a frame of pandas; a source's name, a path of a folder, a table, an
    archive or a prepared file, a table of settings, or a checked reference.

    Raises:
        AksslError: no such source or path, a wrong setting, or an object that cannot be used.
    """
    if isinstance(data, DatasetSource):
        return data
    if isinstance(data, str | Path | Mapping):
        data = validate(DataSpec, {"data": data_table(data, plugins)}, registry=plugins).data
    elif (found := _from_object(data, image_size)) is not None:
        return found
    if type(data).__module__.partition(".")[0] == "datasets":
        raise DataError(
            f"data: a {type(data).__name__} of Hugging Face has no order to shuffle. Load it without streaming=True, "
            f"or name it: data='hf/NAME', with akssl-plugin-hf-datasets installed."
        )
    if not isinstance(data, DataRef):
        raise DataError(
            f"data: cannot use a {type(data).__name__}. Give a source name, a prepared file, a folder or table, a "
            f"torch Dataset, a uint8 array or tensor [N, H, W, C] or [N, C, H, W], a list of paths or images, a frame "
            f"of paths, or a pair (images, labels)."
        )
    source: DatasetSource = data.build(image_size)
    return source


def _from_object(data: Any, image_size: int | None) -> DatasetSource | None:
    """The source of a data set, arrays, a list or a frame, with labels or without; None: it is none of them."""
    labels = None
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # a frame of pandas
        data, labels = picked("the frame", {str(name): data[name].tolist() for name in data.columns}, Reading())
    elif isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], tuple | list | Tensor | np.ndarray):
        data, labels = data
    if isinstance(data, Tensor | np.ndarray):
        return Arrays(data, labels, image_size=image_size)
    is_table = type(data).__module__.partition(".")[0] == "datasets" and hasattr(data, "__len__")
    if isinstance(data, Dataset) or is_table:
        return Wrapped(data, image_size=image_size)
    if not isinstance(data, tuple | list) or not data:
        return None
    if all(isinstance(item, str | Path) for item in data):
        names = [str(user_path(item)) for item in data]
        given = [] if labels is None else labels.tolist() if hasattr(labels, "tolist") else list(labels)
        files = FolderFiles(Path(), names, given)
        files.place = f"a list of {len(names)} files"
        return Folder(FolderConfig(path=Path(os.sep)), image_size, files)
    is_images = all(isinstance(item, Image.Image | Tensor | np.ndarray) for item in data)
    return Wrapped(data, labels, image_size=image_size) if is_images else None


def data_table(data: Any, plugins: Sources) -> Any:
    """Settings of a source: a source's name stays, a path becomes the source that reads what lies there.

    Names are looked up before paths, so write "./name" for a folder that bears the name of a source.

    Raises:
        DataError: a text that is neither.
    """
    more = dict(data) if isinstance(data, Mapping) else {"name": data}
    text = more.pop("name", None)
    if not isinstance(text, str | Path):
        if any(isinstance(part, Tensor | np.ndarray) for part in more.values()):
            raise DataError(
                f"data: a table ({', '.join(map(str, more))}) with arrays is no data source. Pass the images, or "
                f"images and labels as a pair: data=(images, labels)."
            )
        return data
    if isinstance(text, str) and (plain(text) == STAND_IN or plugins.provides("data", text)):
        _refuse_files_beside(text, more, plugins)
        is_folder = plain(text) == Folder.name and isinstance(more.get("path"), str | Path)
        return {"name": text, **_decoded(user_path(more["path"]), more)} if is_folder else data
    if any(map(os.path.exists, matches(text))):
        path = user_path(text)
        source = Prepared if is_prepared(path) else Folder
        return {"name": source.name, "path": str(path), **(more if source is Prepared else _decoded(path, more))}
    try:
        plugins.get("data", str(text))
    except UnknownComponent as error:
        raise no_such_data(str(text), plugins.names("data")) from error
    return data


def _refuse_files_beside(name: str, more: Mapping[str, Any], plugins: Sources) -> None:
    """Refuse a table of labels, or test images, beside a source that has its own."""
    given = [key for key in ("test", "labels") if key in more]
    known = plugins.get("data", name).Config.model_fields if given and plain(name) != STAND_IN else given
    if wrong := [key for key in given if key not in known]:
        raise DataError(f"data.{wrong[0]}: it goes with images in files, and '{name}' has its own. Give --data too.")


def _decoded(path: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a folder with the decoder that its files take, where nobody named one."""
    given = more.get("decoder", {})
    is_open = isinstance(given, Mapping) and "name" not in given
    return {**more, "decoder": {"name": name, **given}} if is_open and (name := decoder_for(path)) else dict(more)


def read_alike(data: str | Path | Mapping[str, Any], before: Mapping[str, Any], plugins: Sources) -> Any:
    """Other files, read by the scale and the decoder's settings of a run's own, where nobody says otherwise."""
    table = data_table(data, plugins)
    if not isinstance(table, Mapping) or table.get("name") != Folder.name:
        return table
    scale = {key: before[key] for key in ("black", "white") if before.get(key) is not None}
    mine, own = table.get("decoder"), before.get("decoder")
    if isinstance(mine, Mapping) and isinstance(own, Mapping) and mine.get("name") == own.get("name"):
        table = {**table, "decoder": {**own, **mine}}
    return {**scale, **table}


def data_title(data: Any) -> str:
    """Data for people: where it lies, the source's name with the settings that were given, or an object's class."""
    if not isinstance(data, str | Path | Mapping):
        is_pair = isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], str | Path)
        return type(data[0] if is_pair else data).__name__
    table = dict(data) if isinstance(data, Mapping) else {"name": str(data)}
    if "path" in table:
        return f"{table['path']}, tested on {table['test']}" if table.get("test") else str(table["path"])
    more = [f"{key}={value}" for key, value in table.items() if key != "name"]
    return f"{table['name']} ({', '.join(more)})" if more else str(table["name"])


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
        f"data: '{text:.300}' is neither a data source nor an existing folder, table or prepared file.{hint} Sources: "
        f"{known}."
    )

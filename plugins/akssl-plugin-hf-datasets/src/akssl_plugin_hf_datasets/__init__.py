"""Hugging Face data sets as sources of images: `--data hf/NAME`, `--data hf/./photos.parquet`, or the source `hf`.

Nothing of the library `datasets` is imported before a data set is opened.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from akssl_core import Component, DataError, Registry, hookimpl

from .source import HfConfig, HfDatasets, as_text


@cache
def at(path: str) -> type[HfDatasets]:
    """The source `hf` with its path set: what `hf/PATH` means."""
    described = Field(path, description=HfConfig.model_fields["path"].description)
    only: Any = Annotated[Literal[path], BeforeValidator(as_text)]  # another path would contradict the name
    settings = create_model("HfConfig", __base__=HfConfig, __doc__=HfConfig.__doc__, path=(only, described))
    return type("HfDatasets", (HfDatasets,), {"__doc__": HfDatasets.__doc__, "Config": settings})


@hookimpl
def akssl_resolve(kind: str, name: str) -> type[Component] | None:
    """Answer for `hf/PATH` and `hf/NAME`.

    Raises:
        DataError: nothing stands behind the slash.
    """
    family, slash, path = name.partition("/")
    if kind != "data" or not slash or family.lower() != HfDatasets.name:
        return None
    if not path:
        raise DataError(f"data: '{name}' names no data set. Write hf/./photos.parquet, hf/./folder or hf/OWNER/NAME.")
    return at(as_text(path))


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the data source."""
    registry.add(HfDatasets)

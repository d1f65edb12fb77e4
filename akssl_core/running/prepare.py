"""Data decoded once for many runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.prepare import PreparedData
from ..data.prepare import prepare as prepare_file
from ..plugins.manager import Plugins, installed


def prepare(
    data: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    size: int | None = None,
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> PreparedData:
    """Decode every image of some data once and write one file, from which runs read the same pixels.

    Args:
        data: a folder of images, a source's name, or a table with its name and settings.
        out: the file to write, NAME.safetensors; it appears whole or not at all.
        size: the shorter side that larger images are reduced to. Default: what the source keeps for training at
            the size that suits its images.
        overwrite: replace a file that is there.
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: the target or the source cannot be used, or too many images cannot be read.
    """
    return prepare_file(data, Path(out), size=size, overwrite=overwrite, plugins=plugins or installed())

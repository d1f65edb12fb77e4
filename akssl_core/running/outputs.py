"""Files made without training: data decoded once for many runs, the report of a run written again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import user_path
from ..data.prepare import PreparedData
from ..data.prepare import prepare as prepare_file
from ..plugins.manager import Plugins, installed
from ..reporting import render
from ..rundir.folder import RunDir
from .rules import CPU_IMAGE_SIZE


def prepare(
    data: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    size: int | None = None,
    image_size: int | None = None,
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> PreparedData:
    """Decode every image of some data once and write one file, from which runs read the same pixels.

    Args:
        data: a folder of images, a source's name, or a table with its name and settings.
        out: the file to write, NAME.safetensors; it appears whole or not at all.
        size: the shorter side that larger images are reduced to. Default: what the source keeps for training at
            the size that suits its images.
        image_size: the side of view of the runs to come, where another than suits the images: what a backbone is
            shown of reduced images at that size is written too.
        overwrite: replace a file that is there.
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: the target or the source cannot be used, or too many images cannot be read.
    """
    return prepare_file(
        data,
        user_path(out),
        size=size,
        views=(CPU_IMAGE_SIZE,) if image_size is None else (CPU_IMAGE_SIZE, image_size),
        image_size=image_size,
        overwrite=overwrite,
        plugins=plugins or installed(),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written."""

    path: Path
    """The page, `report.html` in the run's folder."""

    @property
    def text(self) -> str:
        """Where it is, as `akssl report` prints it."""
        return str(self.path)


def report(run_dir: str | Path) -> Report:
    """Write `report.html` of a run again from the files of its folder.

    Raises:
        AksslError: the folder holds no run, or a file of it is damaged.
    """
    folder = RunDir.open(user_path(run_dir))
    return Report(folder.write_text("report.html", render(folder.path)))

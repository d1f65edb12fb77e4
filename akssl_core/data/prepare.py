"""Data sets decoded once into one file or several, from which training reads the same pixels as from the source."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.schema import validate
from ..console import say
from ..errors import ConfigError, shown
from ..rundir.files import CannotWrite
from .forecast import Forecast, in_words
from .opening import DataSpec, Sources, data_table, open_source
from .prepared import Prepared
from .prepared_file import Record
from .sharding import Target, Writing
from .shards import PreparedFiles
from .stored import first_few
from .written import Work

SIDES = 8, 8192  # pixels that the shorter side of images can be reduced to


@dataclass(frozen=True)
class PreparedData:
    """Data that were decoded into one file, or into shards."""

    path: Path
    """The file, or the folder of shards."""
    images: int
    """How many it holds, unreadable ones among them."""
    size: int
    """Of all files in bytes."""
    record: Record
    """The file's own description: channels, shorter side, classes."""
    classes: int
    """How many a label names."""
    unreadable: Mapping[str, str]
    """The reason by the name of the image; these are left out."""
    family: str | None
    """Of the source: the recipe that suits such data."""
    shards: int
    """In how many files the images lie."""
    forecast: Forecast
    """What was said before it began."""

    @property
    def text(self) -> str:
        """Where they are, what could not be read, and how to train from it: what `akssl data prepare` prints."""
        classes = f"{self.classes} classes" if self.classes else "no classes"
        size = in_words(self.size) + (f" in {self.shards} files" if self.shards > 1 else "")
        facts = f"{self.images} images, {size}, {classes}, shorter side at most {self.record.side} px"
        lines = [f"{self.path}: {facts}, {len(self.unreadable)} unreadable{named(self.unreadable)}"]
        if self.family is not None:
            known = f"--recipe {self.family}"
            lines.append(f"Runs from a file do not choose the recipe of such data by themselves: {known}")
        return "\n".join([*lines, f"Train from it: akssl run simsiam --data {shlex.quote(str(self.path))}"])

    def table(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        numbers = {name: getattr(self, name) for name in ("images", "size", "shards", "classes", "family")}
        of = {"side": self.record.side, "channels": self.record.channels, "unreadable": dict(self.unreadable)}
        return {"path": str(self.path), **numbers, **of, "forecast": asdict(self.forecast)}


def named(unreadable: Mapping[str, str]) -> str:
    """The first few names with their reasons."""
    return f": {first_few(unreadable)}{'; ...' if len(unreadable) > 3 else ''}" if unreadable else ""


def prepare(
    data: str | Path | Mapping[str, Any],
    path: Path,
    *,
    size: int | None,
    views: Sequence[int],
    image_size: int | None,
    overwrite: bool,
    plugins: Sources,
    shard_size: str | int | None = None,
    workers: int | None = None,
) -> PreparedData:
    """Decode every image of a source once and write one file or several; each appears whole or not at all.

    They also hold what a backbone is shown of images that had to be reduced, for views of `image_size`, `views` and
    the sizes that suit them. Shards that were finished before are kept.

    Raises:
        AksslError: the target or the source cannot be used, or too many images cannot be read.
    """
    target = Target.of(path, shard_size, workers)
    target.refuse(overwrite=overwrite)
    if size is not None and not (isinstance(size, int) and SIDES[0] <= size <= SIDES[1]):
        raise ConfigError(f"size: expected a whole number from {SIDES[0]} to {SIDES[1]}, got {shown(size)}.")
    spec = validate(DataSpec, {"data": data_table(data, plugins)}, registry=plugins)
    text = str(data["name"] if isinstance(data, Mapping) else data)
    source = open_source(spec.data, plugins, image_size or size)
    if isinstance(source, Prepared) and target.holds(source.config.path):
        raise ConfigError(f"--out: '{path}' is where the images are read from. Choose another name.")
    if size is not None:
        source.stored_side = size
    work = Work.of(source, text, views, target.workers)
    try:
        with target.alone():
            target.refuse(overwrite=overwrite)  # another process may have made it by now
            writing = Writing(work, target, overwrite=overwrite)
            say(writing.forecast.text)
            writing.finish()
    except BlockingIOError as other:
        raise ConfigError(
            f"--out: another process (pid {other}) is writing {path}. Wait for it, or choose another name."
        ) from None
    except OSError as error:
        cause = error.cause if isinstance(error, CannotWrite) else error
        more = " The same command goes on then." if target.shard_size else ""
        raise ConfigError(
            f"--out: cannot write {path}: {cause.strerror or cause}. Free some space or choose another place.{more}"
        ) from error
    return _told(PreparedFiles.mapped(path), source.family, writing.forecast)


def _told(found: PreparedFiles, family: str | None, forecast: Forecast) -> PreparedData:
    """What lies there now."""
    known = {label for label in ([] if found.labels is None else found.labels.tolist()) if label >= 0}
    ids = found.ids if found.unread.rows else []
    rows = {ids[row]: why for row, why in found.unread.rows.items()}
    return PreparedData(
        path=found.path,
        images=len(found),
        size=sum(file.seen.st_size for file in found.files),
        record=found.record,
        classes=len(known),
        unreadable={**rows, **found.unread.others},
        family=family,
        shards=len(found.files),
        forecast=forecast,
    )

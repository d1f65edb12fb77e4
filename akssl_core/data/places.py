"""From a path to the image files there."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from ..config.schema import user_path
from ..errors import DataError
from .archives import TarFiles, ZipFiles
from .decode import SUFFIXES
from .files import Files
from .scan import scan
from .tables import TABLES, Reading, table_files


def matches(place: str | Path) -> list[Path]:
    """The paths that fit a pattern, in order; one that exists, or is no pattern, is itself."""
    path = user_path(place)
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path]
    return sorted(map(Path, glob.glob(str(path), recursive=True)))


def files_at(path: Path, reading: Reading) -> Files:
    """The image files in a folder, in archives, or named by a table.

    Raises:
        DataError: nothing is there, or no image.
    """
    places = matches(path)
    if not places:
        raise DataError(f"data: '{path!s:.300}' does not exist, and no path fits it as a pattern.")
    place, suffix = places[0], places[0].suffix.lower()
    if all(one.suffix.lower() == ".tar" and os.path.isfile(one) for one in places):
        return TarFiles(places)
    if len(places) > 1:
        cure = "Only tar archives may be several; a file of lines names any images: list.txt."
        raise DataError(f"data: {len(places)} paths fit '{path}', '{places[0].name}' among them. {cure}")
    if os.path.isdir(place) and (shards := _shards(place)):
        return TarFiles(shards)
    if not os.path.isfile(place) or suffix not in (".zip", *TABLES):
        return scan(place)
    return ZipFiles(place) if suffix == ".zip" else table_files(place, reading)


def _shards(folder: Path) -> list[Path]:
    """The tar archives of a folder that holds neither images nor folders beside them."""
    tars = sorted(folder.glob("[!.]*.tar"))
    return tars if tars and not any(one.suffix.lower() in SUFFIXES or one.is_dir() for one in folder.iterdir()) else []

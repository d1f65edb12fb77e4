"""From a path to the image files there."""

from __future__ import annotations

import glob
import os
from itertools import islice
from pathlib import Path

from ..config.schema import user_path
from ..errors import DataError
from .archives import TarFiles, ZipFiles
from .decode import SUFFIXES, Unreadable, look_inside, open_file
from .files import Files
from .scan import scan
from .stacks import STACKS, StackFiles
from .tables import TABLES, Reading, table_files

KINDS = {".npy": "npy", ".dcm": "dicom", ".dicom": "dicom"}
TIFF = frozenset({".tif", ".tiff"})
LOOKED_AT = 1000  # files of a folder whose names are looked at to learn what reads them


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
        return TarFiles(places, reading.suffixes)
    if len(places) > 1:
        cure = "Only tar archives may be several; a file of lines names any images: list.txt."
        raise DataError(f"data: {len(places)} paths fit '{path}', '{places[0].name}' among them. {cure}")
    if os.path.isdir(place) and (shards := _shards(place)):
        return TarFiles(shards, reading.suffixes)
    if not os.path.isfile(place) or suffix not in (".zip", *STACKS, *TABLES):
        return scan(place, reading.suffixes)
    if suffix in STACKS:
        return StackFiles(place, reading)
    return ZipFiles(place, reading.suffixes) if suffix == ".zip" else table_files(place, reading)


def decoder_for(path: Path) -> str | None:
    """The decoder that files take which Pillow does not read, by the first of a folder; None: Pillow, or unknown."""
    if path.suffix.lower() in STACKS and os.path.isfile(path):
        return "npy"
    suffixes: dict[str, Path] = {}
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in sorted(islice(below if os.path.isdir(path) else [path], LOOKED_AT)):
        if not file.name.startswith("."):
            suffixes.setdefault(file.suffix.lower(), file)
    read = suffixes.keys() & SUFFIXES
    if read and read <= TIFF:
        return None if _is_whole(suffixes[min(read)]) else "tiff"
    return None if read else next((name for suffix, name in KINDS.items() if suffix in suffixes), None)


def _is_whole(path: Path) -> bool:
    """Whether Pillow reads every bit of a file, or nobody does."""
    try:
        with open_file(path) as file:
            return not look_inside(file).cut
    except Unreadable as error:
        return "data.decoder=tiff" not in str(error)


def _shards(folder: Path) -> list[Path]:
    """The tar archives of a folder that holds neither images nor folders beside them."""
    tars = sorted(folder.glob("[!.]*.tar"))
    return tars if tars and not any(one.suffix.lower() in SUFFIXES or one.is_dir() for one in folder.iterdir()) else []

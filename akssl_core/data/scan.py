"""Finding the image files of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError, suggest
from .decode import SUFFIXES, is_image
from .files import FolderFiles, few

DEEPEST = 100  # folders within folders
MOVED = "Data that was moved is named by its new place: --data NEW, in Python data=..."


def scan(root: Path, suffixes: frozenset[str] = SUFFIXES) -> FolderFiles:
    """Every file with the suffix of an image (`suffixes`), in sub-folders too; hidden files and folders are left out.

    A folder that two links lead to is read once, so links may form a circle.

    Raises:
        DataError: the folder does not exist, cannot be listed or holds no image.
    """
    _check_folder(root)
    found = FolderFiles(root)
    _walk(root, "", found, set(), suffixes)
    found.names.sort()
    if not found.names:
        names = ", ".join(sorted(suffixes))
        broken = f" {len(found.broken)} only look like images: {', '.join(found.broken)}." if found.broken else ""
        raise DataError(f"data: {root} holds no image files ({names}), in sub-folders neither.{broken}{_others(found)}")
    if found.others:
        found.notes.append(f"{found.others.total()} files of other kinds are left out: {_kinds(found)}")
    return found


def _kinds(found: FolderFiles) -> str:
    return few([f"{count} {suffix or 'without suffix'}" for suffix, count in found.others.most_common()])


def _others(found: FolderFiles) -> str:
    """What there is in the place of images, and how it could be read."""
    cure = "data.decoder=NAME names what reads files of another kind: npy, dicom, tiff."
    return f" There are {_kinds(found)}. {cure}" if found.others else ""


def _walk(folder: Path, prefix: str, found: FolderFiles, seen: set[tuple[int, int]], suffixes: frozenset[str]) -> int:
    """Collect from one folder and those below; the number of images found."""
    before = len(found.names)
    if prefix.count("/") > DEEPEST:
        found.broken[printable(prefix.rstrip("/"))] = f"a folder nested deeper than {DEEPEST} others"
        return 0
    try:
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        with os.scandir(folder) as listed:
            entries = [] if key in seen else sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        found.broken[printable(prefix.rstrip("/")) or "."] = f"a folder that cannot be listed: {error.strerror}"
        return 0
    seen.add(key)
    for entry in entries:
        if not entry.name.startswith("."):
            _visit(entry, prefix, found, seen, suffixes)
    return len(found.names) - before


def _visit(
    entry: os.DirEntry[str], prefix: str, found: FolderFiles, seen: set[tuple[int, int]], suffixes: frozenset[str]
) -> None:
    """One entry of a folder: a folder is walked, an image is kept, a false image is noted."""
    path = prefix + entry.name
    suffix = os.path.splitext(entry.name)[1].lower()
    is_named_image = suffix in suffixes
    if _is(entry.is_dir):
        count = _walk(Path(entry.path), f"{path}/", found, seen, suffixes)
        if suffix and is_named_image and count == 0:
            found.broken[printable(path)] = "a folder, not an image"
    elif is_named_image and _is(entry.is_file):
        found.names.append(path)
    elif is_named_image:
        lost = entry.is_symlink() and not os.path.exists(entry.path)
        found.broken[printable(path)] = "a link to nothing" if lost else "not a regular file"
    elif _is(entry.is_file):
        if not suffix and suffixes is SUFFIXES and is_image(Path(entry.path)):
            found.names.append(path)
        else:
            found.others[printable(suffix)] += 1


def _is(kind: Callable[[], bool]) -> bool:
    """Ask whether an entry is of a kind; no where that cannot be found out, as of a link to itself."""
    try:
        return kind()
    except OSError:
        return False


def printable(path: str) -> str:
    """A path with bytes that are no text replaced, fit to be written and shown."""
    return os.fsencode(path).decode("utf-8", "replace")


def nearest_path(path: Path) -> Path | None:
    """The existing path nearest to one that does not exist: the first wrong part replaced by a near name."""
    part = Path(os.path.expanduser(path))
    while not os.path.isdir(part.parent):
        if part == part.parent:
            return None
        part = part.parent
    try:
        near = suggest(part.name, sorted(os.listdir(part.parent)))
    except OSError:
        return None
    return part.parent / near if near else None


def _check_folder(root: Path) -> None:
    if not os.path.exists(root):
        near = nearest_path(root)
        hint = f" Did you mean '{near}'?" if near else ""
        raise DataError(f"data: the folder '{root!s:.300}' does not exist.{hint} {MOVED}")
    if not root.is_dir():
        raise DataError(
            f"data: '{root}' is a file; expected a folder of images, a table (.csv, ...) or an archive (.zip, .tar). "
            f"Its folder is '{root.parent}'."
        )
    try:
        os.listdir(root)
    except OSError as error:
        raise DataError(f"data: the folder '{root}' cannot be listed: {error.strerror}.") from error

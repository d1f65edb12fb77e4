"""Images in zip and tar archives, read in place: an index is made when they are opened, and nothing is unpacked."""

from __future__ import annotations

import io
import lzma
import os
import posixpath
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from ..errors import DataError, visible
from .decode import MOST_BYTES, SUFFIXES, Unreadable, open_file
from .files import Files, few, top_folders
from .tables import as_labels

LABEL = ".cls"
BLOCK = 512  # bytes of a tar's header; one of zeros is its end
Member: TypeAlias = tuple[Path, int, int]  # its archive, where it begins there, and its length in bytes


def _in_place(
    place: str, entries: Mapping[str, Any], suffixes: frozenset[str]
) -> tuple[dict[str, Any], dict[str, str], str]:
    """Of the entries named as images: those that can be read, in order, why others cannot, and a folder around all."""
    if out := next((name for name in entries if name.startswith("../") or name == ".."), None):
        raise DataError(f"data: {place} holds '{visible(out):.200}', a path that leaves the archive; it is not read.")
    images = (name for name in entries if posixpath.splitext(name)[1].lower() in suffixes)
    names = sorted(name for name in images if not re.search(r"(^|/)(\.|__MACOSX/)", name))
    tops = set(top_folders(names))
    around = f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""
    broken = {name[len(around) :]: why for name in names if isinstance(why := entries[name], str)}
    good = {name[len(around) :]: where for name in names if not isinstance(where := entries[name], str)}
    if not good:
        odd = few([f"{visible(name)} ({why})" for name, why in broken.items()], 3)
        kinds = "" if suffixes is SUFFIXES else f" ({', '.join(sorted(suffixes))})"
        raise DataError(f"data: {place} holds no image files{kinds}.{f' Unreadable ones: {odd}.' if odd else ''}")
    return good, broken, around


class ZipFiles(Files):
    """The images in a zip archive, in the order of a folder; a folder around all of them is no part of their names."""

    def __init__(self, path: Path, suffixes: frozenset[str] = SUFFIXES) -> None:
        try:
            self.archive, self.owner, self.lock = zipfile.ZipFile(path), os.getpid(), threading.Lock()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"data: {path} is no zip archive, or cut short ({error}). Copy it again.") from error
        entries = {
            posixpath.normpath(info.filename.replace("\\", "/").lstrip("/")): _fault(info) or info
            for info in self.archive.infolist()
            if not info.is_dir()
        }
        found, broken, _ = _in_place(str(path), entries, suffixes)
        super().__init__(str(path), [*found])
        self.broken = broken
        self.entries: list[zipfile.ZipInfo] = [*found.values()]

    @contextmanager
    def open(self, row: int) -> Iterator[IO[bytes]]:
        """One entry, unpacked in memory."""
        try:
            with self.lock:
                if self.owner != os.getpid():  # a fork: it would move the place where the others read
                    self.archive, self.owner = zipfile.ZipFile(self.place), os.getpid()
            data = self.archive.read(self.entries[row])
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise Unreadable.because(error) from error
        yield io.BytesIO(data)


def _fault(info: zipfile.ZipInfo) -> str | None:
    size, packed = info.file_size, info.compress_size
    if size > MOST_BYTES or (size > 2**26 and size > 100 * packed):
        return f"{packed} bytes that expand to {size}"
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    return "a link, not a file" if is_link else "encrypted" if info.flag_bits & 1 else None


class TarFiles(Files):
    """The images in tar archives, in the order of a folder; in shards of WebDataset's layout, `KEY.cls` is a label."""

    def __init__(self, paths: Sequence[Path], suffixes: frozenset[str] = SUFFIXES) -> None:
        shards = [_members(path) for path in paths]
        apart = len({name for shard, _ in shards for name in shard}) < sum(len(shard) for shard, _ in shards)
        entries: dict[str, Member | str] = {}
        known: dict[str, str] = {}
        for path, (shard, texts) in zip(paths, shards, strict=True):
            begin = f"{path.name}/" if apart else ""
            entries |= {begin + name: one for name, one in shard.items()}
            known |= {begin + key: text for key, text in texts.items()}
        place = str(paths[0]) if len(paths) == 1 else f"{len(paths)} archives in {os.path.commonpath(paths)}"
        found, broken, around = _in_place(place, entries, suffixes)
        labels = as_labels([known.get(_key(around + name)) for name in found]) if known else [] if apart else None
        super().__init__(place, [*found], labels)
        self.broken = broken
        self.members: list[Member] = [*found.values()]

    @contextmanager
    def open(self, row: int) -> Iterator[IO[bytes]]:
        """The bytes of one member."""
        path, start, size = self.members[row]
        with open_file(path, most=None) as file:
            file.seek(start)
            data = file.read(size)
        yield io.BytesIO(data)


def _key(name: str) -> str:
    """What the files of one sample share: the path up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _members(path: Path) -> tuple[dict[str, Member | str], dict[str, str]]:
    """Each file of an archive with its place in it, or why it is none, and the texts of labels by key."""
    entries: dict[str, Member | str] = {}
    labels = {}
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            for member in tar:
                name = posixpath.normpath(member.name.lstrip("/"))
                if name.endswith(LABEL) and member.size < BLOCK and (text := tar.extractfile(member)) is not None:
                    labels[_key(name)] = text.read().decode("utf-8", "replace")
                elif not member.isdir():
                    is_file = member.isreg() and not member.issparse() and member.size <= MOST_BYTES
                    entries[name] = (path, member.offset_data, member.size) if is_file else "a link, or no image's file"
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("no end")
    except (tarfile.TarError, OSError, ValueError) as error:
        state = f"cut short or damaged after {len(entries)} files" if entries else "no tar archive that can be read"
        raise DataError(f"data: {path} is {state} ({error}). Copy it again, or unpack it into a folder.") from error
    return entries, labels

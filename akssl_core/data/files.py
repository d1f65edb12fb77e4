"""Image files, wherever they lie: their names, the labels that stand with them, and how the bytes of each are got."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TypeAlias

from .decode import open_file

Label: TypeAlias = str | int | None
"""As it stands with an image; None: unknown."""
SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class Files(ABC):
    """Image files by name. A subclass says how one is opened.

    Args:
        place: where they lie, for messages.
        names: one a file, unique, with `/` between folders.
        labels: one a file, empty where there are none; None: the first-level folders, where these can be classes.
    """

    def __init__(self, place: str, names: Sequence[str] = (), labels: Sequence[Label] | None = None) -> None:
        self.place, self.names, self.labels_given = place, list(names), labels
        self.broken: dict[str, str] = {}  # entries that only look like a file: name -> reason
        self.notes: list[str] = []  # what was found, for the user to read

    @property
    def labels(self) -> Sequence[Label] | None:
        """One a file, or None."""
        return class_folders(self.names) if self.labels_given is None else self.labels_given or None

    @abstractmethod
    def open(self, row: int) -> AbstractContextManager[IO[bytes]]:
        """One file, open for reading. Several threads ask at once.

        Raises:
            Unreadable: with the reason.
        """

    def path(self, row: int) -> Path | None:
        """Where a file lies, if it lies alone."""
        return None


class FolderFiles(Files):
    """Files in a folder or in those below, by their paths relative to it."""

    def __init__(self, root: Path, names: Sequence[str] = (), labels: Sequence[Label] | None = None) -> None:
        super().__init__(str(root), names, labels)
        self.root = root
        self.others: Counter[str] = Counter()  # suffix -> files there that are no images

    def open(self, row: int) -> AbstractContextManager[IO[bytes]]:
        """One file of the folder."""
        return open_file(self.path(row))

    def path(self, row: int) -> Path:
        """In the folder."""
        return self.root / self.names[row]


class Part(Files):
    """Those files whose names begin with the name of one folder, which is left out."""

    def __init__(self, whole: Files, folder: str) -> None:
        begin, given = f"{folder}/", whole.labels_given
        self.whole, self.rows = whole, [row for row, name in enumerate(whole.names) if name.startswith(begin)]
        names = [whole.names[row][len(begin) :] for row in self.rows]
        super().__init__(os.path.join(whole.place, folder), names, given and [given[row] for row in self.rows])
        self.broken = {name[len(begin) :]: why for name, why in whole.broken.items() if name.startswith(begin)}

    def open(self, row: int) -> AbstractContextManager[IO[bytes]]:
        """That of the whole."""
        return self.whole.open(self.rows[row])

    def path(self, row: int) -> Path | None:
        """That of the whole."""
        return self.whole.path(self.rows[row])


def top_folders(names: Sequence[str]) -> list[str]:
    """The first-level folder of each name; "" for a file in none."""
    return [name.partition("/")[0] if "/" in name else "" for name in names]


def class_folders(names: Sequence[str]) -> list[str] | None:
    """The first-level folder of each file as its class, or None where they are no classes.

    They are when every file lies in one, there are two at least, and they are not named like the parts of
    a split (train, val, test).
    """
    tops = top_folders(names)
    found = set(tops)
    return tops if "" not in found and len(found) >= 2 and not found <= SPLITS else None


def few(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, for a message."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ..."

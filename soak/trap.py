"""A process that kills itself at one of its file operations below a folder, some of them half done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

PHASES = {
    "write": ("half",),
    "fsync": ("before", "after"),
    "replace": ("before", "after"),
    "rmtree": ("before", "half", "after"),
    "mkdir": ("after",),
    "unlink": ("before", "after"),
}


class Trap:
    """SIGKILL to this process at its n-th write, fsync, replace, rmtree, mkdir or unlink below a folder.

    Args:
        folder: whose files count.
        at: which operation, from 1 on; 0 never kills and only counts.
        dice: draws whether to die before, after or in the middle of the operation.
        tell: called with the operation, the kind of file and the phase, right before the end.
    """

    def __init__(self, folder: Path, at: int, dice: random.Random, tell: Callable[[str], None]) -> None:
        self.folder, self.at, self.dice, self.tell = folder.resolve(), at, dice, tell
        self.count = 0
        self._one = threading.Lock()  # checkpoints are written by a thread of their own

    def arm(self) -> None:
        """Replace the operations of this process, for good."""
        for owner, name in ((Path, "replace"), (Path, "mkdir"), (Path, "unlink"), (shutil, "rmtree")):
            setattr(owner, name, self._guarded(name, getattr(owner, name)))
        fsync, opened = os.fsync, Path.open
        guarded = self._guarded("fsync", lambda path, descriptor: fsync(descriptor))
        setattr(os, "fsync", lambda descriptor: guarded(_path_of(descriptor), descriptor))  # noqa: B010

        def opens(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
            file = opened(path, mode, *args, **more)
            return _Written(file, path, self) if set(mode) & set("wax+") and self._ours(path) else file

        Path.open = opens  # type: ignore[method-assign, assignment]

    def phase(self, operation: str, path: Path) -> str:
        """Count an operation: in which phase of it to die, or an empty text."""
        with self._one:
            self.count += 1
            return self.dice.choice(PHASES[operation]) if self.count == self.at else ""

    def die(self, operation: str, path: Path, phase: str) -> None:
        """The end, without any tidying up."""
        self.tell(f"{operation} {kind_of(path, self.folder)} {phase}")
        os.kill(os.getpid(), signal.SIGKILL)

    def _ours(self, path: Path) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self.folder)

    def _guarded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Any, *args: Any, **more: Any) -> Any:
            path = Path(path)
            phase = self.phase(name, path) if self._ours(path) else ""
            if phase == "half":
                _delete_one(path)
            if phase in ("before", "half"):
                self.die(name, path, phase)
            result = original(path, *args, **more)
            if phase == "after":
                self.die(name, path, phase)
            return result

        return operation


class _Written:
    """A file whose n-th write ends the process with half of the bytes on disk."""

    def __init__(self, file: IO[Any], path: Path, trap: Trap) -> None:
        self._file, self._path, self._trap = file, path, trap

    def write(self, data: Any) -> int:
        if self._trap.phase("write", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._trap.die("write", self._path, "half")
        return self._file.write(data)

    def __enter__(self) -> _Written:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def kind_of(path: Path, folder: Path) -> str:
    """What a path of a run folder is, without numbers and the marks of drafts."""
    path = Path(os.path.abspath(path))
    if path == folder:
        return "run folder"
    name = path.name.lstrip(".").partition(".part")[0].partition(".old")[0]
    return "checkpoint" if name.isdigit() else name


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def _delete_one(folder: Path) -> None:
    """What a deletion has done when it is cut short."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if files:
        os.unlink(files[0])

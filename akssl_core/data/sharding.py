"""Where prepared data are written: one file, or a folder of shards of which those that are finished are kept."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..console import Progress
from ..errors import AksslError, ConfigError, RunStopped, shown
from ..rundir.files import CannotWrite, alone_with, atomic_file, clear, refuse_file, tensor_bytes
from .forecast import Forecast, in_words, look, peak
from .loader import as_it_is
from .prepared_file import SHARDS, SUFFIX, NotPrepared, PreparedFile
from .shards import INDEX, MOST, OWN, Index, PreparedFiles, shard_name
from .stored import usable_cores
from .written import Tell, Work, write_rows

DEFAULT = "1GB"  # of a shard
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(I?)B?")


@dataclass(frozen=True)
class Target:
    """A file or a folder to write, and how."""

    path: Path
    shard_size: int | None  # bytes that a shard is to have about; None: one file
    workers: int

    @classmethod
    def of(cls, path: Path, shard_size: str | int | None, workers: int | None) -> Target:
        """A folder where a size of shards is given, where there is one, or where the name has no suffix.

        Raises:
            ConfigError: these do not go together.
        """
        is_file = path.suffix.lower() == SUFFIX
        if is_file and shard_size is not None:
            raise ConfigError(f"--shard-size: shards lie in a folder, and '{path}' names a file. Try {path.stem}.")
        is_folder = shard_size is not None or (not is_file and (path.suffix == "" or os.path.isdir(path)))
        if workers is not None and not (isinstance(workers, int) and 1 <= workers <= 1024):
            raise ConfigError(f"--workers: expected a whole number from 1 to 1024, got {shown(workers)}.")
        if workers is not None and workers > 1 and not is_folder:
            cure = "Name a folder with --out, or leave --workers out: one process decodes in a thread a core."
            raise ConfigError(f"--workers: several processes write shards, not one file. {cure}")
        size = _bytes(DEFAULT if shard_size is None else shard_size) if is_folder else None
        return cls(path, size, min(workers or 1, usable_cores()))

    @property
    def last(self) -> Path:
        """The file that is written last."""
        return self.path / INDEX if self.shard_size else self.path

    def holds(self, path: Path) -> bool:
        """Whether shards would be written over a prepared file or folder."""
        place = os.path.realpath(path)
        return self.shard_size is not None and os.path.realpath(self.path) in (place, os.path.dirname(place))

    def refuse(self, *, overwrite: bool) -> None:
        """Refuse what cannot or must not be written; shards without an index, or not whole, are gone on with.

        Raises:
            ConfigError: another suffix, no such folder, or something is there.
        """
        path = self.path
        if not self.shard_size and path.suffix.lower() != SUFFIX:
            cure = f"Try {path}{SUFFIX}, or a name without suffix for a folder of shards"
            raise ConfigError(f"--out: '{path}' must end in {SUFFIX}, by which runs know such a file. {cure}.")
        if self.shard_size and os.path.isfile(path):
            raise ConfigError(f"--out: '{path}' is a file; expected a folder for shards. Choose another name.")
        if not (self.shard_size and os.path.isdir(path)):
            return refuse_file(path, overwrite=overwrite)
        if strange := sorted(name for name in os.listdir(path) if not OWN.fullmatch(name)):
            raise ConfigError(f"--out: '{path}' holds other files ({strange[0]}). Choose a new or an empty folder.")
        refuse_file(self.last, overwrite=True)
        if os.path.exists(self.last) and not overwrite:
            with suppress(NotPrepared):
                PreparedFiles.mapped(path)
                raise ConfigError(
                    f"--out: '{path}' is finished already. Replace it with --overwrite, or choose another name."
                )
        return None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While it lasts, no other process writes there. A folder is made, and removed if nothing comes to lie in it.

        Raises:
            BlockingIOError: another process does.
        """
        is_new = self.shard_size is not None and not os.path.isdir(self.path)
        if is_new:
            self.path.mkdir()
        try:
            with alone_with(self.last):
                yield
        finally:
            with suppress(OSError):  # there is something in it
                if is_new:
                    self.path.rmdir()


def _bytes(size: str | int) -> int:
    """A size as a number of bytes: 1GB, 500MB, 1.5 GiB."""
    found = None if isinstance(size, bool) else _SIZE.fullmatch(str(size).strip().upper())
    amount = float(found[1]) * (1024 if found[3] else 1000) ** "BKMGT".index(found[2] or "B") if found else 0
    if amount < 1:
        raise ConfigError(f"--shard-size: expected a size of files, as 1GB or 500MB, got {shown(size)}.")
    return int(amount)


class Writing(Dataset[Exception | None]):
    """All of a source on its way to a target. As a data set it writes the files it is asked for, in worker processes.

    Args:
        work: the source.
        target: where it goes to; finished shards there are kept.
        overwrite: whether other shards may be replaced, and a finished folder.

    Raises:
        AksslError: the disk has no room, other shards lie there, or too many images cannot be read.
    """

    def __init__(self, work: Work, target: Target, *, overwrite: bool) -> None:
        self.work, self.target, self.owner = work, target, os.getpid()
        found, size, seconds = look(work)
        self.count = min(-(-size // target.shard_size), len(work)) if target.shard_size else 1
        if self.count > MOST:
            raise ConfigError(f"--shard-size: {self.count} shards are more than {MOST}. Make them larger.")
        self.of = f"{found}-{self.count}"
        replaces = target.shard_size is None or (overwrite and os.path.exists(target.last))
        self.kept = set() if replaces else self._kept(overwrite=overwrite)
        left = sum(len(self.rows(k)) for k in range(self.count) if k not in self.kept)
        room, free = size * left // len(work), shutil.disk_usage(target.last.absolute().parent).free
        if room > free:
            raise ConfigError(
                f"--out: {left} images will take about {in_words(room)}, and {in_words(free)} are free there. Free "
                f"some space, choose another place, or reduce the images further with --size."
            )
        self.forecast = Forecast(len(work), size, self.count, left, peak(), seconds * left / target.workers / 60)

    def rows(self, k: int) -> range:
        """Those of one file."""
        return range(len(self.work) * k // self.count, len(self.work) * (k + 1) // self.count)

    def path(self, k: int) -> Path:
        """Where one file lies."""
        return self.target.path / shard_name(k, self.count) if self.target.shard_size else self.target.path

    def _kept(self, *, overwrite: bool) -> set[int]:
        """The shards that are there and whole."""
        own = {self.path(k): k for k in range(self.count)}
        kept = set()
        for path in sorted(self.target.path.glob(f"images-*{SUFFIX}")):
            with suppress(NotPrepared):  # cut: it is made again
                if PreparedFile.mapped(path).shard == f"{self.of} {own.get(path)}":
                    kept.add(own[path])
                elif not overwrite:
                    raise ConfigError(
                        f"--out: '{self.target.path}' holds shards of other data, or of other settings ({path.name}). "
                        f"Replace them with --overwrite, or choose another name."
                    )
        return kept

    def finish(self) -> None:
        """Write what is missing, and the index of a folder.

        Raises:
            AksslError: too many images cannot be read.
            OSError: the disk refuses.
            RunStopped: a process was killed.
        """
        missing = [k for k in range(self.count) if k not in self.kept]
        workers = min(self.target.workers, len(missing))
        if self.target.shard_size:
            clear(self.target.path, {self.path(k) for k in self.kept})  # drafts, an old index, and what is replaced
        reasons: dict[int, str] = {}
        with Progress(len(self.work), "image") as progress:
            ends = self._ends(missing, workers) if workers > 1 else iter(())
            for k in range(self.count):
                if k in self.kept or next(ends, None):
                    progress.update(len(self.rows(k)))
                else:
                    self._write(k, progress.update)
                if self.target.shard_size:
                    unread = PreparedFile.mapped(self.path(k)).unread.rows
                    own = {self.rows(k).start + row: why for row, why in unread.items()}
                    self.work.mark(own)
                    reasons |= own
        if self.target.shard_size:
            rows = tuple(len(self.rows(k)) for k in range(self.count))
            index = Index(of=self.of, rows=rows, others=self.work.others(reasons))
            texts = {"format": SHARDS, "version": "1", "index": index.model_dump_json()}
            with atomic_file(self.target.last) as file:
                file.write(tensor_bytes(self.work.parts, texts))
                file.flush()
                self.work.check(Path(file.name))

    def _write(self, k: int, tell: Tell) -> None:
        write_rows(self.work, self.path(k), self.rows(k), tell, f"{self.of} {k}" if self.target.shard_size else "")

    def _ends(self, missing: Sequence[int], workers: int) -> Iterator[bool]:
        """True for each of these files, once a process has written it."""
        context = "fork" if sys.platform == "linux" else None  # nothing has to be sent to them
        generator = torch.Generator()  # its own, so that starting workers draws nothing from the user's
        how: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": context, "generator": generator}
        try:
            for error in DataLoader(self, batch_size=None, sampler=missing, collate_fn=as_it_is, **how):
                if error is not None:
                    raise error
                yield True
        except RuntimeError as error:
            if not (found := re.search(r"DataLoader worker \(pid[^)]*\)[^.]*", str(error))):
                raise
            raise RunStopped(
                f"a process that writes shards has ended ({found[0].strip()}). Is memory short? The same command goes "
                f"on; fewer --workers take less."
            ) from error

    def __getitem__(self, k: int) -> Exception | None:
        """Write a file, in a process of its own; what went wrong. An error that was raised would lose its text."""
        try:
            self._write(k, self._go_on)
        except CannotWrite as error:
            return error.cause
        except (AksslError, OSError) as error:
            return error
        return None

    def _go_on(self, count: int) -> None:
        """End where the process that asked has ended; whoever goes on waits for it."""
        if os.getppid() != self.owner:
            raise KeyboardInterrupt

"""Where prepared data are written: one file, or a folder of shards of which those that are finished are kept."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ..console import Progress, say
from ..errors import AksslError, ConfigError, RunStopped, shown
from ..rundir.files import CannotWrite, alone_with, atomic_file, digest, refuse_file, tensor_bytes
from .forecast import Forecast, forecast, look
from .loader import as_it_is
from .prepared_file import SHARDS, SUFFIX, NotPrepared, PreparedFile
from .shards import INDEX, MOST, OWN, Index, PreparedFiles, shard_name
from .stored import usable_cores
from .written import Work, write_rows

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
        return cls(
            path,
            _bytes(DEFAULT if shard_size is None else shard_size) if is_folder else None,
            min(workers or 1, usable_cores()),
        )

    @property
    def is_folder(self) -> bool:
        """Whether shards are written."""
        return self.shard_size is not None

    @property
    def last(self) -> Path:
        """The file that is written last."""
        return self.path / INDEX if self.is_folder else self.path

    def refuse(self, *, overwrite: bool) -> None:
        """Refuse what cannot or must not be written; shards without an index, or not whole, are gone on with.

        Raises:
            ConfigError: another suffix, no such folder, or something is there.
        """
        path = self.path
        if not self.is_folder and path.suffix.lower() != SUFFIX:
            cure = f"Try {path}{SUFFIX}, or a name without suffix for a folder of shards"
            raise ConfigError(f"--out: '{path}' must end in {SUFFIX}, by which runs know such a file. {cure}.")
        if self.is_folder and os.path.isfile(path):
            raise ConfigError(f"--out: '{path}' is a file; expected a folder for shards. Choose another name.")
        if not (self.is_folder and os.path.isdir(path)):
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
        is_new = self.is_folder and not os.path.isdir(self.path)
        if is_new:
            self.path.mkdir()
        try:
            with alone_with(self.last):
                yield
        finally:
            with suppress(OSError):  # there is something in it
                if is_new:
                    self.path.rmdir()

    def write(self, work: Work, *, overwrite: bool) -> Forecast:
        """Say what it will take, and do it.

        Raises:
            AksslError: the disk has no room, other shards lie there, or too many images cannot be read.
        """
        sample = look(work)
        if self.shard_size is None:
            coming = forecast(work, sample, 1, len(work), 1, self.path.absolute().parent)
            say(coming.text)
            with Progress(len(work), "image") as progress:
                write_rows(work, self.path, range(len(work)), progress.update)
            return coming
        count = min(-(-sample.bytes // self.shard_size), len(work))
        if count > MOST:
            raise ConfigError(f"--shard-size: {count} shards are more than {MOST}. Make them larger.")
        of = digest(f"{work.listing()} {sample.hash} {count}".encode())
        shards = Shards(work, self.path, of, [len(work) * k // count for k in range(count + 1)])
        kept = shards.kept(overwrite=overwrite)
        missing = [k for k in range(count) if k not in kept]
        left = sum(len(shards.rows(k)) for k in missing)
        coming = forecast(work, sample, count, left, self.workers, self.path)
        say(coming.text)
        whole = {shards.path(k).name for k in kept}
        for path in self.path.iterdir():  # drafts, an index without its shards, and what is to be replaced
            if path.name not in whole and not path.name.endswith(".lock"):
                path.unlink()
        shards.finish(missing, self.workers)
        return coming


def _bytes(size: str | int) -> int:
    """A size as a number of bytes: 1GB, 500MB, 1.5 GiB."""
    found = None if isinstance(size, bool) else _SIZE.fullmatch(str(size).strip().upper())
    amount = float(found[1]) * (1024 if found[3] else 1000) ** "BKMGT".index(found[2] or "B") if found else 0
    if amount < 1:
        raise ConfigError(f"--shard-size: expected a size of files, as 1GB or 500MB, got {shown(size)}.")
    return int(amount)


class Shards(Dataset[Exception | None]):
    """The files of a folder. As a data set it writes the shards that it is asked for, in worker processes.

    Args:
        work: what they hold.
        folder: where they lie.
        of: a hash of the source and of how it is prepared.
        begins: the first row of each, and at the end the number of rows.
    """

    def __init__(self, work: Work, folder: Path, of: str, begins: Sequence[int]) -> None:
        self.work, self.folder, self.of, self.begins, self.owner = work, folder, of, begins, os.getpid()
        self.reasons: dict[int, str] = {}  # why images cannot be read, by row

    def __len__(self) -> int:
        return len(self.begins) - 1

    def rows(self, k: int) -> range:
        """Those of one shard."""
        return range(self.begins[k], self.begins[k + 1])

    def path(self, k: int) -> Path:
        """Where one shard lies."""
        return self.folder / shard_name(k, len(self))

    def kept(self, *, overwrite: bool) -> list[int]:
        """The shards that are there and whole; none where a finished folder is replaced.

        Raises:
            ConfigError: whole ones of something else lie there, and nobody said that they may be replaced.
            DataError: too many images cannot be read.
        """
        if overwrite and os.path.exists(self.folder / INDEX):
            return []
        found = []
        for path in sorted(self.folder.glob(f"images-*{SUFFIX}")):
            with suppress(NotPrepared):  # cut: it is made again
                name = PreparedFile.mapped(path).shard
                own = [k for k in range(len(self)) if self.path(k) == path and name == f"{self.of} {k}"]
                if not own and not overwrite:
                    raise ConfigError(
                        f"--out: '{self.folder}' holds shards of other data, or of other settings ({path.name}). "
                        f"Replace them with --overwrite, or choose another name."
                    )
                found += own
        for k in found:
            self.take(k)
        return found

    def take(self, k: int) -> None:
        """Count in a shard that is there."""
        rows = PreparedFile.mapped(self.path(k)).unread.rows
        reasons = {self.begins[k] + row: why for row, why in rows.items()}
        self.reasons |= reasons
        self.work.mark(reasons)

    def finish(self, missing: Sequence[int], workers: int) -> None:
        """Write these shards, and the index.

        Raises:
            AksslError: too many images cannot be read.
            OSError: the disk refuses.
            RunStopped: a process was killed.
        """
        with Progress(len(self.work), "image") as progress:
            progress.update(len(self.work) - sum(len(self.rows(k)) for k in missing))
            for k in missing if workers == 1 else self._written(missing, workers):
                if workers == 1:
                    write_rows(self.work, self.path(k), self.rows(k), progress.update, f"{self.of} {k}")
                else:
                    progress.update(len(self.rows(k)))
                self.take(k)
        index = Index(
            of=self.of, rows=tuple(map(len, map(self.rows, range(len(self))))), others=self.work.others(self.reasons)
        )
        texts = {"format": SHARDS, "version": "1", "index": index.model_dump_json()}
        with atomic_file(self.folder / INDEX) as file:
            file.write(tensor_bytes(self.work.parts, texts))
            file.flush()
            self.work.check(Path(file.name))

    def _written(self, missing: Sequence[int], workers: int) -> Iterator[int]:
        """Each of these shards once a process has written it."""
        context = "fork" if sys.platform == "linux" else None  # nothing has to be sent to them
        errors = DataLoader(
            self,
            batch_size=None,
            sampler=missing,
            num_workers=min(workers, len(missing)),
            collate_fn=as_it_is,
            generator=torch.Generator(),  # its own, so that starting workers draws nothing from the user's
            multiprocessing_context=context,
        )
        try:
            for k, error in zip(missing, errors, strict=True):
                if error is not None:
                    raise error
                yield k
        except RuntimeError as error:
            if not (found := re.search(r"DataLoader worker \(pid[^)]*\)[^.]*", str(error))):
                raise
            raise RunStopped(
                f"a process that writes shards has ended ({found[0].strip()}). Is memory short? The same command goes "
                f"on; fewer --workers take less."
            ) from error

    def __getitem__(self, k: int) -> Exception | None:
        """Write a shard, in a process of its own; what went wrong. An error that was raised would lose its text."""
        try:
            write_rows(self.work, self.path(k), self.rows(k), self._go_on, f"{self.of} {k}")
        except CannotWrite as error:
            return error.cause
        except (AksslError, OSError) as error:
            return error
        return None

    def _go_on(self, count: int) -> None:
        """End where the process that asked has ended; whoever goes on waits for it."""
        if os.getppid() != self.owner:
            raise KeyboardInterrupt

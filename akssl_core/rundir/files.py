"""How files get to disk: whole or not at all, flushed, under a lock, and with an answer when the disk refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ConfigError, RunDirError, RunStopped, visible

ANSWERS = "baselines.safetensors"  # whether k-NN is right for each test image, by baseline
OWN_FILES = ("config.yaml", "provenance.json", "manifest.json", "metrics.jsonl", "backbone.safetensors")
OWN_MORE = (
    "report.html", "samples.safetensors", "method.safetensors", "unreadable.txt", "evaluation.json",
    "start.safetensors", ANSWERS, "adapted.safetensors", "adaptation.json",
)  # fmt: skip


class CannotWrite(RunStopped, OSError):
    """The disk is full, read-only or gone."""

    @property
    def cause(self) -> OSError:
        """The system's own error."""
        return self.__cause__ if isinstance(self.__cause__, OSError) else self


def write_atomic(path: Path, data: bytes) -> Path:
    """Write a file beside its target, flush it to disk and move it into place."""
    with atomic_file(path) as file:
        file.write(data)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write beside its target: flushed to disk and moved into place at the end, removed on an error."""
    draft = path.with_name(f".{path.name}.part")
    with explain_write_errors(path):
        try:
            with draft.open("wb") as file:
                yield file
                flush(file)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def clear(folder: Path, keep: Collection[Path]) -> None:
    """Remove the files of a folder but for these, and locks."""
    for path in folder.iterdir():
        if path not in keep and path.suffix != ".lock":
            path.unlink()


def refuse_file(path: Path, *, overwrite: bool, name: str = "--out", page: bool = False) -> None:
    """Refuse a file that cannot or must not be written, before anything is computed; `page`: it is to be HTML.

    Raises:
        ConfigError: there is no such folder, something is there, a run needs it, nothing can be written there, or its
            name says that it is something else than a page.
    """
    if page and path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{name}: expected a name that ends in .html, as a page's does, got '{path}'.")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{name}: there is no folder '{path.parent}' to write {path.name} to. Make it first.")
    if os.path.isdir(path):
        raise ConfigError(f"{name}: '{path}' is a folder; expected a file. Choose another name.")
    if os.path.islink(path) and not os.path.exists(path):
        raise ConfigError(
            f"{name}: '{path}' is a link to '{os.readlink(path)}', where nothing is. Remove it, or choose another name."
        )
    of_run = any(os.path.isfile(path.with_name(name)) for name in ("manifest.json", "config.yaml"))
    if of_run and path.name in OWN_FILES + OWN_MORE:
        raise ConfigError(f"{name}: '{path}' belongs to the run in that folder. Choose another name.")
    if os.path.exists(path) and not overwrite:
        raise ConfigError(f"{name}: '{path}' exists already. Replace it with --overwrite, or choose another name.")
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{name}: cannot write {path}: {error.strerror}. Choose another place.") from error


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write a file into a CannotWrite that says how to mend it."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        if error.errno not in CURES:
            raise
        raise CannotWrite(f"cannot write {path}: {error.strerror}. {CURES[error.errno]}") from error


_AGAIN = "A run then goes on by 'akssl resume RUN_DIR'; any other command is given again."
CURES = {
    errno.ENOSPC: f"Free some space. {_AGAIN}",
    errno.EDQUOT: f"Free some of your quota. {_AGAIN}",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EACCES: "You may not write there: choose another folder, or change its permissions.",
    errno.EPERM: "You may not write there: choose another folder, or change its permissions.",
    errno.EFBIG: "The file would be larger than a limit allows (ulimit -f, or the file system's own).",
    errno.ENOTDIR: "A part of that path is a file: choose another folder.",
    errno.EIO: "The disk does not work; copy the run elsewhere and resume it there.",
    errno.ENOENT: "The folder is gone: a run needs its folder until it ends.",
}


class TensorStream:
    """A safetensors file written from start to end, of which little has to be in memory.

    The header stands at the start and tells lengths that only the end knows, so room is kept for it. The
    tensors `fixed` follow it; they may be filled until `finish` writes them. Then come the bytes that grow.

    Args:
        file: a new file, open for writing.
        fixed: tensors of a known shape by name, the widest numbers first, so that all lie aligned.
        grown: names of tensors (bytes,) uint8, in the order in which they are appended to.
        metadata: texts for the header.
    """

    def __init__(
        self, file: IO[bytes], fixed: Mapping[str, Tensor], grown: Sequence[str], metadata: Mapping[str, str]
    ) -> None:
        self.file, self.fixed, self.metadata = file, fixed, metadata
        self.lengths = dict.fromkeys(grown, 0)
        longest = len(self._header(dict.fromkeys(grown, 2**60)))
        self.room = longest + -longest % 8
        file.seek(8 + self.room + sum(tensor.nbytes for tensor in fixed.values()))

    def append(self, name: str, data: bytes) -> None:
        """More bytes of the tensor `name`; those of the tensors before it are complete."""
        self.file.write(data)
        self.lengths[name] += len(data)

    def finish(self) -> None:
        """Write what stands before the grown tensors."""
        header = self._header(self.lengths).ljust(self.room)
        self.file.seek(0)
        self.file.write(len(header).to_bytes(8, "little") + header)
        for tensor in self.fixed.values():
            self.file.write(tensor.numpy().tobytes())

    def _header(self, lengths: Mapping[str, int]) -> bytes:
        """The table of the tensors as safetensors lays it out."""
        shapes = {
            name: (_TYPES[tensor.dtype], list(tensor.shape), tensor.nbytes) for name, tensor in self.fixed.items()
        }
        shapes |= {name: ("U8", [length], length) for name, length in lengths.items()}
        table: dict[str, Any] = {"__metadata__": dict(self.metadata)}
        end = 0
        for name, (kind, shape, size) in shapes.items():
            table[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        return json.dumps(table, separators=(",", ":")).encode()


_TYPES = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8"}


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with these tensors, and texts in its header, whose order is that of their names."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, dict(metadata) if metadata else None)
    if not metadata or len(metadata) < 2:
        return content
    end = 8 + int.from_bytes(content[:8], "little")  # the library's order of texts is another each time
    header = json.loads(content[8:end])
    text = json.dumps({**header, "__metadata__": dict(sorted(metadata.items()))}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[end:]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header texts of a safetensors file.

    Raises:
        RunDirError: it does not exist or is damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_texts(path: Path) -> dict[str, str]:
    """The header texts of a safetensors file, which is not read any further; raises the errors of `read_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{visible(str(path))} cannot be read as safetensors: {visible(str(error))}") from error


def jsonable(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null, also inside tables and lists."""
    if isinstance(value, Mapping):
        return {name: jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """A table as a JSON file."""
    text = json.dumps(jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair, of a path that is no text, as JSON does


def digest(data: bytes) -> str:
    """A hash that tells whether bytes have changed, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def take_lock(path: Path) -> int:
    """A file, made if need be, that this process alone holds, open until it is closed or the process ends.

    Raises:
        BlockingIOError: another one holds it; the message is that process's number.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor)
        is_there = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        other = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise BlockingIOError(other or "unknown") from None
    if not is_there:  # the one that held it has removed it
        os.close(descriptor)
        return take_lock(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """While it lasts, no other process is in here with the same path.

    Raises:
        BlockingIOError: one is; the message is its number.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = take_lock(lock)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_flushed(path: Path, data: bytes) -> None:
    """A file whose bytes have reached the disk."""
    with path.open("wb") as file:
        file.write(data)
        flush(file)


def flush(file: IO[bytes]) -> None:
    """Bring what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""One run on disk: configuration, manifest, metrics, checkpoints and the exported backbone.

Every file is written beside its target and moved into place, so a reader sees a whole file or none.
Only safetensors, JSON, YAML and HTML are written; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import ConfigError, RunDirError, did_you_mean

OWN_FILES = ("config.yaml", "provenance.json", "manifest.json", "metrics.jsonl", "backbone.safetensors")
OWN_MORE = ("report.html", "samples.safetensors", "unreadable.txt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint as read back: tensors by name and the small state beside them."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class RunDir:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunDir:
        """A new run folder.

        Raises:
            RunDirError: it already holds a run (and `overwrite` is off), or it cannot be made.
        """
        refuse_used(path, overwrite=overwrite)
        run = cls(path)
        try:
            for name in OWN_FILES + OWN_MORE:
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(f"out: cannot create {path}: {error.strerror}. Choose another folder.") from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The folder of a run that was started before.

        Raises:
            RunDirError: it does not exist or holds no run.
        """
        if not (path / "manifest.json").is_file():
            siblings = [p.parent.name for p in path.parent.glob("*/manifest.json")]
            raise RunDirError(f"{path} holds no run (no manifest.json).{did_you_mean(path.name, siblings)}")
        run = cls(path)
        run.history = _rows(path / "metrics.jsonl")
        return run

    # -- small files ------------------------------------------------------------------------------
    def write_config(self, config: Mapping[str, Any], provenance: Mapping[str, str]) -> None:
        """`config.yaml` (running it again repeats the run) and who decided each of its values."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomic(self.path / "config.yaml", text.encode())
        write_atomic(self.path / "provenance.json", _json(provenance))

    def read_config(self) -> dict[str, Any]:
        """What `config.yaml` says."""
        return read_yaml(self.path / "config.yaml")

    def read_provenance(self) -> dict[str, str]:
        """Who decided each value."""
        result: dict[str, str] = json.loads((self.path / "provenance.json").read_text())
        return result

    @property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says."""
        result: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        return result

    def update_manifest(self, **fields: Any) -> None:
        """Set fields of `manifest.json`, keeping the others."""
        known = self.manifest if (self.path / "manifest.json").exists() else {"created": _timestamp()}
        write_atomic(self.path / "manifest.json", _json({**known, **fields, "updated": _timestamp()}))

    def write_text(self, name: str, text: str) -> Path:
        """A text file of the run, `report.html` for one."""
        return write_atomic(self.path / name, text.encode())

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
        """A safetensors file of the run with text in its header."""
        return write_atomic(self.path / name, _tensor_bytes(tensors, metadata))

    def write_unreadable(self, unreadable: Mapping[str, str]) -> None:
        """`unreadable.txt`: each file that could not be read, with the reason; no file where all could."""
        if unreadable:
            self.write_text("unreadable.txt", "".join(f"{name}\t{why}\n" for name, why in sorted(unreadable.items())))
            self.update_manifest(unreadable=len(unreadable))

    def remove(self) -> None:
        """Delete the folder, for a run that ended before its first row."""
        shutil.rmtree(self.path)

    # -- metrics ----------------------------------------------------------------------------------
    def log(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        row = {name: _jsonable(value) for name, value in row.items()}
        self.history.append(row)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Forget rows that come after a checkpoint, before training goes on from it."""
        self.history = [row for row in self.history if row["step"] <= step]
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_atomic(self.path / "metrics.jsonl", lines.encode())

    # -- checkpoints ------------------------------------------------------------------------------
    def save_checkpoint(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
    ) -> Path:
        """A checkpoint folder, complete or absent; the last `keep` and the best (by state["score"]) stay."""
        target = self.path / "checkpoints" / f"{state['step']:08d}"
        draft = target.with_name(f".{target.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        parts = {"model.safetensors": _tensor_bytes(model), "optimizer.safetensors": _tensor_bytes(optimizer)}
        sums = {name: hashlib.blake2b(data, digest_size=16).hexdigest() for name, data in parts.items()}
        for name, data in parts.items():
            _write(draft / name, data)
        _write(draft / "state.json", _json({**state, "checksums": sums}))
        shutil.rmtree(target, ignore_errors=True)
        draft.replace(target)
        _sync_folder(target.parent)
        self._prune(keep)
        return target

    def _prune(self, keep: int) -> None:
        folders = self.checkpoints()
        scores = {path: json.loads((path / "state.json").read_text()).get("score") for path in folders}
        scored = [path for path in folders if scores[path] is not None]
        best = max(scored, key=lambda path: float(scores[path])) if scored else None
        for path in folders[:-keep]:
            if path != best:
                shutil.rmtree(path)

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("[0-9]*") if (p / "state.json").is_file())

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with newer ones."""
        problems: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                return _read_checkpoint(path), problems
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                problems.append(f"checkpoint {path.name} is damaged ({error}); using the one before it")
        return None, problems


def refuse_used(path: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that already holds a run.

    Raises:
        RunDirError: it does, or it is a file.
    """
    if path.exists() and not path.is_dir():
        raise RunDirError(f"out: {path} is a file; a run needs a folder. Choose another name.")
    if not overwrite and any((path / name).exists() for name in OWN_FILES):
        raise RunDirError(
            f"out: {path} already holds a run. Continue it with 'akssl resume {path}', "
            f"replace it with --overwrite, or choose another folder."
        )


def write_atomic(path: Path, data: bytes) -> Path:
    """Write a file beside its target, flush it to disk and move it into place."""
    with atomic_file(path) as file:
        file.write(data)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write beside its target: flushed to disk and moved into place at the end, removed on an error."""
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as file:
            yield file
            _flush(file)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table.

    Raises:
        ConfigError: it cannot be read, is not YAML, or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise ConfigError(f"config: {path}{where}: not valid YAML: {problem}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config: {path} must hold settings (key: value), got {type(data).__name__}.")
    return data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header texts of a safetensors file.

    Raises:
        RunDirError: it does not exist or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{path} cannot be read as safetensors: {error}") from error


def _read_checkpoint(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text())
    for name, expected in state["checksums"].items():
        if hashlib.blake2b((path / name).read_bytes(), digest_size=16).hexdigest() != expected:
            raise ValueError(f"{name} has changed since it was written")
    model, _ = read_tensors(path / "model.safetensors")
    optimizer, _ = read_tensors(path / "optimizer.safetensors")
    return Checkpoint(path, model, optimizer, state)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, dict(metadata) if metadata else None)


def _jsonable(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null, also inside tables."""
    if isinstance(value, Mapping):
        return {name: _jsonable(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _flush(file)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

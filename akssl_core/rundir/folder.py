"""One run on disk: configuration, manifest, metrics, checkpoints and the exported backbone.

Every file is written beside its target and moved into place, so a reader sees a whole file or none.
Only safetensors, JSON, YAML and HTML are written; nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config.yaml import read_yaml
from ..errors import RunDirError, did_you_mean, visible
from .files import (
    CannotWrite,
    digest,
    sync,
    sync_folder,
    take_lock,
    tensor_bytes,
    told,
    write_atomic,
    write_flushed,
)

OWN_FILES = ("config.yaml", "provenance.json", "manifest.json", "metrics.jsonl", "backbone.safetensors")
OWN_MORE = ("report.html", "samples.safetensors", "unreadable.txt", "evaluation.json")
EXPORTED = {
    "safetensors": "backbone-exported.safetensors",
    "torchvision": "backbone-torchvision.safetensors",
    "timm": "backbone-timm.safetensors",
    "onnx": "backbone.onnx",
}  # what `akssl export` writes, by format
UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError)


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
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunDir:
        """A new run folder.

        Raises:
            RunDirError: it already holds a run (and `overwrite` is off), another process is using it, or it cannot
                be made.
        """
        refuse_used(path, overwrite=overwrite)
        run, existed = cls(path), path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.lock()
            run.clear()
            (path / "checkpoints").mkdir(exist_ok=True)
        except RunDirError:
            raise
        except OSError as error:
            if not existed:
                run.remove()
            raise cannot_start(path, error) from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The folder of a run that was started before.

        Raises:
            RunDirError: it does not exist or holds no run.
        """
        if not any(os.path.isfile(path / name) for name in ("manifest.json", "config.yaml")):
            beside = path.parent.glob("*/manifest.json") if os.path.isdir(path.parent) else ()
            siblings = [found.parent.name for found in beside]
            raise RunDirError(f"{path} holds no run (no manifest.json).{did_you_mean(path.name, siblings)}")
        run = cls(path)
        run.history = _rows(path / "metrics.jsonl")
        return run

    # -- one process at a time --------------------------------------------------------------------
    def lock(self) -> None:
        """Keep other processes from training in this folder until `unlock`, or until this process ends in any way.

        Raises:
            RunDirError: another process trains in it.
        """
        try:
            with told(self.path):
                self._lock = take_lock(self.path / ".lock")
        except BlockingIOError as other:
            raise RunDirError(f"{self.path}: another process (pid {other}) is training in this folder.") from None

    def unlock(self) -> None:
        """Let others train in this folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def in_use(self) -> bool:
        """Whether a process trains in this folder."""
        if not (self.path / ".lock").is_file():
            return False
        try:
            os.close(take_lock(self.path / ".lock"))
        except BlockingIOError:
            return True
        return False

    # -- small files ------------------------------------------------------------------------------
    def write_config(self, config: Mapping[str, Any], provenance: Mapping[str, str]) -> None:
        """`config.yaml` (running it again repeats the run) and who decided each of its values."""
        text = yaml.safe_dump(dict(config), sort_keys=False)
        write_atomic(self.path / "config.yaml", text.encode())
        write_atomic(self.path / "provenance.json", _json(provenance))

    def read_config(self) -> dict[str, Any]:
        """What `config.yaml` says."""
        return read_yaml(self.path / "config.yaml")

    def read_provenance(self) -> dict[str, str]:
        """Who decided each value."""
        return _table(self.path / "provenance.json")

    @property
    def begun(self) -> bool:
        """Whether the run came far enough to have a manifest."""
        return os.path.isfile(self.path / "manifest.json")

    @property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says.

        Raises:
            RunDirError: it cannot be read.
        """
        return _table(self.path / "manifest.json")

    def update_manifest(self, **fields: Any) -> None:
        """Set fields of `manifest.json`, keeping the others; None takes a field out."""
        known = self.manifest if self.begun else {"created": _timestamp()}
        now = max(_timestamp(), known.get("updated", ""), known.get("created", ""))  # a clock may be set back
        kept = {name: value for name, value in {**known, **fields}.items() if value is not None}
        write_atomic(self.path / "manifest.json", _json({**kept, "updated": now}))

    def write_text(self, name: str, text: str) -> Path:
        """A text file of the run, `report.html` for one."""
        return write_atomic(self.path / name, text.encode())

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
        """A safetensors file of the run with text in its header."""
        return write_atomic(self.path / name, tensor_bytes(tensors, metadata))

    def write_unreadable(self, unreadable: Mapping[str, str]) -> None:
        """`unreadable.txt`: each file that could not be read, with the reason; no file where all could."""
        if unreadable:
            lines = [f"{visible(name)}\t{visible(why)}\n" for name, why in sorted(unreadable.items())]
            self.write_text("unreadable.txt", "".join(lines))
            self.update_manifest(unreadable=len(unreadable))

    def write_evaluation(self, found: Mapping[str, Any]) -> Path:
        """`evaluation.json`: what evaluations after training have found."""
        return write_atomic(self.path / "evaluation.json", _json(found))

    def read_evaluation(self) -> dict[str, Any]:
        """What `evaluation.json` says; nothing where there is none or it is damaged."""
        try:
            found = json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def clear(self) -> None:
        """Delete what a run writes and leave the rest of the folder."""
        for name in (*OWN_FILES, *OWN_MORE, *EXPORTED.values()):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder, for a run that ended before its first row."""
        shutil.rmtree(self.path, ignore_errors=True)

    # -- metrics ----------------------------------------------------------------------------------
    def log(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        row = {name: _jsonable(value) for name, value in row.items()}
        file = self.path / "metrics.jsonl"
        with told(file), file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, allow_nan=False) + "\n")
        self.history.append(row)

    def rewind(self, step: int) -> None:
        """Forget rows that come after a checkpoint and drafts of a killed process, before training goes on from it."""
        for draft in (*self.path.glob(".*.part"), *(self.path / "checkpoints").glob(".*.part")):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        (self.path / "checkpoints").mkdir(exist_ok=True)
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
        parts = {"model.safetensors": tensor_bytes(model), "optimizer.safetensors": tensor_bytes(optimizer)}
        described = {**state, "checksums": {name: digest(data) for name, data in parts.items()}}
        parts["state.json"] = _json({**described, "digest": digest(_json(described))})
        with told(target):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()  # without its parents: a folder that was deleted does not come back with a part of a run
            try:
                for name, data in parts.items():
                    write_flushed(draft / name, data)
                sync_folder(draft)
                sync(self.path / "metrics.jsonl")  # rows must not be younger than the checkpoint they belong to
                _drop(target)
                draft.replace(target)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_folder(target.parent)
            self._prune(keep, target)
        return target

    def _prune(self, keep: int, newest: Path) -> None:
        """Keep the last and the best up to `newest`; a run that went on from before later ones has forgotten them."""
        folders = [path for path in self.checkpoints() if path <= newest]
        scores = {path: _score(path) for path in folders}
        scored = [path for path in folders if scores[path] is not None]
        best = max(scored, key=lambda path: scores[path] or 0.0) if scored else None
        for path in self.checkpoints():
            if path not in folders[-keep:] and path != best:
                _drop(path)

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("[0-9]*") if (p / "state.json").is_file())

    def damaged(self) -> list[str]:
        """What is wrong with each checkpoint that cannot be read."""
        problems = []
        for path in self.checkpoints():
            try:
                _read_checkpoint(path)
            except UNREADABLE as error:
                problems.append(f"checkpoint {path.name} is damaged ({error})")
        return problems

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with newer ones."""
        problems: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                return _read_checkpoint(path), problems
            except UNREADABLE as error:
                problems.append(f"checkpoint {path.name} is damaged ({error}); using the one before it")
        if problems:
            raise RunDirError(f"{self.path}: none of its checkpoints can be read; {problems[0].partition(';')[0]}.")
        return None, []


def refuse_used(path: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that already holds a run.

    Raises:
        RunDirError: it does, or it is a file.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise RunDirError(f"out: {path} is a file; a run needs a folder. Choose another name.")
    if not overwrite and any(os.path.exists(path / name) for name in OWN_FILES):
        raise RunDirError(
            f"out: {path} already holds a run. Continue it with 'akssl resume {path}', "
            f"replace it with --overwrite, or choose another folder."
        )


def cannot_start(path: Path, error: OSError) -> RunDirError:
    """What to tell of a folder in which a run cannot begin."""
    cause = error.cause if isinstance(error, CannotWrite) else error
    reason = cause.strerror or cause
    return RunDirError(f"out: cannot create {path}: {reason}. Mend that, or choose another folder.")


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
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.pop("digest") != digest(_json(state)):
        raise ValueError("state.json has changed since it was written")
    for name in ("model.safetensors", "optimizer.safetensors"):
        if digest((path / name).read_bytes()) != state["checksums"][name]:
            raise ValueError(f"{name} has changed since it was written")
    model, _ = read_tensors(path / "model.safetensors")
    optimizer, _ = read_tensors(path / "optimizer.safetensors")
    return Checkpoint(path, model, optimizer, state)


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint, if it exists; a kill meanwhile leaves a draft, and never a part of it under its name."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.replace(checkpoint.with_name(f".{checkpoint.name}.old.part")))


def _score(checkpoint: Path) -> float | None:
    """What a checkpoint says of its probe; nothing where it is damaged."""
    try:
        score = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["score"]
        return None if score is None else float(score)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _table(path: Path) -> dict[str, Any]:
    """What a JSON file of the run holds.

    Raises:
        RunDirError: it cannot be read, or holds something else than a table.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise RunDirError(f"{path} must hold a table, got {type(result).__name__}.")
    return result


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file up to the first that is damaged: a kill may cut the last one short."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if os.path.isfile(path) else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _jsonable(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null, also inside tables and lists."""
    if isinstance(value, Mapping):
        return {name: _jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8",
        "backslashreplace",  # half a surrogate pair, of a path that is no text, as JSON writes it
    )


def _timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

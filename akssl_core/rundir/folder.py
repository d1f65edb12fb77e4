"""One run on disk: configuration, manifest, metrics, checkpoints and the exported backbone.

Every file is written beside its target and moved into place, so a reader sees a whole file or none.
Only safetensors, JSON, YAML and HTML are written; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.yaml import dump_yaml, read_yaml
from ..errors import RunDirError, did_you_mean, visible
from .checkpoints import UNREADABLE, Checkpoint, CheckpointState, list_checkpoints, read_checkpoint, save_checkpoint
from .files import ANSWERS as ANSWERS
from .files import (
    OWN_FILES,
    OWN_MORE,
    CannotWrite,
    explain_write_errors,
    flush,
    json_bytes,
    jsonable,
    take_lock,
    tensor_bytes,
    write_atomic,
)
from .files import read_tensors as read_tensors
from .schemas import Adaptation, Evaluations, Manifest, Origins, checked

EXPORTED = {
    "safetensors": "backbone-exported.safetensors",
    "torchvision": "backbone-torchvision.safetensors",
    "timm": "backbone-timm.safetensors",
    "onnx": "backbone.onnx",
    "int8": "backbone-int8.onnx",
}  # what `akssl export` writes, by format


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
        refuse_folder(path, overwrite=overwrite)
        run, existed = cls(path), path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.lock()
            run.set_aside()
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
            hint = did_you_mean(path.name, siblings) or " Give the folder that 'akssl run' has named or --out has made."
            raise RunDirError(f"{path} holds no run (no manifest.json).{hint}")
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
            with explain_write_errors(self.path):
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
        try:
            if (self.path / ".lock").is_file():
                os.close(take_lock(self.path / ".lock"))
        except BlockingIOError:
            return True
        return False

    # -- small files ------------------------------------------------------------------------------
    def write_config(self, config: Mapping[str, Any], provenance: Mapping[str, str]) -> None:
        """`config.yaml` (running it again repeats the run) and who decided each of its values."""
        write_atomic(self.path / "config.yaml", dump_yaml(dict(config)).encode())
        write_atomic(self.path / "provenance.json", json_bytes(provenance))

    def read_config(self) -> dict[str, Any]:
        """The settings in `config.yaml`."""
        return read_yaml(self.path / "config.yaml")

    @property
    def origins(self) -> dict[str, str]:
        """Who decided each value of `config.yaml`, by its path; {} where that is not known."""
        with suppress(RunDirError):
            return checked(Origins, self.path / "provenance.json").root
        return {}

    @property
    def begun(self) -> bool:
        """Whether the run came far enough to have a manifest."""
        return os.path.isfile(self.path / "manifest.json")

    @property
    def manifest(self) -> Manifest:
        """`manifest.json`.

        Raises:
            RunDirError: it cannot be read.
        """
        return checked(Manifest, self.path / "manifest.json")

    def update_manifest(self, changed: Manifest) -> None:
        """Set the fields of `manifest.json` that are given, keeping the others; None takes a field out."""
        known = self.manifest if self.begun else Manifest(created=_timestamp())
        now = max(_timestamp(), known.updated, known.created)  # a clock may be set back
        fields = {**known.table(), **changed.table()}
        kept = {name: value for name, value in fields.items() if value is not None}
        write_atomic(self.path / "manifest.json", json_bytes({**kept, "updated": now}))

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
            self.update_manifest(Manifest(unreadable=len(unreadable)))

    def write_evaluations(self, found: Evaluations) -> Path:
        """`evaluation.json`: the findings of evaluations after training."""
        return write_atomic(self.path / "evaluation.json", json_bytes(found.table()))

    @property
    def evaluations(self) -> Evaluations:
        """`evaluation.json`; empty where there is none or it is damaged."""
        with suppress(RunDirError):
            return checked(Evaluations, self.path / "evaluation.json")
        return Evaluations()

    def write_adaptation(self, found: Adaptation) -> Path:
        """`adaptation.json`: which weights are kept, and why."""
        return write_atomic(self.path / "adaptation.json", json_bytes(found.table()))

    @property
    def adaptation(self) -> Adaptation | None:
        """`adaptation.json`; None where the run has not chosen.

        Raises:
            RunDirError: it is damaged.
        """
        file = self.path / "adaptation.json"
        return checked(Adaptation, file) if file.is_file() else None

    # -- a run in the place of another ------------------------------------------------------------
    def set_aside(self) -> None:
        """Keep what an earlier run wrote in `.replaced`, until this one has its first row; the rest stays in place."""
        if self.replaces:  # a run that was killed before its first row
            self.bring_back()
        for file in self._written():
            self._aside.mkdir(exist_ok=True)
            file.rename(self._aside / file.name)

    def bring_back(self) -> None:
        """Undo `set_aside`: what this run wrote is gone."""
        for file in self._written():
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        for file in self._aside.glob("*"):
            file.rename(self.path / file.name)
        shutil.rmtree(self._aside, ignore_errors=True)

    @property
    def replaces(self) -> bool:
        """Whether an earlier run is still kept for this one, which has no row yet."""
        return self._aside.exists()

    @property
    def _aside(self) -> Path:
        return self.path / ".replaced"

    def _written(self) -> list[Path]:
        names = (*OWN_FILES, *OWN_MORE, *EXPORTED.values(), "checkpoints")
        return [self.path / name for name in names if os.path.lexists(self.path / name)]

    def remove(self) -> None:
        """Delete the folder, for a run that ended before its first row."""
        shutil.rmtree(self.path, ignore_errors=True)

    # -- metrics ----------------------------------------------------------------------------------
    def log(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        row = {name: jsonable(value) for name, value in row.items()}
        if not self.history:
            shutil.rmtree(self._aside, ignore_errors=True)
        file = self.path / "metrics.jsonl"
        with explain_write_errors(file), file.open("a", encoding="utf-8") as lines:
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
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: CheckpointState, *, keep: int
    ) -> Path:
        """A checkpoint, complete or absent; the last `keep` and the best by score stay."""
        rows = self.path / "metrics.jsonl"
        with explain_write_errors(rows), suppress(FileNotFoundError), rows.open("r+b") as file:
            flush(file)  # rows must not be younger than the checkpoint they belong to
        return save_checkpoint(self.path / "checkpoints", model, optimizer, state, keep=keep)

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, oldest first."""
        return list_checkpoints(self.path / "checkpoints")

    def damaged(self) -> list[str]:
        """One line for each checkpoint that cannot be read, the oldest first."""
        return [found for found in self._read_checkpoints() if isinstance(found, str)][::-1]

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with newer ones."""
        problems: list[str] = []
        for found in self._read_checkpoints():
            if isinstance(found, Checkpoint):
                return found, [f"{problem}; using the one before it" for problem in problems]
            problems.append(found)
        if problems:
            raise RunDirError(f"{self.path}: none of its checkpoints can be read; {problems[0]}.")
        return None, []

    def _read_checkpoints(self) -> Iterator[Checkpoint | str]:
        """Each checkpoint, the newest first, or what is wrong with it."""
        for path in reversed(self.checkpoints()):
            try:
                yield read_checkpoint(path)
            except UNREADABLE as error:
                yield f"checkpoint {path.name} is damaged ({error})"


def holds_run(path: Path) -> bool:
    """Whether a folder has files of a run, whole or not."""
    return any(os.path.exists(path / name) for name in OWN_FILES)


def refuse_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that already holds a run.

    Raises:
        RunDirError: it does, or it is a file.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise RunDirError(f"out: {path} is a file; a run needs a folder. Choose another name.")
    if not overwrite and holds_run(path):
        raise RunDirError(
            f"out: {path} already holds a run. Continue it with 'akssl resume {path}', "
            f"replace it with --overwrite, or choose another folder."
        )


def cannot_start(path: Path, error: OSError) -> RunDirError:
    """The error for a folder in which a run cannot begin."""
    cause = error.cause if isinstance(error, CannotWrite) else error
    return RunDirError(f"out: cannot create {path}: {cause.strerror or cause}. Mend that, or choose another folder.")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file up to the first that is damaged: a kill may cut the last one short."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if os.path.isfile(path) else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

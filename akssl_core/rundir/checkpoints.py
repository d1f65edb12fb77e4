"""Checkpoints on disk: what one holds, written whole or not at all, read back whole, and which of them are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from .files import digest, explain_write_errors, json_bytes, read_tensors, sync_folder, tensor_bytes, write_flushed

UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError)


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """The small part of a checkpoint, `state.json`; a new field has a default, for checkpoints without it."""

    step: Annotated[int, Field(ge=0)]
    score: float | None = None  # of the probe after this step; the checkpoint with the best is kept
    settings: Mapping[str, Any] = field(default_factory=dict)  # all of the run, to be compared with a resume's
    callbacks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # name and state of what has one
    scaler: Mapping[str, Any] = field(default_factory=dict)  # of the gradients in fp16
    torch: str = ""  # version


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint as read back: tensors by name and the small state beside them."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: CheckpointState


def save_checkpoint(
    folder: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: CheckpointState, *, keep: int
) -> Path:
    """A checkpoint, complete or absent; the last `keep` and the best by score stay."""
    target = folder / f"{state.step:08d}"
    draft = target.with_name(f".{target.name}.part")
    table = {one.name: getattr(state, one.name) for one in fields(state)}
    table["checksums"] = {}
    with explain_write_errors(target):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()  # without its parents: a folder that was deleted does not come back with a part of a run
        try:
            for name, tensors in (("model.safetensors", model), ("optimizer.safetensors", optimizer)):
                data = tensor_bytes(tensors)
                table["checksums"][name] = digest(data)
                write_flushed(draft / name, data)
            write_flushed(draft / "state.json", json_bytes({**table, "digest": digest(json_bytes(table))}))
            sync_folder(draft)
            _drop(target)
            draft.replace(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(folder)
        _prune(folder, keep, target)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / "state.json").is_file())


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint as it was saved.

    Raises:
        one of UNREADABLE: it is damaged.
    """
    table = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if table.pop("digest") != digest(json_bytes(table)):
        raise ValueError("state.json has changed since it was written")
    for name in ("model.safetensors", "optimizer.safetensors"):
        if digest((path / name).read_bytes()) != table["checksums"][name]:
            raise ValueError(f"{name} has changed since it was written")
    state = TypeAdapter(CheckpointState).validate_python(table)
    model, optimizer = (read_tensors(path / f"{name}.safetensors")[0] for name in ("model", "optimizer"))
    return Checkpoint(path, model, optimizer, state)


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Keep the last and the best up to `newest`; a run that went on from before later ones has forgotten them."""
    known = [path for path in list_checkpoints(folder) if path <= newest]
    scores = {path: score for path in known if (score := _score(path)) is not None}
    best = max(scores, key=lambda path: scores[path]) if scores else None
    for path in list_checkpoints(folder):
        if path not in known[-keep:] and path != best:
            _drop(path)


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint, if it exists; a kill meanwhile leaves a draft, and never a part of it under its name."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.replace(checkpoint.with_name(f".{checkpoint.name}.old.part")))


def _score(checkpoint: Path) -> float | None:
    """The score that a checkpoint was saved with; None where it is damaged."""
    try:
        score = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["score"]
        return None if score is None else float(score)
    except UNREADABLE:
        return None

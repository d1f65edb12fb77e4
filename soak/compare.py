"""Two runs compared bit for bit, and whether a run folder can be read at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from akssl_core.rundir.checkpoints import CheckpointState
from akssl_core.rundir.folder import RunDir, read_tensors

TIMES = ("images_per_s", "seconds")  # and all columns that begin with time_
NUMBERS = ("method", "seed", "image", "data", "baselines", "final", "verdict", "status")


@dataclass
class Differences:
    """By name, what two finished runs do not have in common."""

    compared: int = 0  # tensors
    tensors: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tensors or self.rows or self.numbers or self.files)


def differences(reference: Path, other: Path) -> Differences:
    """Weights, buffers, optimizer, export, rows, final numbers and names of files; times alone may differ."""
    found = Differences()
    first, second = _tensors(reference), _tensors(other)
    found.compared = len(first)
    found.tensors = [name for name in sorted(first.keys() | second.keys()) if not _same(first, second, name)]
    found.rows = _unequal(dict(enumerate(rows(reference))), dict(enumerate(rows(other))))
    found.numbers = _unequal(_numbers(reference), _numbers(other))
    found.files = sorted(_names(reference) ^ _names(other))
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run without the columns that tell time."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [_timeless(json.loads(line)) for line in lines]


def unreadable(run: Path) -> str:
    """Why a folder cannot be resumed, or an empty text; one that holds no run yet is as good as none."""
    if not any((run / name).exists() for name in ("config.yaml", "manifest.json", "metrics.jsonl")):
        return ""
    try:
        folder = RunDir.open(run)
        folder.read_config()
        if folder.begun:
            assert "status" in folder.manifest.table(), "the manifest tells no status"
        steps = [row["step"] for row in folder.history]
        assert steps == sorted(set(steps)), f"rows out of order: {steps}"
        checkpoint, problems = folder.latest()
        assert not problems, problems
        if checkpoint is not None:
            assert checkpoint.state.step <= max(steps, default=0) + _unwritten(checkpoint.state), "rows are missing"
    except Exception as error:  # whatever it is, the folder cannot be read
        return repr(error)
    return ""


def _unwritten(state: CheckpointState) -> int:
    """Steps of a checkpoint that have no row yet."""
    return sum(entry["count"] for name, entry in state.callbacks if name == "Recorder")


def _tensors(run: Path) -> dict[str, Tensor]:
    checkpoint, _ = RunDir.open(run).latest()
    assert checkpoint is not None, f"{run} has no checkpoint"
    found = {f"model {name}": value for name, value in checkpoint.model.items()}
    found |= {f"optimizer {name}": value for name, value in checkpoint.optimizer.items()}
    for file in ("backbone.safetensors", "samples.safetensors"):
        if (run / file).exists():
            found |= {f"{file} {name}": value for name, value in read_tensors(run / file)[0].items()}
    return found


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor], name: str) -> bool:
    """Bit for bit, also where a number is none."""
    if name not in first or name not in second:
        return False
    a, b = first[name], second[name]
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _numbers(run: Path) -> dict[str, Any]:
    manifest = RunDir.open(run).manifest.table()
    checkpoint, _ = RunDir.open(run).latest()
    assert checkpoint is not None
    state = {key: getattr(checkpoint.state, key) for key in ("step", "score", "callbacks", "scaler")}
    return {**{key: _timeless(manifest.get(key)) for key in NUMBERS}, **state}


def _names(run: Path) -> set[str]:
    """Files beside the checkpoints, and drafts that were left anywhere."""
    drafts = {path.name for path in (run / "checkpoints").iterdir() if not path.name.isdigit()}
    return {path.name for path in run.iterdir()} | drafts


def _timeless(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: inner for key, inner in value.items() if key not in TIMES and not key.startswith("time_")}


def _unequal(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> list[str]:
    keys = [*first, *(key for key in second if key not in first)]
    return [f"{key}: {first.get(key)} | {second.get(key)}" for key in keys if first.get(key) != second.get(key)]

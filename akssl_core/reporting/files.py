"""Reads the files of a run folder; a file that the run has not written yet is left out."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import leaves
from ..config.yaml import read_yaml
from ..errors import RunDirError
from ..metrics.diagnosis import Diagnosis, read_diagnosis
from ..rundir.folder import RunDir, read_tensors
from ..rundir.schemas import Origins, Row, checked, read_start

LARGEST = 1e100  # that a chart can show; what is larger counts as not a number

LAYOUTS = {
    "originals": (torch.uint8, 4),
    "neighbour_labels": (torch.int64, 2),
    "map": (torch.float32, 2),
    "map_images": (torch.uint8, 4),
    "map_labels": (torch.int64, 1),
    "map_share": (torch.float32, 0),
    "map_total": (torch.int64, 0),
    "spectrum": (torch.float32, 1),
}  # type and number of axes of what `samples.safetensors` holds beside pictures of several each: (R, V, C, H, W)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """One run as its files show it."""

    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, str]  # dotted path of a setting -> who decided it
    manifest: Mapping[str, Any]
    rows: list[dict[str, Any]]
    samples: Mapping[str, Tensor]
    unreadable: list[str]
    has_backbone: bool
    adaptation: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> RunFiles:
        """All files that are there.

        Raises:
            RunDirError: the folder holds no run, or a file of it is damaged.
            ConfigError: `config.yaml` is missing or damaged.
        """
        folder = RunDir.open(path)
        samples, provenance, unreadable = (
            path / name for name in ("samples.safetensors", "provenance.json", "unreadable.txt")
        )
        return cls(
            path=path,
            config=read_yaml(path / "config.yaml"),
            provenance=checked(Origins, provenance).root if provenance.is_file() else {},
            manifest=folder.manifest.table(),
            rows=[checked(Row, path / "metrics.jsonl", row).table() for row in folder.history],
            samples=_samples(samples) if samples.is_file() else {},
            unreadable=read_start(unreadable).decode("utf-8", "replace").splitlines() if unreadable.is_file() else [],
            has_backbone=(path / "backbone.safetensors").is_file(),
            adaptation=chosen.table() if (chosen := folder.adaptation) else None,
        )

    @property
    def damage(self) -> list[str]:
        """What the two files that tell of the run have lost, a line each."""
        lines, rows = count_lines(self.path / "metrics.jsonl"), len(self.rows)
        found = [f"metrics.jsonl: {rows} of {lines} lines can be read"] if lines > rows else []
        if not lines and self.final:
            found.append("metrics.jsonl has no rows, and the run has ended")
        return found if "status" in self.manifest else [*found, "manifest.json says nothing of how the run went"]

    @property
    def status(self) -> str:
        """running, finished, failed, stopped or collapsed."""
        return str(self.manifest.get("status", "unknown"))

    @property
    def final(self) -> Mapping[str, float]:
        """The final scores; empty until the run has finished. Null counts as not a number."""
        scores: Mapping[str, float | None] = self.manifest.get("final") or {}
        return {name: drawable(value) for name, value in scores.items()}

    @property
    def above(self) -> Mapping[str, Mapping[str, float]]:
        """How many points k-NN is above each baseline, by its name: mean, low and high."""
        found: Mapping[str, Mapping[str, float]] = self.manifest.get("above") or {}
        return found

    @property
    def diagnosis(self) -> Diagnosis:
        """Its verdict; of a run that goes on or broke off, by the rows so far."""
        return read_diagnosis(self.manifest, self.rows)

    def class_name(self, label: int) -> str:
        """A label's name for people; nothing for an image without one."""
        names: list[str] = self.manifest.get("data", {}).get("class_names") or []
        return "" if label < 0 else names[label] if label < len(names) else f"class {label}"

    def setting(self, path: str) -> Any:
        """The value of a setting by its dotted path, or None."""
        return dict(leaves(self.config)).get(path)

    def column(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of every row that has this number; null counts as not a number."""
        rows = ((row["epoch"], row[name]) for row in self.rows if name in row)
        return [(epoch, drawable(value)) for epoch, value in rows]


def tell_damage(run: RunFiles) -> None:
    """Warn that a run is shown without what its files have lost."""
    for found in run.damage:
        warnings.warn(f"{run.path}: {found}", UserWarning, stacklevel=3)


def count_lines(file: Path) -> int:
    """The lines of a file; none of one that is not there."""
    return len(file.read_text(encoding="utf-8", errors="replace").splitlines()) if file.is_file() else 0


def drawable(value: float | None) -> float:
    """A number as a chart can show it: null and what is too large count as not a number."""
    return math.nan if value is None or not abs(value) < LARGEST else value


def _samples(path: Path) -> Mapping[str, Tensor]:
    """The pictures, if they are such as a run writes."""
    tensors, _ = read_tensors(path)
    for name, tensor in tensors.items():
        if (tensor.dtype, tensor.ndim) != LAYOUTS.get(name, (torch.uint8, 5)) or not tensor.numel():
            kind, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            raise RunDirError(f"{path} is damaged: '{name:.60}' holds no pictures, but {kind} of shape {shape!s:.60}.")
    rows = [len(t) for name, t in tensors.items() if name == "originals" or name.startswith(("views.", "method."))]
    found, labels_of = tensors.get("neighbours"), tensors.get("neighbour_labels")
    fit = found is None or labels_of is None or found.shape[:2] == labels_of.shape
    if len(set(rows)) > 1 or not fit:
        raise RunDirError(f"{path} is damaged: its pictures are not as many as their views or labels.")
    if "map" in tensors and not _is_map(tensors):
        raise RunDirError(f"{path} is damaged: its map of features does not fit the images on it.")
    return tensors


def _is_map(tensors: Mapping[str, Tensor]) -> bool:
    """Whether each image of the map has a place in the square, and a label where there are labels."""
    places, number = tensors["map"], len(tensors["map"])
    labels = tensors.get("map_labels", places)
    whole = {"map_images", "map_share", "map_total"} <= tensors.keys()
    inside = places.shape[1] == 2 and bool(((places >= 0) & (places <= 1)).all())
    return whole and inside and len(tensors["map_images"]) == number == len(labels)


def text_of(value: Any) -> str:
    """A value of a configuration or manifest as a reader would write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

"""What the files of a run folder say; a file that a run has not written yet is simply missing here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import leaves
from ..rundir import RunDir, read_tensors


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

    @classmethod
    def read(cls, path: Path) -> RunFiles:
        """All files that are there.

        Raises:
            RunDirError: the folder holds no run, or `samples.safetensors` is damaged.
            ConfigError: `config.yaml` is missing or damaged.
        """
        folder = RunDir.open(path)
        samples, unreadable = path / "samples.safetensors", path / "unreadable.txt"
        return cls(
            path=path,
            config=folder.read_config(),
            provenance=folder.read_provenance() if (path / "provenance.json").is_file() else {},
            manifest=folder.manifest,
            rows=folder.history,
            samples=read_tensors(samples)[0] if samples.is_file() else {},
            unreadable=unreadable.read_text(encoding="utf-8").splitlines() if unreadable.is_file() else [],
            has_backbone=(path / "backbone.safetensors").is_file(),
        )

    @property
    def status(self) -> str:
        """running, finished, failed, stopped or collapsed."""
        return str(self.manifest["status"])

    @property
    def final(self) -> Mapping[str, float]:
        """The final scores; empty until the run has finished. Null counts as not a number."""
        scores: Mapping[str, float | None] = self.manifest.get("final") or {}
        return {name: math.nan if value is None else value for name, value in scores.items()}

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes where the data has names for them."""
        names: list[str] | None = self.manifest.get("data", {}).get("class_names")
        return names

    def setting(self, path: str) -> Any:
        """The value of a setting by its dotted path, or None."""
        return dict(leaves(self.config)).get(path)

    def column(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of every row that has this number; null counts as not a number."""
        rows = ((row["epoch"], row[name]) for row in self.rows if name in row)
        return [(epoch, math.nan if value is None else value) for epoch, value in rows]


def text_of(value: Any) -> str:
    """A value of a configuration or manifest as a reader would write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

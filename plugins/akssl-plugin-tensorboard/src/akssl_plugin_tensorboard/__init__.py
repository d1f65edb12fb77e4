"""TensorBoard: the rows of a run as scalars, its settings as text and hyperparameters, its final scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from akssl_core import Logger, Registry, Schema, hookimpl

if TYPE_CHECKING:
    from .events import EventFile

PROBES = ("knn_", "rankme", "std_ratio")  # how the fields that probe the encoder begin
SPEED = ("images_per_s", "seconds")


class TensorBoard(Logger):
    """Writes the run into event files that `tensorboard --logdir` shows, beside other runs if there are."""

    name = "tensorboard"

    class Config(Schema):
        """Where the event files go and how soon they are on disk."""

        folder: str = Field("tensorboard", min_length=1, description="folder of the event files, below the run folder")
        flush_seconds: int = Field(0, ge=0, description="seconds that a row may wait to be written; 0: none")

        @field_validator("folder")
        @classmethod
        def _stays_inside(cls, folder: str) -> str:
            """Refuse what leads out of the run folder, on this system or another that reads the same settings."""
            path, drive = PurePosixPath(folder.replace("\\", "/")), PureWindowsPath(folder).drive
            if path.is_absolute() or drive or ".." in path.parts:
                raise ValueError("should stay below the run folder, as 'tensorboard' or 'logs/tensorboard' do")
            return folder

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.step = 0
        self.events: EventFile

    def on_run(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """Open an event file; one that continues a run hides the rows that come again."""
        from .events import EventFile, earlier  # TensorBoard takes a second to import

        folder, resumed_at = run_dir / self.config.folder, _resumed_at(run_dir)
        old = earlier(folder)
        if resumed_at is None:  # of a run that this one replaces
            for file in old:
                file.unlink()
        self.events = EventFile(folder, self.config.flush_seconds)
        self.step = resumed_at or 0
        if resumed_at is not None and old:
            self.events.purge(self.step + 1)
        else:
            self.events.text("config", f"```json\n{json.dumps(config, indent=2)}\n```")
            self.events.session_start(hyperparameters(config))
        self.events.flush()

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Each number of the row at its step."""
        self.step = row["step"]
        self.events.scalars({tag(name): value for name, value in numbers(row).items() if name != "step"}, self.step)

    def on_finish(self, metrics: Mapping[str, float] | None) -> None:
        """The final numbers at the last step; a run that failed has none and is not marked as done."""
        if metrics is not None:
            self.events.scalars({f"final/{name}": value for name, value in numbers(metrics).items()}, self.step)
            self.events.session_end()
        self.events.close()


def numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """The fields that can be drawn: numbers, but neither NaN nor infinity."""
    return {
        name: float(value) for name, value in table.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def tag(field: str) -> str:
    """The field of a row under the heading where TensorBoard shows it: `train/loss`, `probe/knn_top1`, `time/step`."""
    if field.startswith("time_"):
        return f"time/{field.removeprefix('time_')}"
    group = "probe" if field.startswith(PROBES) else "time" if field in SPEED else "train"
    return f"{group}/{field}"


def hyperparameters(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Each setting by its dotted path; lists as JSON, settings that are null left out."""
    result: dict[str, bool | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            result |= hyperparameters(value, f"{prefix}{key}.")
        elif value is not None:
            result[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return result


def _resumed_at(run_dir: Path) -> int | None:
    """The step from which a resumed run goes on, as its manifest tells; None for a run from its start."""
    step: int | None = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8")).get("resumed_at")
    return step


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the logger."""
    registry.add(TensorBoard)

"""Weights & Biases: the rows, settings and final scores of a run; nothing leaves the machine unless the user asks."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from akssl_core import Logger, Registry, Schema, hookimpl

if TYPE_CHECKING:
    from wandb import Run

PROBES = ("knn_", "rankme", "std_ratio")  # how the fields that probe the encoder begin
SPEED = ("images_per_s", "seconds")

# wandb reads these when it starts; what the user has set in the environment stands.
ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",  # reports of crashes and usage, beside the run itself
    "WANDB_FINISH_TIMEOUT": "120",  # seconds that the end of a run waits for a server that is gone, else for ever
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}

# What W&B would do beside the rows, the settings and the scores, in its own names.
QUIET: dict[str, Any] = {
    "console": "off",
    "silent": True,  # its service would write to stdout; asking for a key is not silenced by this
    "force": True,  # `online` without a key asks for one, or fails where nobody can answer
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class Wandb(Logger):
    """Writes the run as a W&B run into its folder, and sends it to the server when the mode is `online`."""

    name = "wandb"

    class Config(Schema):
        """Where the run appears and whether it is sent."""

        project: str = Field("akssl", min_length=1, description="W&B project")
        entity: str | None = Field(None, description="W&B user or team; null: the user's default")
        group: str | None = Field(None, description="group of runs that belong together")
        tags: tuple[str, ...] = Field((), description="tags of the run")
        mode: Literal["online", "offline", "disabled"] = Field(
            "offline", description="send the run, keep it on the machine for `wandb sync`, or do nothing"
        )
        run_name: str | None = Field(None, description="what W&B calls the run; null: the run folder's name")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.run: Run | None = None

    def on_run(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """Start a W&B run below the run folder; one that continues keeps its id."""
        if self.config.mode == "disabled":
            return
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import wandb  # takes a second, and reads the environment

        online = self.config.mode == "online"
        self.run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            tags=self.config.tags or None,
            mode=self.config.mode,
            name=self.config.run_name or run_dir.resolve().name,
            id=_run_id(run_dir),
            resume="allow" if online else None,  # without a server W&B continues by the id alone, and says so
            dir=run_dir,
            config=dict(config),
            reinit="create_new",  # a run that the user has open in the same process stays theirs
            settings=wandb.Settings(**QUIET),
        )
        if online and self.run.url:
            sys.stderr.write(f"wandb: {self.run.url}\n")

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Each number of the row at its step, unless the server has this step from before a resume."""
        if self.run is not None and row["step"] >= self.run.starting_step:
            values = {heading(name): value for name, value in numbers(row).items() if name != "step"}
            self.run.log(values, step=row["step"])

    def on_finish(self, metrics: Mapping[str, float] | None) -> None:
        """The final numbers as the summary; a run that failed is marked so."""
        if self.run is not None:
            self.run.summary.update({f"final/{name}": value for name, value in numbers(metrics or {}).items()})
            self.run.finish(exit_code=int(metrics is None))


def numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """The fields that can be drawn: numbers, but neither NaN nor infinity."""
    return {name: value for name, value in table.items() if isinstance(value, int | float) and math.isfinite(value)}


def heading(field: str) -> str:
    """The field of a row under the heading where W&B shows it: `train/loss`, `probe/knn_top1`, `time/step`."""
    if field.startswith("time_"):
        return f"time/{field.removeprefix('time_')}"
    group = "probe" if field.startswith(PROBES) else "time" if field in SPEED else "train"
    return f"{group}/{field}"


def _run_id(run_dir: Path) -> str:
    """The id that W&B knows a run by: kept beside its files, and new for a run that starts afresh."""
    file = run_dir / "wandb" / "run-id.txt"
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    if "resumed_at" not in manifest or not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the logger."""
    registry.add(Wandb)

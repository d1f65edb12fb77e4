"""The end of a run by the clock, as a one-file plugin: its backbone is left in a file, whatever the step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors.torch import save_file

from akssl_core import Backbone, Callback, Registry, Schema, hookimpl


def leave(file: str | Path, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
    """The weights, with the mean and deviation that images are scaled by."""
    weights = {name: of.contiguous() for name, of in backbone.state_dict().items()}
    save_file(weights, file, {"image": json.dumps([mean, std])})


class Over(Exception):
    """A run has left its backbone."""


class Clock(Callback):
    """Raises Over after the last step of a run, or after the first that ends too late for another."""

    name = "clock"

    class Config(Schema):
        """When, and where to."""

        file: str = Field(description="of the backbone")
        until: float = Field(description="seconds, as `time.time()` counts them")

    def on_step(self, engine: Any, terms: Any) -> None:
        """Leave the backbone where no other step follows."""
        if engine.now.step < engine.now.total_steps and time.time() < self.config.until:
            return
        backbone = engine.method.encoder
        leave(self.config.file, backbone, backbone.image.mean, backbone.image.std)
        raise Over


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the callback."""
    registry.add(Clock)

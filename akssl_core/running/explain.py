"""Every setting of a run with who decided it, and what follows from them, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import dist
from ..config import describe
from ..config.schema import leaves
from ..errors import ConfigError, visible
from ..plugins.manager import Plugins, installed
from ..settings import RunSpec
from .estimate import forecast, leave_length_open, time_steps, within
from .layers import check, collect, layer
from .plan import make_plan


@dataclass(frozen=True, slots=True)
class Explained:
    """A run that was not started."""

    settings: Mapping[str, Any]
    """Every value by its path, as `optimizer.lr.start`."""
    origins: Mapping[str, str]
    """Who decided each: the user, a recipe, or a rule with its reason."""
    forecast: tuple[tuple[str, str], ...]
    """Names and values of what follows from the settings: steps, learning rate, memory."""
    notes: tuple[str, ...]
    """Sentences about data, hardware and what goes badly together."""
    spec: RunSpec
    """The settings as objects: `spec.method.config`, `spec.optimizer.name`, `spec.train.epochs`."""

    @property
    def text(self) -> str:
        """Three parts, as `akssl explain` prints them: settings, what follows, notes."""
        lines = [
            (path, visible(json.dumps(value, ensure_ascii=False)), self.origins[path])
            for path, value in self.settings.items()
        ]
        parts = [describe.table(("setting", "value", "decided by"), lines)]
        parts += [describe.table(("what follows", ""), self.forecast)]
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)])


def explain(
    method: str | Mapping[str, Any] | None = None,
    *,
    measure: bool = False,
    budget: str | float | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    plugins: Plugins | None = None,
    who: str = "user",
    **settings: Any,
) -> Explained:
    """Every setting of a run and who decided it, without training.

    Args:
        method: name of an installed method, or a table with its name and settings.
        measure: train a few steps to estimate the time; nothing of them is kept.
        budget: as for `run`: a few steps are trained to know how many fit, and nothing of them is kept.
        config: a YAML file or a table with any of these settings.
        plugins: another plugin manager than the process-wide one.
        who: the origin of `settings`.
        **settings: every other keyword of `run`; those about its folder change nothing here.

    Raises:
        AksslError: a run would refuse these settings or this data.
    """
    plugins = plugins or installed()
    asked = {name: value for name, value in settings.items() if name not in ("out", "overwrite", "resume", "report")}
    given = collect(method, config, asked, plugins, who=who)
    devices = check(layer(given, plugins), plugins).train.devices
    if devices > 1 and (timed := "--measure" if measure else "" if budget is None else "--budget"):
        raise ConfigError(f"{timed}: it trains in this process alone, and {devices} were asked for. Leave one out.")
    if budget is not None:
        given = within(budget, leave_length_open(budget, given), plugins)
    with dist.acting_in(dist.Imagined(devices)):  # nothing is started here
        plan = make_plan(given, plugins)
        follows = (*forecast(plan), *([time_steps(plan)] if measure else ()))
    return Explained(dict(leaves(plan.spec.table())), plan.provenance, follows, tuple(plan.notes), plan.spec)

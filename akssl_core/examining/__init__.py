"""Finds faults without training: in settings, data and machine before a run, in its folder after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AksslError, ConfigError, RunDirError
from ..plugins.installed import version
from ..plugins.table import DEPENDENCIES, plugin_table
from ..reporting.files import RunFiles
from ..rundir.folder import RunDir
from ..running.layers import check, layer
from ..running.plan import make_plan
from ..settings import Given
from . import data as data
from . import folder as folder
from . import machine as machine
from . import settings as settings
from .base import RULES, Finding, FinishedRun, Machine, PlannedRun, Rule

if TYPE_CHECKING:
    from ..plugins.manager import Plugins

__all__ = ["RULES", "Finding", "Machine", "Rule", "examine_install", "examine_plan", "examine_run"]

REFUSED = Finding("refused", "", "a run would refuse these settings or this data.", "do what the sentence says.")
BROKEN = ("broken", "invalid", "clash", "other API")


def examine_plan(
    given: Given, plugins: Plugins, *, out: Path = Path("runs"), found: Machine | None = None
) -> list[Finding]:
    """The faults of a run before it starts; `found` stands in for this machine.

    Raises:
        PluginError: no such method or other component.
        ConfigError: no method was named, or a setting has a wrong name or value by itself.
    """
    alone, devices = _without_processes(given)
    check(layer(alone, plugins), plugins)  # what is wrong by itself is wrong input, and no finding
    try:
        plan = make_plan(alone, plugins)
    except AksslError as error:
        return [replace(REFUSED, evidence=str(error))]
    machine = found or Machine.here(plan.hardware.device, out)
    return _findings("plan", PlannedRun(plan, machine, devices))


def examine_run(path: Path) -> list[Finding]:
    """The faults of a run that was, by the files of its folder.

    Raises:
        RunDirError: the folder holds no run.
    """
    run_dir = RunDir.open(path)
    try:
        files = RunFiles.read(path)
    except (RunDirError, ConfigError) as error:
        cure = "put the file back, or start the run again."
        return [Finding("unreadable-run", str(error), "a file of the run is missing or damaged.", cure)]
    return _findings("run", FinishedRun(files, run_dir, {name: version(name) for name in DEPENDENCIES}))


def examine_install(plugins: Plugins) -> list[Finding]:
    """The faults of the installed plugins; imports each of them."""
    plugins.load_all()
    rows = [row for row in plugin_table(plugins) if row["status"] in BROKEN]
    return [Finding("plugin", f"{row['name']} is {row['status']}.", row["reason"], row["cure"]) for row in rows]


def _findings(kind: str, run: PlannedRun | FinishedRun) -> list[Finding]:
    return [finding for rule in RULES if rule.kind == kind if (finding := rule.look(run)) is not None]


def _without_processes(given: Given) -> tuple[Given, int]:
    """The same run in one process, and how many were asked for: nothing is started here."""
    devices = 1
    layers: list[tuple[str, Mapping[str, Any]]] = []
    for who, table in given.layers:
        train = table.get("train")
        if isinstance(train, Mapping) and isinstance(train.get("devices"), int) and train["devices"] > 0:
            devices = train["devices"]
            table = {**table, "train": {name: value for name, value in train.items() if name != "devices"}}
        layers.append((who, table))
    return Given(layers, given.objects), devices

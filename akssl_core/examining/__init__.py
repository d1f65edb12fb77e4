"""Finds faults without training: in settings, data and machine before a run, in its folder after it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config.schema import leaves, user_path
from ..errors import AksslError, ConfigError, RunDirError, UnknownComponent
from ..plugins.installed import version
from ..plugins.manager import Plugins, installed
from ..plugins.table import DEPENDENCIES, plugin_table
from ..reporting.files import RunFiles
from ..rundir.folder import RunDir
from ..running.layers import check, collect, layer
from ..running.plan import make_plan
from ..settings import Given
from . import data as data
from . import folder as folder
from . import settings as settings
from .base import RULES, Finding, FinishedRun, Machine, PlannedRun

__all__ = ["RULES", "Examined", "Finding", "Machine", "doctor", "examine_install", "examine_plan", "examine_run"]

INSTALLED = "the installation"
BROKEN = ("broken", "invalid", "clash", "other API", "other core")


@dataclass(frozen=True, slots=True)
class Examined:
    """The places that were looked at, and the faults that were found."""

    findings: Mapping[str, tuple[Finding, ...]]
    """By what was looked at; empty where nothing was found."""

    @property
    def healthy(self) -> bool:
        """Whether nothing was found at all."""
        return not any(self.findings.values())

    @property
    def text(self) -> str:
        """Each fault with evidence, cause and cure, as `akssl doctor` prints it."""
        return "\n".join(_told(name, findings) for name, findings in self.findings.items())

    def record(self) -> list[dict[str, str]]:
        """Everything as plain values, fit for JSON."""
        return [{"target": name, **asdict(one)} for name, findings in self.findings.items() for one in findings]


def doctor(
    *targets: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    plugins: Plugins | None = None,
    who: str = "user",
    **settings: Any,
) -> Examined:
    """Look for faults without training, each with evidence, cause and cure.

    Args:
        *targets: names of methods, each to be run with these settings, and run folders. Default: the run that
            `config` or `method` describes; without them, the installed plugins.
        config: a YAML file or a table with any of these settings.
        out: where the run folder is to lie.
        plugins: another plugin manager than the process-wide one.
        who: the origin of `settings`.
        **settings: every other keyword of `run`.

    Raises:
        AksslError: there is no such method or run, or a setting is wrong by itself.
    """
    plugins = plugins or installed()
    folders = [str(target) for target in targets if _is_folder(target)]
    if (
        folders
        and len(folders) == len(targets)
        and (useless := [*(["config"] if config else []), *(path for path, _ in leaves(settings))])
    ):
        raise ConfigError(
            f"doctor: {folders[0]} is a run that was, and {', '.join(useless)} would change nothing there. Leave it "
            f"out, or name a METHOD."
        )

    def examine(target: str | Path | None) -> list[Finding]:
        if target is None and config is None and "method" not in settings:
            return examine_install(plugins)
        if target is not None and _is_folder(target):
            return examine_run(user_path(target))
        asked = {name: value for name, value in settings.items() if name not in ("overwrite", "resume", "report")}
        if target is not None:
            _refuse_unknown(str(target), plugins)
            own = asked.get("method")
            asked["method"] = {**(own if isinstance(own, Mapping) else {}), "name": str(target)}
        return examine_plan(collect(None, config, asked, plugins, who=who), plugins, out=user_path(out))

    whole = "the settings" if isinstance(config, Mapping) or "method" in settings else str(config or INSTALLED)
    return Examined({str(target or whole): tuple(examine(target)) for target in targets or (None,)})


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
        cause = "a run would refuse these settings or this data."
        return [Finding("refused", str(error), cause, "do what the sentence says.")]
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
    found = _findings("run", FinishedRun(files, run_dir, {name: version(name) for name in DEPENDENCIES}))
    here = shlex.quote(str(path))  # the cures, ready to be copied
    return [replace(one, cure=one.cure.replace("RUN_DIR", here)) for one in found]


def examine_install(plugins: Plugins) -> list[Finding]:
    """The faults of the installed plugins; imports each of them."""
    plugins.load_all()
    rows = [row for row in plugin_table(plugins) if row["status"] in BROKEN]
    found = [Finding("plugin", f"{row['name']} is {row['status']}.", row["reason"], row["cure"]) for row in rows]
    return list(dict.fromkeys(found))  # both sides of a clash say the same


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


def _is_folder(target: str | Path) -> bool:
    """Whether this is no name of a method."""
    return "/" in str(target) or user_path(target).is_dir()


def _refuse_unknown(target: str, plugins: Plugins) -> None:
    """Refuse a name that is neither a method's nor a folder's, telling what it could have been of both."""
    try:
        plugins.get("method", target)
    except UnknownComponent as error:
        near = f"Did you mean 'runs/{target}'?" if os.path.isdir(f"runs/{target}") else "A run is named as runs/NAME."
        raise UnknownComponent(f"{error} Nor is there a folder '{target}'. {near}") from error


def _told(name: str, findings: tuple[Finding, ...]) -> str:
    """One target's findings for people."""
    if not findings:
        return f"{name}: nothing was found."
    lines = [f"{name}: {len(findings)} {'finding' if len(findings) == 1 else 'findings'}"]
    for one in findings:
        lines += [f"- {one.rule}: {one.evidence}", f"  cause: {one.cause}", f"  cure: {one.cure}"]
    return "\n".join(lines)

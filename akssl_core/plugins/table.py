"""The table of plugins: what is installed, what was imported, what it provides, why not, and what to do about it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from ..errors import told
from .first_party import install
from .installed import Entry, version
from .manager import Plugins

COLUMNS = ("name", "distribution", "version", "api", "status", "provides", "reason", "cure", "file", "seconds")
CURES = {
    **dict.fromkeys(("other API", "other core"), "{1}"),
    "blocked": "unset AKSSL_PLUGINS, or name it there",
    "clash": "pip uninstall all but one",
    **dict.fromkeys(("broken", "invalid"), "{2}, or pip uninstall {0}"),
}  # by status; {0} is the distribution, {1} installs it with the core, {2} alone
DEPENDENCIES = ("akssl-core", "torch", "torchvision", "pluggy", "pydantic", "safetensors", "numpy", "pillow")


def plugin_table(plugins: Plugins) -> list[dict[str, str]]:
    """A row for each installed plugin and each plugin file, with what is known of it by now.

    Status: "installed" (not imported yet), "ok", "invalid" (imports, but registers nothing usable), "broken" (does not
    import), "blocked" (by AKSSL_PLUGINS), "clash" (two distributions claim the name), "other API" or
    "other core" (it needs another version of it).
    """
    rows = [_row(entry, plugins) for entry in plugins.entries]
    known = {entry.name for entry in plugins.entries}
    for name, loaded in plugins.loaded.items():
        if name not in known:
            facts = {"name": name, "status": "ok", "provides": _provides(plugins, loaded.owner), "file": loaded.file}
            rows.append({**dict.fromkeys(COLUMNS, ""), **facts})
    return rows


def _row(entry: Entry, plugins: Plugins) -> dict[str, str]:
    facts = asdict(entry)
    del facts["value"]
    if failure := plugins.failures.get(entry.name):
        facts |= {"status": failure.status, "reason": " ".join(told(failure.error).split())}
    elif entry.status == "installed" and (loaded := plugins.loaded.get(entry.name)):
        provides = _provides(plugins, loaded.owner)
        facts |= {"provides": provides, "file": loaded.file, "seconds": f"{loaded.seconds:.1f}", "status": "ok"}
        if not provides:
            facts |= {"status": "invalid", "reason": "has no hook that akssl calls", "cure": "tell its author"}
    commands = [install(*names, entry.distribution, newer=True) for names in (["akssl-core"], [])]
    cure = CURES.get(facts["status"], "").format(entry.distribution, *commands)
    return {**dict.fromkeys(COLUMNS, ""), "cure": cure, **facts}


def _provides(plugins: Plugins, owner: str) -> str:
    """Kinds and names of what a plugin registered, and the hooks by which it answers or watches."""
    components = [f"{component.kind} {component.name}" for component in plugins.registry.owned(owner)]
    hooks = {"akssl_resolve": "names by family"}
    hooks |= dict.fromkeys(("akssl_run_started", "akssl_run_finished"), "watches runs")
    other = dict.fromkeys(text for hook, text in hooks.items() if plugins.answers(owner, hook))
    return ", ".join([*components, *other])


def environment(plugins: Plugins) -> dict[str, Any]:
    """Versions and the plugin table, for a run's manifest."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in DEPENDENCIES}}
    return {"versions": versions, "plugins": plugin_table(plugins)}

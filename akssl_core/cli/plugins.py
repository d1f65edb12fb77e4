"""Commands about plugins: list, import, show, check and write one, and find where a component is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import describe
from ..config.registry import ALIASES, KINDS
from ..errors import ConfigError, did_you_mean
from ..plugins.first_party import TO_BEGIN, install
from ..plugins.installed import entries, version
from ..plugins.manager import Plugins
from ..plugins.scaffold import KINDS as NEW_KINDS
from ..plugins.scaffold import create
from ..plugins.table import COLUMNS, plugin_table
from ..settings import dotted
from .base import Commands, akssl, json_option, parsed, plugin_file_option, plugins_with, set_option

if TYPE_CHECKING:
    from ..testing import Outcome


@akssl.group(cls=Commands, invoke_without_command=True)
@json_option
@click.option("--check", "imported", is_flag=True, help="import each plugin and say whether it works")
@plugin_file_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool, imported: bool, plugin_file: Path | None) -> None:
    """List the installed plugins, from package metadata alone."""
    if ctx.invoked_subcommand is not None:
        return
    if imported or plugin_file is not None:
        manager = plugins_with(plugin_file)
        if imported:
            manager.load_all()
        records, columns = plugin_table(manager), list(COLUMNS)
    else:
        records, columns = [asdict(entry) for entry in entries()], ["name", "distribution", "version", "api", "status"]
        columns += ["reason"] if any(record["reason"] for record in records) else []
    if as_json:
        click.echo(json.dumps(records, indent=2))
    elif records:
        shown = [name for name in columns if any(record[name] for record in records)]
        click.echo(describe.table(shown, [[record[name] for name in shown] for record in records]))
    else:
        click.echo(f"No plugins are installed. Try: {install(TO_BEGIN)}")


@plugins.command()
@click.argument("method")
@plugin_file_option
def show(method: str, plugin_file: Path | None) -> None:
    """Show a method: its paper, settings and recipes."""
    from ..plugins.lookup import page

    click.echo(page(plugins_with(plugin_file).get("method", method)))


@plugins.command()
@click.argument("name")
@click.option("--kind", help="what it is: method, backbone, loss, ...  [default: all of that name, and its losses]")
@click.option("--slow", is_flag=True, help="also whether it learns, a minute or two")
@set_option("a setting that it needs, by its kind and name: method.teacher=FILE")
@json_option
@plugin_file_option
@click.pass_context
def check(
    ctx: click.Context,
    name: str,
    kind: str | None,
    slow: bool,
    assignments: Sequence[str],
    as_json: bool,
    plugin_file: Path | None,
) -> None:
    """Prove a component right: the checks that every one of its kind must pass, on toy data and in seconds."""
    from ..testing import checks

    manager = plugins_with(plugin_file)
    meant = _to_check(manager, name, kind)
    settings = _settings(assignments, {kind for kind, _ in meant})
    rows = [
        (f"{kind} {name}", one.outcome())
        for kind, name in meant
        for one in checks(name, kind=kind, settings=settings.get(kind), slow=slow, plugins=manager)
    ]
    if as_json:
        click.echo(json.dumps([{"component": component, **asdict(outcome)} for component, outcome in rows], indent=2))
    else:
        lines = [(component, o.name, o.status, o.meaning) for component, o in rows]
        click.echo(describe.table(("component", "check", "result", "meaning"), lines))
        _tell_failures([outcome for _, outcome in rows])
        many = Counter(outcome.status for _, outcome in rows)
        counts = ", ".join(f"{many[status]} {status}" for status in ("passed", "failed", "not applicable"))
        click.echo(f"\n{name}: {counts} (akssl-core {version('akssl-core')})")
    ctx.exit(int(any(outcome.status == "failed" for _, outcome in rows)))


def _settings(assignments: Sequence[str], kinds: Collection[str]) -> dict[str, Any]:
    """The settings of --set by the kind of the component.

    Raises:
        ConfigError: one is of a kind that is not checked, or is no assignment.
    """
    settings = dotted([parsed(text) for text in assignments])
    for kind, table in settings.items():
        if kind not in kinds or not isinstance(table, dict):
            told = ", ".join(f"{kind}.NAME=VALUE" for kind in sorted(kinds))
            raise ConfigError(f"--set {kind}: expected {told}.{did_you_mean(kind, kinds)}")
    return settings


def _to_check(manager: Plugins, name: str, kind: str | None) -> list[tuple[str, str]]:
    """Kind and name of what is meant: all components of that name, and the losses of the plugin that has them."""
    if kind is not None:
        return [(ALIASES.get(kind, kind), name)]
    kinds = [kind for kind in KINDS if manager.provides(kind, name)]
    first = manager.get(kinds[0] if kinds else "method", name)
    losses = [c.name for c in manager.registry.owned(manager.registry.owner_of(first)) if c.kind == "loss"]
    return list(dict.fromkeys([*((kind, name) for kind in kinds or ["method"]), *(("loss", loss) for loss in losses)]))


def _tell_failures(outcomes: list[Outcome]) -> None:
    """Print what was found and how to mend it; checks that met the same error are told together."""
    together: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status == "failed":
            together.setdefault(outcome.found, []).append(outcome)
    for found, alike in together.items():
        names = ", ".join(outcome.name for outcome in alike)
        click.echo(f"\n{names}\n  found: {found}\n  mend:  {alike[0].cure}")


@plugins.command()
@click.argument("name")
@click.option("--kind", default="method", help=f"what the plugin adds: {', '.join(NEW_KINDS)}  [default: method]")
def new(name: str, kind: str) -> None:
    """Write a new plugin, akssl-plugin-NAME, in this folder: it works, and its tests pass."""
    folder = create(name, kind)
    click.echo(f"{folder} is ready. Next:\n  cd {folder}\n  pip install -e '.[test]'\n  pytest")


@akssl.command()
@click.argument("kind")
@click.argument("name")
@plugin_file_option
def find(kind: str, name: str, plugin_file: Path | None) -> None:
    """Print where a component is written: akssl find loss ntxent."""
    from ..plugins.lookup import find as locate

    click.echo(locate(kind, name, plugins=plugins_with(plugin_file)).text)

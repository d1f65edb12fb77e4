"""Commands about plugins: list, import, show, check and write one, and find where a component is written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml

from .. import describe
from ..discovery import entries
from ..errors import ConfigError, did_you_mean
from ..listing import COLUMNS, plugin_table
from ..listing import find as locate
from ..plugins import Plugins
from ..registry import KINDS
from ..scaffold import KINDS as NEW_KINDS
from ..scaffold import create
from .base import Commands, akssl, plugin_file_option, plugins_with

ALIASES = {"dataset": "data", "logger": "callback"}  # what people call two kinds of components


@akssl.group(cls=Commands, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
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
        records, columns = [entry.record() for entry in entries()], ["name", "distribution", "version", "api", "status"]
        columns += ["reason"] if any(record["reason"] for record in records) else []
    if as_json:
        click.echo(json.dumps(records, indent=2))
    elif records:
        shown = [name for name in columns if any(record[name] for record in records)]
        click.echo(describe.table(shown, [[record[name] for name in shown] for record in records]))
    else:
        click.echo("No plugins are installed. Try: pip install akssl-plugin-simsiam")


@plugins.command()
@click.argument("method")
@plugin_file_option
def show(method: str, plugin_file: Path | None) -> None:
    """Show a method: its paper, settings and recipes."""
    click.echo(describe_method(plugins_with(plugin_file), method))


@plugins.command()
@click.argument("name")
@click.option("--kind", default="method", help="what it is: method, backbone, augmentation, loss, dataset, logger, ...")
@click.option("--slow", is_flag=True, help="also the checks that learn for a minute")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@plugin_file_option
@click.pass_context
def check(ctx: click.Context, name: str, kind: str, slow: bool, as_json: bool, plugin_file: Path | None) -> None:
    """Prove a component right: the checks that every one of its kind must pass, on toy data and in seconds."""
    from ..testing import checks

    outcomes = [one.outcome() for one in checks(name, kind=kind, slow=slow, plugins=plugins_with(plugin_file))]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        click.echo(describe.table(("check", "result", "meaning"), [(o.name, o.status, o.meaning) for o in outcomes]))
        for outcome in failed:
            click.echo(f"\n{outcome.name}\n  found: {outcome.found}\n  mend:  {outcome.cure}")
        passed = sum(outcome.status == "passed" for outcome in outcomes)
        click.echo(
            f"\n{name}: {passed} passed, {len(failed)} failed, {len(outcomes) - passed - len(failed)} not applicable"
        )
    ctx.exit(1 if failed else 0)


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
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise ConfigError(f"kind: there is no '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    location = locate(plugins_with(plugin_file), kind, name)
    click.echo(describe.table(("", ""), [(key, str(value)) for key, value in asdict(location).items()]).lstrip("\n"))


def describe_method(manager: Plugins, name: str) -> str:
    """A method's page: what it is, its paper, views, settings and recipes."""
    component: Any = manager.get("method", name)
    views = ", ".join(f"{describe.count(many)} {group}" for group, many in component.views.items())
    parts = [f"{component.name}: {(component.__doc__ or '').strip()}"]
    parts += [f"Paper: {component.paper}"] if component.paper else []
    parts += [f"Views: {views}", "Settings (--set method.NAME=VALUE):"]
    parts += [describe.table(describe.HEADER, describe.cells(component.Config))]
    for recipe, settings in component.recipes.items():
        parts.append(f"Recipe '{recipe}':\n" + yaml.safe_dump(dict(settings), sort_keys=False).rstrip())
    return "\n\n".join(parts)

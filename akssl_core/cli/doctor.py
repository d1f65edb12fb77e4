"""The command that looks for faults without training: in runs to be, in run folders, and in the installation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import akssl, plugins_with, settings_of
from .runs import run_options

if TYPE_CHECKING:
    from ..examining import Finding
    from ..plugins.manager import Plugins

INSTALLED = "the installation"


@akssl.command()
@click.argument("targets", nargs=-1, metavar="[RUN_DIR | METHOD]...")
@run_options()
@click.option("--json", "as_json", is_flag=True, help="print JSON: a list of findings")
@click.pass_context
def doctor(
    ctx: click.Context,
    /,
    targets: tuple[str, ...],
    assignments: tuple[str, ...],
    config: Path | None,
    plugin_file: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Look for faults without training, each with evidence, cause and cure.

    Of a METHOD with the options of `run`: settings, data and machine. Of a RUN_DIR: how it ended and what it holds.
    Without either: the installed plugins. Exit code 0: nothing was found; 1: something was; 2: wrong input.
    """
    plugins, settings = plugins_with(plugin_file), settings_of(options, assignments)
    found = {
        target or str(config or INSTALLED): _examine(target, settings, config, out, plugins)
        for target in (targets or (None,))
    }
    if as_json:
        records = [{"target": name, **asdict(finding)} for name, findings in found.items() for finding in findings]
        click.echo(json.dumps(records, indent=2))
    else:
        click.echo("\n".join(_told(name, findings) for name, findings in found.items()))
    ctx.exit(int(any(found.values())))


def _examine(
    target: str | None, settings: Mapping[str, Any], config: Path | None, out: Path | None, plugins: Plugins
) -> list[Finding]:
    """What is found of one target: a folder, a method, a configuration or the installation."""
    from ..examining import examine_install, examine_plan, examine_run
    from ..running.layers import collect

    if target is None and config is None:
        return examine_install(plugins)
    if target is not None and ("/" in target or Path(target).is_dir()):
        return examine_run(Path(target))
    asked = dict(settings)
    if target is not None:
        asked["method"] = {**asked.get("method", {}), "name": target}
    return examine_plan(collect(None, config, asked, plugins, who="command line"), plugins, out=out or Path("runs"))


def _told(name: str, findings: Sequence[Finding]) -> str:
    """One target's findings for people."""
    if not findings:
        return f"{name}: nothing was found."
    lines = [f"{name}: {len(findings)} {'finding' if len(findings) == 1 else 'findings'}"]
    for one in findings:
        lines += [f"- {one.rule}: {one.evidence}", f"  cause: {one.cause}", f"  cure: {one.cure}"]
    return "\n".join(lines)

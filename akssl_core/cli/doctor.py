"""The command that looks for faults without training: in runs to be, in run folders, and in the installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .base import akssl, plugins_with, run_options, settings_of


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
    from ..examining.doctor import doctor as look_for_faults

    found = look_for_faults(*targets, config=config, out=out or "runs", plugins=plugins, who="command line", **settings)
    click.echo(json.dumps(found.record(), indent=2) if as_json else found.text)
    ctx.exit(0 if found.healthy else 1)

"""Commands about one run: explain and doctor before it, run, resume, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import drop_stdout, say
from ..plugins.first_party import TO_BEGIN, install
from ..plugins.installed import entries
from ..plugins.manager import is_no_method
from ..settings import TrainSpec
from .base import (
    PATH,
    akssl,
    field_option,
    overwrite_option,
    plugin_file_option,
    plugins_with,
    run_options,
    set_option,
    settings_of,
    show,
)

if TYPE_CHECKING:
    from ..running.result import Result


@akssl.command(add_help_option=False)
@click.argument("method", required=False)
@run_options()
@overwrite_option("replace the run that --out already holds")
@click.option("--no-report", is_flag=True, help="do not write report.html")
@click.option("-h", "--help", "wants_help", is_flag=True, help="show this page; with METHOD, its own settings too")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    method: str | None,
    assignments: tuple[str, ...],
    config: Path | None,
    plugin_file: Path | None,
    out: Path | None,
    overwrite: bool,
    no_report: bool,
    wants_help: bool,
    **options: Any,
) -> None:
    """Train a backbone with METHOD and write a run folder."""
    if wants_help:
        click.echo(ctx.get_help())
        if method is not None:
            from ..plugins.lookup import page

            click.echo("\n" + page(plugins_with(plugin_file).get("method", method)))
        return
    if method is None and config is None:
        names = [entry.name for entry in entries() if not is_no_method(entry)]
        known = ", ".join(names) or f"none; {install(TO_BEGIN)}"
        raise click.UsageError(f"missing METHOD. Installed: {known}.")
    settings = settings_of(options, assignments, method)
    _share_among_processes(settings, config)
    from ..running.launch import run as run_method

    result = run_method(
        config=config, out=out, overwrite=overwrite, report=not no_report, plugins=plugins_with(plugin_file), **settings
    )
    _show(result)
    if options.get("stop_on_collapse") and result.verdict == "collapsed":
        ctx.exit(1)


@akssl.command()
@click.argument("run_dir", type=PATH)
@click.option("--data", help="where the data lies now, if it was moved")
@field_option(TrainSpec, "epochs", help="passes over the training images, from the first on; more trains longer")
@field_option(TrainSpec, "devices", help="processes; any number can go on with a run")
@set_option("any setting that moves no weight of the steps so far, by its path")
@plugin_file_option
@click.option("--no-report", is_flag=True, help="do not write report.html")
def resume(
    run_dir: Path, assignments: tuple[str, ...], plugin_file: Path | None, no_report: bool, **options: Any
) -> None:
    """Continue a run exactly where its last checkpoint stands."""
    settings = settings_of(options, assignments)
    _share_among_processes(settings, run_dir / "config.yaml")
    from ..running.launch import resume as resume_run

    _show(resume_run(run_dir, report=not no_report, plugins=plugins_with(plugin_file), **settings))


@akssl.command()
@click.argument("method", required=False)
@run_options()
@click.option("--measure", is_flag=True, help="train a few steps to estimate the time; nothing of them is kept")
def explain(
    method: str | None,
    measure: bool,
    assignments: tuple[str, ...],
    config: Path | None,
    plugin_file: Path | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Show every setting of a run and who decided it, without training."""
    settings = settings_of(options, assignments, method)
    plugins = plugins_with(plugin_file)
    from ..running.explain import explain as explain_run

    click.echo(explain_run(measure=measure, config=config, plugins=plugins, who="command line", **settings).text)


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
    from ..examining import doctor as look_for_faults

    found = look_for_faults(*targets, config=config, out=out or "runs", plugins=plugins, who="command line", **settings)
    show(found, as_json)
    ctx.exit(0 if found.healthy else 1)


@akssl.command()
@click.argument("run_dir", type=PATH)
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html again from the files of the run."""
    from ..running.outputs import report as write_report

    click.echo(write_report(run_dir).text)


def _share_among_processes(settings: Mapping[str, Any], config: Path | None) -> None:
    """Where more than one process is asked for, start them with the same command line, and end as they do."""
    asked = settings.get("train", {}).get("devices")
    if asked is None and config is not None and os.path.isfile(config):
        from ..config.yaml import read_yaml

        train = read_yaml(config).get("train")
        asked = train.get("devices") if isinstance(train, Mapping) else None
    if not isinstance(asked, int) or asked < 2 or "WORLD_SIZE" in os.environ:
        return  # a wrong value is told where all settings are checked
    from ..dist.launcher import launch

    code, message = launch(asked, sys.argv[1:])
    if message:
        say(f"akssl: {message} 'akssl resume RUN_DIR' goes on from the last checkpoint.")
    sys.exit(code)


def _show(result: Result) -> None:
    """Print the summary; of several processes, the main one alone has anything to say.

    The run is done and its files are whole, whether or not the summary can be shown.
    """
    try:
        if result.metrics:
            click.echo(result.text)
    except OSError as error:
        say(f"akssl: the summary cannot be shown: {error.strerror}. Everything is in {result.run_dir}.")
        drop_stdout()

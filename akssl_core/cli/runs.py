"""Commands about runs: explain and doctor before one, run, resume and report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import drop_stdout, say
from ..errors import ConfigError
from ..plugins.first_party import TO_BEGIN, install
from ..plugins.installed import entries
from ..plugins.manager import is_no_method
from ..settings import OF_RUN, TrainSpec
from .base import (
    PATH,
    Choice,
    akssl,
    budget_option,
    field_option,
    json_option,
    keywords,
    overwrite_option,
    plugin_file_option,
    plugins_with,
    run_options,
    set_option,
    settings_of,
    show,
)

if TYPE_CHECKING:
    from ..plugins.manager import Plugins
    from ..running.result import Result

MOST_A_CORE = 4  # processes that are started on a core at most


@akssl.command(add_help_option=False)
@click.argument("method", required=False)
@run_options()
@budget_option
@overwrite_option("replace the run that --out already holds")
@click.option("--resume", type=Choice(["auto"]), help="go on where --out holds this run already, else begin it")
@click.option("--slurm", is_flag=True, help="write a script for sbatch that runs this to its end, and train nothing")
@click.option("--no-report", is_flag=True, help="do not write report.html")
@click.option("-h", "--help", "wants_help", is_flag=True, help="show this page; with METHOD, its own settings too")
@click.pass_context
def run(
    ctx: click.Context, /, method: str | None, slurm: bool, no_report: bool, wants_help: bool, **options: Any
) -> None:
    """Train a backbone with METHOD and write a run folder."""
    plugin_file = options.pop("plugin_file")
    if wants_help:
        click.echo(ctx.get_help())
        if method is not None:
            from ..plugins.lookup import page

            click.echo("\n" + page(plugins_with(plugin_file).get("method", method)))
        return
    if method is None and options["config"] is None:
        names = [entry.name for entry in entries() if not is_no_method(entry)]
        known = ", ".join(names) or f"none; {install(TO_BEGIN)}"
        raise click.UsageError(f"missing METHOD. Installed: {known}.")
    _join_by_srun()
    asked = keywords(options, method)
    if slurm:
        _write_script(asked, plugins_with(plugin_file))
        return
    _share_among_processes(asked, options["config"])
    from ..running.launch import run as run_method

    result = run_method(report=not no_report, plugins=plugins_with(plugin_file), **asked)
    _show(result)
    if options.get("stop_on_collapse") and result.verdict == "collapsed":
        ctx.exit(1)


@akssl.command()
@click.argument("source")
@click.option("--method", help="how to train  [default: as the weights were trained, else what suits their network]")
@run_options("start")
@budget_option
@overwrite_option("replace the run that --out already holds")
@click.option("--resume", type=Choice(["auto"]), help="go on where --out holds this run already, else begin it")
@click.option("--no-report", is_flag=True, help="do not write report.html")
@json_option
def adapt(source: str, method: str | None, no_report: bool, as_json: bool, **options: Any) -> None:
    """Go on training from the weights in SOURCE with --data, and keep what is surely better, or the start.

    SOURCE is a run folder, a .safetensors file, or the name of a backbone that has published weights. Images that are
    held out of training choose between the start, what was trained and mixtures of both; RUN_DIR/adaptation.json has
    the evidence. A run that was stopped goes on with akssl resume.
    """
    _join_by_srun()
    asked = keywords(options, method)
    _share_among_processes(asked, options["config"])
    from ..running.adapt import adapt as adapt_weights

    _show(adapt_weights(source, report=not no_report, **asked), as_json)


@akssl.command()
@click.argument("run_dir", type=PATH)
@click.option("--data", help="where the data lies now, if it was moved")
@field_option(TrainSpec, "epochs", help="passes over the training images, from the first on; more trains longer")
@field_option(TrainSpec, "devices", help="processes; any number can go on with a run")
@field_option(TrainSpec, "workers")
@set_option("any setting that moves no weight of the steps so far, by its path")
@plugin_file_option
@click.option("--no-report", is_flag=True, help="do not write report.html")
def resume(
    run_dir: Path, assignments: tuple[str, ...], plugin_file: Path | None, no_report: bool, **options: Any
) -> None:
    """Continue a run exactly where its last checkpoint stands."""
    _join_by_srun()
    settings = settings_of(options, assignments)
    _share_among_processes(settings, run_dir / "config.yaml")
    from ..rundir.folder import RunDir
    from ..running.going_on import is_only_read
    from ..running.launch import resume as resume_run

    read = is_only_read(RunDir.open(run_dir), settings)
    result = resume_run(run_dir, report=not no_report, plugins=plugins_with(plugin_file), **settings)
    if read and _is_main():
        say(f"akssl: {run_dir} had ended: nothing was trained. More --epochs take it further.")
    _show(result)


@akssl.command()
@click.argument("method", required=False)
@run_options()
@budget_option
@click.option("--measure", is_flag=True, help="train a few steps to estimate the time; nothing of them is kept")
def explain(method: str | None, measure: bool, **options: Any) -> None:
    """Show every setting of a run and who decided it, without training."""
    asked = keywords(options, method)
    from ..running.explain import explain as explain_run

    click.echo(explain_run(measure=measure, who="command line", **asked).text)


@akssl.command()
@click.argument("targets", nargs=-1, metavar="[RUN_DIR | METHOD]...")
@run_options()
@click.option("--json", "as_json", is_flag=True, help="print JSON: a list of findings")
@click.pass_context
def doctor(ctx: click.Context, /, targets: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Look for faults without training, each with evidence, cause and cure.

    Of a METHOD with the options of `run`: settings, data and machine. Of a RUN_DIR: how it ended and what it holds.
    Without either: the installed plugins. Exit code 0: nothing was found; 1: something was; 2: wrong input.
    """
    asked = keywords(options)
    from ..examining import doctor as look_for_faults

    found = look_for_faults(*targets, who="command line", **asked)
    show(found, as_json)
    ctx.exit(0 if found.healthy else 1)


@akssl.command()
@click.argument("file", type=PATH)
@click.option("--out", required=True, type=PATH, help="file to write, NAME.safetensors")
@overwrite_option("replace the file that --out names")
def convert(file: Path, out: Path, overwrite: bool) -> None:
    """Write the tensors of a .pth FILE to a .safetensors file, which --start takes.

    FILE is a pickle. It is read by torch's weights-only reader, and by no other command.
    """
    from ..running.convert import convert as convert_file

    click.echo(convert_file(file, out, overwrite=overwrite).text)


@akssl.command()
@click.argument("run_dir", type=PATH)
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html again from the files of the run."""
    from ..running.result import report as write_report

    click.echo(write_report(run_dir).text)


def _join_by_srun() -> None:
    """Where srun has started this process, one of several: let them know of each other."""
    if any(name.startswith("SLURM_") for name in os.environ):
        from ..dist.slurm import join

        join(os.environ)


def _share_among_processes(settings: Mapping[str, Any], config: Path | None) -> None:
    """Where more than one process is asked for, start them with the same command line, and end as they do."""
    asked = settings.get("train", {}).get("devices")
    if asked is None and config is not None and os.path.isfile(config):
        from ..config.yaml import read_yaml

        train = read_yaml(config).get("train")
        asked = train.get("devices") if isinstance(train, Mapping) else None
    if not isinstance(asked, int) or asked < 2 or "WORLD_SIZE" in os.environ:
        return  # a wrong value is told where all settings are checked
    cores = os.cpu_count() or 1
    if asked > MOST_A_CORE * cores:
        raise ConfigError(
            f"train.devices: {asked} processes on {cores} cores; each needs a GPU, or a core, of its own. Use fewer."
        )
    from ..dist.launcher import launch

    code, message = launch(asked, sys.argv[1:])
    if message:
        say(f"akssl: {message} 'akssl resume RUN_DIR' goes on from the last checkpoint.")
    sys.exit(code)


def _write_script(asked: Mapping[str, Any], plugins: Plugins) -> None:
    """Write a batch script that runs this command, and say how to submit it; wrong settings are told now."""
    from ..dist.slurm import CORES, script
    from ..rundir.files import refuse_file, write_atomic
    from ..rundir.folder import cannot_start
    from ..running.estimate import leave_length_open
    from ..running.layers import check, collect, layer

    own = {name: asked[name] for name in OF_RUN if name in asked}
    settings = {name: value for name, value in asked.items() if name not in own}
    given = collect(None, own.get("config"), settings, plugins)
    if "budget" in own:
        given = leave_length_open(own["budget"], given)
    spec = check(layer(given, plugins), plugins)
    name = spec.method.name
    out = Path(own.get("out", f"runs/{name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}")).absolute()
    file = out.with_name(f"{out.name}.sbatch")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_start(out, error) from error
    refuse_file(file, overwrite=own.get("overwrite", False))
    words = _without(sys.argv[1:], ("--slurm", "--overwrite", "--force"), ("--devices", "--out", "--resume"))
    command = [sys.executable, "-m", "akssl_core", *words, "--out", str(out), "--resume", "auto"]
    train = spec.train
    threads = 0 if train.threads == "auto" else train.threads
    cores = max(threads, 0 if train.workers is None else train.workers + 1) or CORES
    gpus = train.device != "cpu"
    text = script(file, command, name=f"akssl-{name}", tasks=train.devices, gpus=gpus, cores=cores)
    write_atomic(file, text.encode())
    click.echo(f"sbatch {file}")
    say(f"akssl: {file} is written. Look through its lines #SBATCH (machines, GPUs, time, partition), then submit it.")


def _without(words: Sequence[str], alone: Sequence[str], with_value: Sequence[str]) -> list[str]:
    """A command line without these options."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in with_value:
            next(rest)
        elif word not in alone and word.partition("=")[0] not in with_value:
            kept.append(word)
    return kept


def _is_main() -> bool:
    """Whether this process is the one of several that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _show(result: Result, as_json: bool = False) -> None:
    """Print the summary; of several processes, the main one alone has anything to say.

    The run is done and its files are whole, whether or not the summary can be shown.
    """
    try:
        if result.metrics and _is_main():  # all can read a run that has ended
            show(result, as_json)
    except OSError as error:
        say(f"akssl: the summary cannot be shown: {error.strerror}. Everything is in {result.run_dir}.")
        drop_stdout()

"""Commands that train: run, resume, explain, report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import describe
from ..console import drop_stdout, say
from ..errors import ConfigError
from ..plugins.installed import entries
from .base import akssl, plugin_file_option, plugins_with, set_option, settings_of
from .plugins import describe_method

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..running.process import Result

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


RUN_OPTIONS = {
    "data": click.option("--data", help="source name, folder of images or prepared file  [default: drawn shapes]"),
    "backbone": click.option("--backbone", help="backbone name  [default: chosen for the image size]"),
    "epochs": click.option("--epochs", type=int, help="passes over the data"),
    "batch_size": click.option("--batch-size", type=int, help="images a step, over all processes"),
    "image_size": click.option("--image-size", type=int, help="side of the views in pixels"),
    "out": click.option("--out", type=click.Path(path_type=Path), help="run folder  [default: a new one under runs/]"),
    "seed": click.option("--seed", type=int, help="decides weights, batches and views  [default: 0]"),
    "precision": click.option("--precision", type=click.Choice(PRECISIONS), help="number format of the forward pass"),
    "device": click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), help="where to train"),
    "devices": click.option("--devices", type=int, help="number of processes"),
    "workers": click.option("--workers", type=int, help="processes that read a torch Dataset"),
    "recipe": click.option("--recipe", help="the method's preset: default, cifar, imagenet, ..."),
    "config": click.option("--config", type=click.Path(path_type=Path), help="YAML file with any of these settings"),
    "set": set_option("any setting, by its path"),
    "plugin_file": plugin_file_option,
}


def run_options(*left_out: str) -> Callable[..., Any]:
    """The options that commands which train share, but for some."""

    def added(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, option in reversed(RUN_OPTIONS.items()):
            function = function if name in left_out else option(function)
        return function

    return added


@akssl.command(add_help_option=False)
@click.argument("method", required=False)
@run_options()
@click.option("--stop-on-collapse", is_flag=True, default=None, help="end a run that has collapsed, with exit code 1")
@click.option("--overwrite", is_flag=True, help="replace the run that --out already holds")
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
            click.echo("\n" + describe_method(plugins_with(plugin_file), method))
        return
    if method is None and config is None:
        names = ", ".join(entry.name for entry in entries()) or "none; pip install akssl-plugin-simsiam"
        raise click.UsageError(f"missing METHOD. Installed: {names}.")
    settings = settings_of(options, assignments)
    if method is not None:
        settings["method"] = {**settings.get("method", {}), "name": method}
    _share_among_processes(settings, config)
    from ..running.launch import run as run_method

    result = run_method(
        config=config, out=out, overwrite=overwrite, report=not no_report, plugins=plugins_with(plugin_file), **settings
    )
    _show(result)
    if options.get("stop_on_collapse") and result.verdict == "collapsed":
        ctx.exit(1)


@akssl.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--epochs", type=int, help="passes over the data, from the first on; more than before trains longer")
@click.option("--devices", type=int, help="number of processes; any number can go on with a run")
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
    from .. import dist
    from ..config.schema import leaves
    from ..running.estimate import derived, measured
    from ..running.layers import check, collect, layer
    from ..running.plan import make_plan

    settings = settings_of(options, assignments)
    if method is not None:
        settings["method"] = {**settings.get("method", {}), "name": method}
    plugins = plugins_with(plugin_file)
    given = collect(None, config, settings, plugins, who="command line")
    devices = check(layer(given, plugins), plugins).train.devices
    if measure and devices > 1:
        raise ConfigError(f"--measure: it trains in this process alone, and {devices} were asked for. Leave one out.")
    with dist.acting_in(dist.Imagined(devices)):  # nothing is started here
        plan = make_plan(given, plugins)
        follows = [*plan.consequences(), *derived(plan), *([measured(plan)] if measure else ())]
    lines = [(path, json.dumps(value), plan.provenance[path]) for path, value in leaves(plan.spec.table())]
    click.echo(describe.table(("setting", "value", "decided by"), lines))
    click.echo("\n" + describe.table(("what follows", ""), follows))
    click.echo("\n" + "\n".join(f"- {note}" for note in plan.notes))


@akssl.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html again from the files of the run."""
    from ..reporting import render
    from ..rundir.folder import RunDir

    folder = RunDir.open(run_dir)
    click.echo(folder.write_text("report.html", render(folder.path)))


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
            click.echo(_summary(result))
    except OSError as error:
        say(f"akssl: the summary cannot be shown: {error.strerror}. Everything is in {result.run_dir}.")
        drop_stdout()


def _summary(result: Result) -> str:
    """The scores, where everything is, and how to use it."""
    names = {
        "knn_raw_pixels": "k-NN top-1, raw pixels",
        "knn_random_init": "k-NN top-1, same backbone untrained",
        "knn_top1": "k-NN top-1, trained",
        "std_ratio": "std of features x sqrt(D) (healthy near 1)",
        "rankme": "effective rank (RankMe)",
        "lidar": "directions that tell images apart (LiDAR)",
        "alpha_req": "fall of the spectrum (alpha-ReQ, good near 1)",
        "alignment": "distance of views (alignment, 0 to 4)",
        "uniformity": "spread over the sphere (uniformity, 0 to -4)",
        "loss": "loss",
        "seconds": "seconds of training and evaluation",
    }
    lines = [(text, f"{result.metrics[key]:.4g}") for key, text in names.items() if result.metrics.get(key) is not None]
    found = asdict(result.diagnosis) if result.diagnosis else {}
    return "\n".join(
        [
            describe.table(("score", ""), lines),
            f"\nVerdict: {result.diagnosis.words if result.diagnosis else ''}",
            *(f"  {name}: {found[name]}" for name in ("evidence", "cause", "cure") if found.get(name)),
            f"Run folder: {result.run_dir}",
            f"Judge it, with intervals: akssl eval {shlex.quote(str(result.run_dir))}",
            "Use it:",
            "  import akssl_core",
            f"  backbone = akssl_core.load_backbone({str(result.run_dir)!r})",
            "  features = backbone(backbone.preprocess(image))",
        ]
    )

"""The `akssl` command: parsing and printing, nothing else. Torch is imported by the commands that need it."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import yaml

from . import describe
from .discovery import entries, version
from .errors import AksslError, ConfigError, did_you_mean
from .plugins import Plugins, installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .launch import Result

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Commands(click.Group):
    """A group that offers the nearest name for a misspelt command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one was probably meant."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            hint = did_you_mean(args[0], names)
            raise click.UsageError(f"no command named '{args[0]}'.{hint} Commands: {', '.join(names)}.")
        return super().resolve_command(ctx, args)


def main() -> NoReturn:
    """Run the command line: 0 done, 2 the input is wrong, 1 anything else."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    warnings.showwarning = lambda message, *_, **__: click.echo(f"akssl: warning: {message}", err=True)
    try:
        status = akssl.main([a for a in arguments if a != "--debug"], prog_name="akssl", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except (AksslError, click.UsageError) as error:
        _fail(error.format_message() if isinstance(error, click.UsageError) else str(error), 2, debug)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped; 'akssl resume RUN_DIR' goes on from the last checkpoint.", 1, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has what it wanted
        sys.exit(0)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--debug shows the traceback)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    click.echo(f"akssl: {message}", err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("akssl-core"), prog_name="akssl")
def akssl() -> None:
    """Self-supervised image backbones; every method is an installable plugin.

    Start with: akssl run simsiam. --debug, anywhere, shows tracebacks.
    """


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `run` and `explain` share."""
    options = [
        click.option("--data", help="source name or folder of images  [default: drawn shapes]"),
        click.option("--backbone", help="backbone name  [default: chosen for the image size]"),
        click.option("--epochs", type=int, help="passes over the data"),
        click.option("--batch-size", type=int, help="images a step, over all processes"),
        click.option("--image-size", type=int, help="side of the views in pixels"),
        click.option("--out", type=click.Path(path_type=Path), help="run folder  [default: a new one under runs/]"),
        click.option("--seed", type=int, help="decides weights, batches and views  [default: 0]"),
        click.option("--precision", type=click.Choice(PRECISIONS), help="number format of the forward pass"),
        click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), help="where to train"),
        click.option("--devices", type=int, help="number of processes"),
        click.option("--workers", type=int, help="processes that read a torch Dataset"),
        click.option("--recipe", help="the method's preset: default, cifar, imagenet, ..."),
        click.option("--config", type=click.Path(path_type=Path), help="YAML file with any of these settings"),
        click.option("--set", "assignments", multiple=True, metavar="A.B=VALUE", help="any setting, by its path"),
        click.option("--plugin-file", type=click.Path(path_type=Path), help="a plugin that is one Python file"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _settings(options: dict[str, Any], assignments: tuple[str, ...]) -> dict[str, Any]:
    """Flags and --set assignments as the keywords of `akssl_core.run`."""
    from .resolve import dotted, overlay, sections

    pairs = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set: expected SECTION.KEY=VALUE, got '{text}'.")
        try:
            pairs.append((path, yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}: '{value}' is not a valid value.") from error
    flags = sections({key: value for key, value in options.items() if value is not None})
    return overlay(flags, sections(dotted(pairs)))


def _plugins(plugin_file: Path | None) -> Plugins:
    plugins = installed()
    if plugin_file is not None:
        plugins.load_file(plugin_file)
    return plugins


@akssl.command(add_help_option=False)
@click.argument("method", required=False)
@run_options
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
            click.echo("\n" + _describe_method(_plugins(plugin_file), method))
        return
    if method is None and config is None:
        names = ", ".join(entry.name for entry in entries()) or "none; pip install akssl-plugin-simsiam"
        raise click.UsageError(f"missing METHOD. Installed: {names}.")
    from .launch import run as run_method

    settings = _settings(options, assignments)
    if method is not None:
        settings["method"] = {**settings.get("method", {}), "name": method}
    result = run_method(
        config=config, out=out, overwrite=overwrite, report=not no_report, plugins=_plugins(plugin_file), **settings
    )
    click.echo(_summary(result))


@akssl.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--plugin-file", type=click.Path(path_type=Path), help="a plugin that is one Python file")
@click.option("--no-report", is_flag=True, help="do not write report.html")
def resume(run_dir: Path, plugin_file: Path | None, no_report: bool) -> None:
    """Continue a run exactly where its last checkpoint stands."""
    from .launch import resume as resume_run

    click.echo(_summary(resume_run(run_dir, report=not no_report, plugins=_plugins(plugin_file))))


@akssl.command()
@click.argument("method", required=False)
@run_options
def explain(
    method: str | None,
    assignments: tuple[str, ...],
    config: Path | None,
    plugin_file: Path | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Show every setting of a run and who decided it, without training."""
    from .config import leaves
    from .plan import make_plan
    from .resolve import collect

    settings = _settings(options, assignments)
    if method is not None:
        settings["method"] = {**settings.get("method", {}), "name": method}
    plugins = _plugins(plugin_file)
    plan = make_plan(collect(None, config, settings, plugins, who="command line"), plugins)
    lines = [(path, json.dumps(value), plan.provenance[path]) for path, value in leaves(plan.spec.table())]
    click.echo(describe.table(("setting", "value", "decided by"), lines))
    click.echo("\n" + describe.table(("what follows", ""), plan.consequences()))
    click.echo("\n" + "\n".join(f"- {note}" for note in plan.notes))


@akssl.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html again from the files of the run."""
    from .report import render
    from .rundir import RunDir

    folder = RunDir.open(run_dir)
    click.echo(folder.write_text("report.html", render(folder.path)))


@akssl.group(cls=Commands, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--check", "imported", is_flag=True, help="import each plugin and say whether it works")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool, imported: bool) -> None:
    """List the installed plugins, from package metadata alone."""
    if ctx.invoked_subcommand is not None:
        return
    records = [entry.record() for entry in entries()]
    if imported:
        records = _checked(records)
    if as_json:
        click.echo(json.dumps(records, indent=2))
    elif records:
        header = tuple(key for key in records[0] if key != "value")
        click.echo(describe.table(header, [[record[key] for key in header] for record in records]))
    else:
        click.echo("No plugins are installed. Try: pip install akssl-plugin-simsiam")


def _checked(records: list[dict[str, str]]) -> list[dict[str, str]]:
    """Each record after an import: what it provides, or why it does not work and what to do."""
    manager = installed()
    manager.load_all()
    for record in records:
        owned = manager.registry.owned(record["name"])
        failure = manager.failures.get(record["name"])
        if failure is not None:
            record.update(status="broken", reason=f"{failure.error!r}; pip install -U {failure.distribution}")
        elif record["status"] == "installed":
            record["status"] = "ok" if owned or _shares_module(record, records) else "invalid"
            record["reason"] = "" if record["status"] == "ok" else "registers no component"
        record["provides"] = ", ".join(f"{c.kind} {c.name}" for c in owned)
    return records


def _shares_module(record: dict[str, str], records: list[dict[str, str]]) -> bool:
    """Whether another entry point names the same module (a family of methods in one plugin)."""
    return any(other["value"] == record["value"] and other["name"] != record["name"] for other in records)


@plugins.command()
@click.argument("method")
def show(method: str) -> None:
    """Show a method: its paper, settings and recipes."""
    click.echo(_describe_method(installed(), method))


def _describe_method(manager: Plugins, name: str) -> str:
    component: Any = manager.get("method", name)
    views = ", ".join(f"{describe.count(many)} {group}" for group, many in component.views.items())
    parts = [f"{component.name}: {(component.__doc__ or '').strip()}"]
    parts += [f"Paper: {component.paper}"] if component.paper else []
    parts += [f"Views: {views}", "Settings (--set method.NAME=VALUE):"]
    parts += [describe.table(describe.HEADER, describe.cells(component.Config))]
    for recipe, settings in component.recipes.items():
        parts.append(f"Recipe '{recipe}':\n" + yaml.safe_dump(dict(settings), sort_keys=False).rstrip())
    return "\n\n".join(parts)


def _summary(result: Result) -> str:
    """The scores, where everything is, and how to use it."""
    names = {
        "knn_raw_pixels": "k-NN top-1, raw pixels",
        "knn_random_init": "k-NN top-1, same backbone untrained",
        "knn_top1": "k-NN top-1, trained",
        "std_ratio": "std of features x sqrt(D) (healthy near 1)",
        "rankme": "effective rank (RankMe)",
        "loss": "loss",
        "seconds": "seconds of training and evaluation",
    }
    lines = [(text, f"{result.metrics[key]:.4g}") for key, text in names.items() if result.metrics.get(key) is not None]
    return "\n".join(
        [
            describe.table(("score", ""), lines),
            f"\nVerdict on collapse: {result.verdict}",
            f"Run folder: {result.run_dir}",
            "Use it:",
            "  import akssl_core",
            f"  backbone = akssl_core.load_backbone({str(result.run_dir)!r})",
            "  features = backbone(backbone.preprocess(image))",
        ]
    )

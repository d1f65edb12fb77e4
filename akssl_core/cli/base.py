"""The `akssl` group that every command hangs on, and what commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from ..config.schema import Schema, user_path
from ..config.yaml import parse_yaml
from ..console import drop_stdout, reader_is_gone
from ..errors import ConfigError, RunStopped, did_you_mean
from ..plugins.installed import version
from ..plugins.manager import Plugins, installed
from ..settings import OF_RUN, RunSpec, TrainSpec, dotted, flags, merged, sections

Decorator = Callable[[Any], Any]
IN_TASKS = ("run", "resume")  # commands whose processes work together where srun has started several


class UserPath(click.Path):
    """A path, with `~` expanded wherever it stands."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path that a text names; an empty one, of a shell's variable that is not set, names none."""
        if value == "":
            self.fail("it is empty; expected the path of a file or a folder.", param, ctx)
        return super().convert(user_path(value), param, ctx)  # type: ignore[return-value] # path_type says what it is


class Choice(click.Choice):  # type: ignore[type-arg] # click 8.1 has none
    """One of a few words; of a misspelt one it says which was probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word, if it is one of them."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}{did_you_mean(str(value), self.choices)}", param, ctx)


PATH = UserPath(path_type=Path)
plugin_file_option = click.option("--plugin-file", type=PATH, help="a plugin that is one Python file")
labels_option = click.option("--labels", help="table that gives each image of --data its label: CSV, ...")
test_data_option = click.option(
    "--test-data", help="labelled test images to judge by, in place of some of --data: folder, table, ..."
)
json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")


def show(found: Any, as_json: bool) -> None:
    """Print a result: its text, or its record as JSON."""
    click.echo(json.dumps(found.record(), indent=2) if as_json else found.text)


def overwrite_option(text: str) -> Decorator:
    """The option --overwrite, which was --force once."""
    shown = click.option("--overwrite", is_flag=True, help=text)
    hidden = click.option("--force", "overwrite", is_flag=True, hidden=True)
    return lambda function: shown(hidden(function))


def field_option(schema: type[Schema], name: str, **other: Any) -> Decorator:
    """A setting as an option: its type, its choices and its meaning are those of the field, unless said otherwise."""
    field = schema.model_fields[name]
    kinds = (field.annotation, *get_args(field.annotation))
    facts: dict[str, Any] = {"help": field.description, "default": None}
    if get_origin(field.annotation) is Literal:
        facts["type"] = Choice(kinds[1:])
    elif bool in kinds:
        facts["is_flag"] = True
    elif int in kinds:
        facts["type"] = int
        facts["help"] += "" if field.default is None else f"  [default: {field.default}]"
    return click.option(f"--{name.replace('_', '-')}", **{**facts, **other})


def run_options(*left_out: str) -> Decorator:
    """The options that commands which train share, but for some: all flags, and where other settings come from."""
    named = {name: field_option(schema, name) for schema in (RunSpec, TrainSpec) for name in flags(schema)}
    named |= {
        "labels": labels_option,
        "test_data": test_data_option,
        "out": click.option("--out", type=PATH, help="run folder  [default: a new one under runs/]"),
        "config": click.option("--config", type=PATH, help="YAML file with any of these settings"),
        "set": set_option("any setting, by its path"),
        "plugin_file": plugin_file_option,
    }

    def added(function: Any) -> Any:
        for name, option in reversed(named.items()):
            function = function if name in left_out else option(function)
        return function

    return added


def budget_option(function: Any) -> Any:
    """The option --budget of commands that train one run."""
    text = "instead of --epochs: train for about so long, as 90s, 10m or 2h; probes and checkpoints come on top"
    return click.option("--budget", metavar="TIME", help=text)(function)


def set_option(text: str) -> Decorator:
    """The option --set, with what its settings are."""
    return click.option("--set", "assignments", multiple=True, metavar="A.B=VALUE", help=text)


class Commands(click.Group):
    """A group that offers the nearest name for a misspelt command, and alone shows its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The command and its words; none are a question for help."""
        return super().parse_args(ctx, args or ["--help"] * (not self.invoke_without_command))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one was probably meant."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            hint = did_you_mean(args[0], names)
            raise click.UsageError(f"no command named '{args[0]}'.{hint} Commands: {', '.join(names)}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has read enough (`| head`) ends it as done.

        Raises:
            RunStopped: it is another pipe that broke. Click would end the command without a word.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if not reader_is_gone():
                raise RunStopped(f"a process that this one was talking to has ended ({error.strerror}).") from error
            drop_stdout()
            return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("akssl-core"), prog_name="akssl")
@click.pass_context
def akssl(ctx: click.Context) -> None:
    """Self-supervised image backbones; every method is an installable plugin.

    Start with: akssl run simsiam. --debug, anywhere, shows tracebacks.
    """
    if ctx.invoked_subcommand not in IN_TASKS and any(name.startswith("SLURM_") for name in os.environ):
        from ..dist.slurm import alone

        alone(str(ctx.invoked_subcommand), os.environ)


def plugins_with(plugin_file: Path | None) -> Plugins:
    """The process-wide plugin manager, with the plugin that is one file."""
    plugins = installed()
    if plugin_file is not None:
        plugins.load_file(plugin_file)
    return plugins


def settings_of(options: Mapping[str, Any], assignments: Sequence[str], method: str | None = None) -> dict[str, Any]:
    """Flags, --set assignments and METHOD as the keywords of `akssl_core.run`."""
    pairs = [parsed(text) for text in assignments]
    given = sections({key: value for key, value in options.items() if value is not None})
    settings = merged(given, sections(dotted(pairs)))
    if method is None:
        return settings
    if (other := settings.get("method", {}).get("name", method)) != method:
        raise ConfigError(f"METHOD: '{method}' was named, and with --set '{other}'. Leave one out.")
    return merged(settings, {"method": {"name": method}})


def keywords(options: Mapping[str, Any], method: str | None = None) -> dict[str, Any]:
    """What `run_options` gives, and METHOD, as the keywords of `akssl_core.run`; what nobody gave is left out."""
    given = {name: value for name, value in options.items() if value is not None}
    own: dict[str, Any] = {name: given.pop(name) for name in OF_RUN if name in given}
    assignments, plugin_file = given.pop("assignments", ()), given.pop("plugin_file", None)
    own |= settings_of(given, assignments, method)
    return {**own, "plugins": plugins_with(plugin_file)} if "plugin_file" in options else own


def parsed(assignment: str) -> tuple[str, Any]:
    """`SECTION.KEY=VALUE` as path and value.

    Raises:
        ConfigError: it is no assignment, or the value is not YAML.
    """
    path, equals, value = assignment.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set: expected SECTION.KEY=VALUE, got '{assignment}'.")
    try:
        return path, parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"--set {path}: '{value:.80}' is not a valid value{error}") from error


def data_of(data: str | None, assignments: Sequence[str], run_dir: Path | None = None) -> Any:
    """The data that --data and --set mean together; None: those of the run.

    Raises:
        ConfigError: a setting of something else is given.
    """
    if not assignments:
        return data
    settings = settings_of({"data": data}, assignments)
    if other := sorted(settings.keys() - {"data"}):
        raise ConfigError(f"--set {other[0]}: only settings of the data apply here, --set data.NAME=VALUE.")
    table = settings["data"]
    if "name" in table or run_dir is None:
        return table
    from ..rundir.folder import RunDir

    return {**RunDir.open(run_dir).read_config()["data"], **table}

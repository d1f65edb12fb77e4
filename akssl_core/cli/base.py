"""The `akssl` group that every command hangs on, and what commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..config.yaml import parse_yaml
from ..console import drop_stdout, reader_is_gone
from ..errors import ConfigError, RunStopped, did_you_mean
from ..plugins.installed import version
from ..plugins.manager import Plugins, installed

plugin_file_option = click.option(
    "--plugin-file", type=click.Path(path_type=Path), help="a plugin that is one Python file"
)


def set_option(text: str) -> Callable[..., Any]:
    """The option --set, with what its settings are."""
    return click.option("--set", "assignments", multiple=True, metavar="A.B=VALUE", help=text)


class Commands(click.Group):
    """A group that offers the nearest name for a misspelt command."""

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
def akssl() -> None:
    """Self-supervised image backbones; every method is an installable plugin.

    Start with: akssl run simsiam. --debug, anywhere, shows tracebacks.
    """


def plugins_with(plugin_file: Path | None) -> Plugins:
    """The process-wide plugin manager, with the plugin that is one file."""
    plugins = installed()
    if plugin_file is not None:
        plugins.load_file(plugin_file)
    return plugins


def settings_of(options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Flags and --set assignments as the keywords of `akssl_core.run`."""
    from ..settings import dotted, merged, sections

    pairs = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set: expected SECTION.KEY=VALUE, got '{text}'.")
        try:
            pairs.append((path, parse_yaml(value)))
        except ValueError as error:
            raise ConfigError(f"--set {path}: '{value:.80}' is not a valid value{error}") from error
    flags = {key: value for key, value in options.items() if value is not None}
    return merged(sections(flags), sections(dotted(pairs)))

"""The `akssl` group that every command hangs on, and what commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..discovery import version
from ..errors import did_you_mean
from ..plugins import Plugins, installed

plugin_file_option = click.option(
    "--plugin-file", type=click.Path(path_type=Path), help="a plugin that is one Python file"
)


class Commands(click.Group):
    """A group that offers the nearest name for a misspelt command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one was probably meant."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            hint = did_you_mean(args[0], names)
            raise click.UsageError(f"no command named '{args[0]}'.{hint} Commands: {', '.join(names)}.")
        return super().resolve_command(ctx, args)


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

"""Commands about data: prepare it once for many runs."""

from __future__ import annotations

from pathlib import Path

import click

from .base import PATH, Commands, akssl, data_of, overwrite_option, plugin_file_option, plugins_with, set_option


@akssl.group(cls=Commands)
def data() -> None:
    """Work on data before runs: decode it once."""


@data.command()
@click.argument("src")
@click.option("--out", type=PATH, required=True, help="file to write, NAME.safetensors")
@click.option(
    "--size",
    type=click.IntRange(8, 8192),
    help="shorter side in pixels that larger images are reduced to  [default: what runs keep at the size that suits "
    "the images, as 256 for views of 224]",
)
@overwrite_option("replace the file that --out names")
@set_option("a setting of the source: data.channels=1")
@plugin_file_option
def prepare(
    src: str, out: Path, size: int | None, overwrite: bool, assignments: tuple[str, ...], plugin_file: Path | None
) -> None:
    """Decode every image of SRC once and write them to one file.

    SRC is a folder or a source's name, as in `akssl run --data SRC`. Runs take the file in its place, with the same
    pixels, labels and probes: akssl run METHOD --data FILE.
    """
    from ..running.outputs import prepare as prepare_data

    data, plugins = data_of(src, assignments), plugins_with(plugin_file)
    try:
        written = prepare_data(data, out, size=size, overwrite=overwrite, plugins=plugins)
    except KeyboardInterrupt as error:
        raise click.ClickException(f"stopped; {out} was not written.") from error
    click.echo(written.text)

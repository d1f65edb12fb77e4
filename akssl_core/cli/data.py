"""Commands about data: prepare it once for many runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import visible
from .base import Commands, akssl, plugin_file_option, plugins_with, set_option, settings_of

if TYPE_CHECKING:
    from ..data.prepare import Written

NAMED = 3  # unreadable images that the result names


@akssl.group(cls=Commands)
def data() -> None:
    """Work on data before runs: decode it once."""


@data.command()
@click.argument("src")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write, NAME.safetensors")
@click.option(
    "--size",
    type=click.IntRange(8, 8192),
    help="shorter side in pixels that larger images are reduced to  [default: what runs keep at the size that suits "
    "the images, as 256 for views of 224]",
)
@click.option("--force", is_flag=True, help="replace the file that --out names")
@set_option("a setting of the source: data.channels=1")
@plugin_file_option
def prepare(
    src: str, out: Path, size: int | None, force: bool, assignments: tuple[str, ...], plugin_file: Path | None
) -> None:
    """Decode every image of SRC once and write them to one file.

    SRC is a folder or a source's name, as in `akssl run --data SRC`. Runs take the file in its place, with the same
    pixels, labels and probes: akssl run METHOD --data FILE.
    """
    from ..data.prepare import prepare as prepare_data

    settings = settings_of({"data": src}, assignments)
    plugins = plugins_with(plugin_file)
    try:
        written = prepare_data(settings, out, text=src, side=size, overwrite=force, plugins=plugins)
    except KeyboardInterrupt as error:
        raise click.ClickException(f"stopped; {out} was not written.") from error
    click.echo(_summary(written))


def _summary(written: Written) -> str:
    """What was written, what could not be read, and how to train from it."""
    record, unreadable = written.record, written.unreadable
    size = f"{written.size / 1e9:.2f} GB" if written.size >= 1e9 else f"{written.size / 1e6:.1f} MB"
    classes = f"{written.classes} classes" if written.classes else "no classes"
    facts = f"{written.images} images, {size}, {classes}, shorter side at most {record.side} px"
    lines = [f"{written.path}: {facts}, {len(unreadable)} unreadable{named(unreadable)}"]
    if written.family is not None:
        lines.append(f"Runs from a file do not choose the recipe of such data by themselves: --recipe {written.family}")
    return "\n".join([*lines, f"Train from it: akssl run simsiam --data {shlex.quote(str(written.path))}"])


def named(unreadable: Mapping[str, str]) -> str:
    """The first few names with their reasons."""
    if not unreadable:
        return ""
    named = [f"{visible(name)} ({visible(reason)})" for name, reason in sorted(unreadable.items())[:NAMED]]
    return f": {'; '.join(named)}{'; ...' if len(unreadable) > NAMED else ''}"

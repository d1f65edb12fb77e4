"""Commands about what runs leave behind: export a backbone, compare runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .base import PATH, akssl, json_option, overwrite_option, plugin_file_option, plugins_with


@akssl.command()
@click.argument("run_dir", type=PATH)
@click.option("--to", required=True, metavar="FORMAT", help="safetensors, torchvision, timm or onnx")
@click.option("--out", type=PATH, help="file to write  [default: one in RUN_DIR, by format]")
@overwrite_option("replace a file that is there")
@plugin_file_option
def export(run_dir: Path, to: str, out: Path | None, overwrite: bool, plugin_file: Path | None) -> None:
    """Write the backbone of RUN_DIR for another library, proved there.

    A fresh process loads the file with the code that is printed; its features must be those of the run's backbone to
    1e-4. The header of the file says how large the difference is and how images are prepared.
    """
    from ..exporting import export as export_backbone

    done = export_backbone(run_dir, to, out, overwrite=overwrite, plugins=plugins_with(plugin_file))
    click.echo(done.text)


@akssl.command()
@click.argument("run_dirs", metavar="RUN_DIR...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="write one HTML page with the curves too, compare.html")
@json_option
def compare(run_dirs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Put runs beside each other: settings that differ, final numbers, cost.

    Numbers carry a 95 % interval where `akssl eval` has left one in the run folder.
    """
    from ..reporting.comparison import compare as compare_runs

    found = compare_runs(*run_dirs, out=out)
    click.echo(json.dumps(found.record(), indent=2) if as_json else found.text)
    if as_json and out is not None:
        click.echo(f"\nThe page: {out}", err=True)

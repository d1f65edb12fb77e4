"""Commands about what runs leave behind: export a backbone, compare runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .base import akssl, plugin_file_option, plugins_with


@akssl.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORMAT", help="safetensors, torchvision, timm or onnx")
@click.option("--out", type=click.Path(path_type=Path), help="file to write  [default: one in RUN_DIR, by format]")
@click.option("--overwrite", is_flag=True, help="replace a file that is there")
@plugin_file_option
def export(run_dir: Path, to: str, out: Path | None, overwrite: bool, plugin_file: Path | None) -> None:
    """Write the backbone of RUN_DIR for another library, proved there.

    A fresh process loads the file with the code that is printed; its features must be those of the run's backbone to
    1e-4. The header of the file says how large the difference is and how images are prepared.
    """
    from ..exporting import export as export_backbone

    done = export_backbone(run_dir, to, out, overwrite=overwrite, plugins=plugins_with(plugin_file))
    size = done.path.stat().st_size / 1e6
    proof = f"features of {done.images} images differ by at most {done.difference:.2g} (allowed {done.tolerance:g})"
    click.echo(f"{done.path}: {done.to}, {size:.1f} MB; {proof}")
    click.echo(f"Images: {done.preprocess.rule}; mean {_list(done.preprocess.mean)}, std {_list(done.preprocess.std)}")
    click.echo("Load it:\n" + "\n".join(f"  {line}" for line in done.snippet.splitlines()))


@akssl.command()
@click.argument("run_dirs", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="write one HTML page with the curves too, compare.html")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def compare(run_dirs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Put runs beside each other: settings that differ, final numbers, cost.

    Numbers carry a 95 % interval where `akssl eval` has left one in the run folder.
    """
    from ..reporting.comparison import compare as compare_runs

    found = compare_runs(*run_dirs, out=out)
    click.echo(json.dumps(found.record(), indent=2) if as_json else found.text)
    if out is not None:
        click.echo(f"\nThe page: {out}", err=as_json)


def _list(values: tuple[float, ...]) -> str:
    return json.dumps([round(value, 4) for value in values])

"""Commands about data, and about runs that have ended: judge what they have trained, export it, compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ..settings import EvaluateSpec, TrainSpec
from .base import (
    PATH,
    Choice,
    Commands,
    akssl,
    data_of,
    field_option,
    json_option,
    overwrite_option,
    plugin_file_option,
    plugins_with,
    set_option,
    show,
    test_data_option,
)

PROTOCOLS = ("knn", "linear", "finetune", "segment")
data_option = click.option(
    "--data", help="source name, folder, table, archive or prepared file  [default: the data of the run]"
)
batch_option = field_option(EvaluateSpec, "batch_size", default=256, show_default=True, help="images a forward pass")
device_option = field_option(TrainSpec, "device", default="auto", show_default=True, help="where to compute")


@akssl.command("eval")
@click.argument("run_dir", type=PATH)
@click.option("--protocol", type=Choice(PROTOCOLS), help="how to judge  [default: as its method: mostly knn]")
@data_option
@click.option("--labels", default="1.0", show_default=True, help="shares of the training labels: 0.01,0.1,1.0")
@click.option("--seeds", type=int, default=5, show_default=True, help="draws of the labels, or fine-tunings")
@click.option("--k", help="neighbours of the k-NN  [default: 10,20,100,200]")
@click.option("--weights", type=PATH, help="compare with these weights, .safetensors: ImageNet's")
@click.option("--solver", type=Choice(("auto", "lbfgs", "sgd")), help="of the linear probe  [default: auto]")
@click.option("--epochs", type=int, help="of the fine-tuning, exactly  [default: 10, at least 500 steps]")
@click.option("--masks", type=PATH, help="of the segmentation: PNGs named as the images  [default: the source's]")
@test_data_option
@click.option("--train-images", type=int, help="learn from at most so many images  [default: all]")
@click.option("--test-images", type=int, help="test on at most so many images  [default: all]")
@batch_option
@device_option
@set_option("a setting of the source: data.size=2000")
@plugin_file_option
@json_option
def judge(
    run_dir: Path,
    data: str | None,
    labels: str,
    k: str | None,
    assignments: tuple[str, ...],
    plugin_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Did it help? Judge a run's backbone beside raw pixels, itself untrained and the weights it began from.

    Accuracies come with 95 % intervals. The run is left as it is, but for RUN_DIR/evaluation.json, which collects what
    was found by protocol, data and share of labels, and for its verdict, where its method is judged by this protocol.
    """
    shares = _numbers("labels", labels, float)
    ks = None if k is None else _numbers("k", k, int)
    source = data_of(data, assignments, run_dir)
    from ..evaluation.judging import evaluate

    try:
        found = evaluate(run_dir, data=source, labels=shares, k=ks, plugins=plugins_with(plugin_file), **options)
    except KeyboardInterrupt as error:
        raise click.ClickException("stopped; nothing was written.") from error
    show(found, as_json)


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers between commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "0.01,0.1,1.0" if kind is float else "10,20"
        raise ConfigError(f"--{option}: expected numbers with commas between, as {example}, got '{text}'.") from None


@akssl.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--to", required=True, metavar="FORMAT", help="safetensors, torchvision, timm or onnx")
@click.option("--out", type=PATH, help="file to write  [default: one in RUN, by format]")
@click.option("--int8", is_flag=True, help="of onnx: weights and activations in 8 bits, with what that costs")
@overwrite_option("replace a file that is there")
@plugin_file_option
@json_option
def export(run_dir: Path, plugin_file: Path | None, as_json: bool, **options: Any) -> None:
    """Write the backbone of RUN for another library, proved there. RUN is a run's folder, or a classifier's file.

    A fresh process loads the file with the code that is printed; its features must be those of the run's backbone to
    1e-4. The header of the file says how large the difference is and how images are prepared. With --int8 the loss of
    k-NN accuracy is measured on images of the run.
    """
    from ..exporting import export as export_backbone

    show(export_backbone(run_dir, plugins=plugins_with(plugin_file), **options), as_json)


@akssl.command()
@click.argument("run", metavar="RUN_DIR", type=PATH)
@click.option("--to", type=PATH, required=True, help="folder to write")
@overwrite_option("replace what an earlier publish has written there")
@plugin_file_option
@json_option
def publish(plugin_file: Path | None, as_json: bool, **options: Any) -> None:
    """Write the backbone of RUN_DIR as a folder that timm and transformers load, with a model card.

    A fresh process loads it with timm alone; its features must be those of the run's backbone to 1e-4. The card is made
    of the run and of what `akssl eval` has found.
    """
    from ..running.publish import publish as publish_run

    try:
        done = publish_run(**options, plugins=plugins_with(plugin_file))
    except KeyboardInterrupt as error:
        raise click.ClickException("stopped; nothing was written.") from error
    show(done, as_json)


@akssl.command()
@click.argument("run_dirs", metavar="RUN_DIR...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="write one HTML page with the curves too, compare.html")
@overwrite_option("replace the file that --out names")
@json_option
def compare(run_dirs: tuple[Path, ...], out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Put runs beside each other: settings that differ, final numbers, cost.

    Numbers carry a 95 % interval where `akssl eval` has left one in the run folder.
    """
    from ..reporting.comparison import compare as compare_runs

    found = compare_runs(*run_dirs, out=out, overwrite=overwrite)
    show(found, as_json)
    if as_json and out is not None:
        click.echo(f"\nThe page: {out}", err=True)


@akssl.group(cls=Commands)
def data() -> None:
    """Work on data before runs: decode it once."""


@data.command()
@click.argument("src")
@click.option("--out", type=PATH, required=True, help="file to write, NAME.safetensors, or folder of shards, NAME")
@click.option(
    "--size",
    type=int,
    help="shorter side in pixels that larger images are reduced to  [default: what runs keep at the size that suits "
    "the images, as 384 for views of 224]",
)
@click.option(
    "--image-size",
    type=click.IntRange(8, 2048),
    help="side of view of the runs to come, where another than suits the images",
)
@click.option("--shard-size", help="about how large each shard is: 500MB  [default: 1GB]")
@click.option("--workers", type=int, help="processes that write shards at once  [default: 1, with a thread a core]")
@overwrite_option("replace what --out names")
@set_option("a setting of the source: data.channels=1")
@plugin_file_option
@json_option
def prepare(
    src: str, out: Path, assignments: tuple[str, ...], plugin_file: Path | None, as_json: bool, **options: Any
) -> None:
    """Decode every image of SRC once and write them to one file, or to a folder of shards.

    SRC is a folder or a source's name, as in `akssl run --data SRC`. Runs take the file or folder in its place, with
    the same pixels, labels and probes: akssl run METHOD --data FILE. Room, memory and time are told first. Where it was
    stopped, the same command goes on with the first shard that is missing.
    """
    from ..running.result import prepare as prepare_data

    source = data_of(src, assignments)
    try:
        written = prepare_data(source, out, plugins=plugins_with(plugin_file), **options)
    except KeyboardInterrupt as error:
        ended = "is not finished; the same command goes on" if out.is_dir() else "was not written"
        raise click.ClickException(f"stopped; {out} {ended}.") from error
    click.echo(json.dumps(written.table(), indent=2) if as_json else written.text)

"""Commands about what a run has trained: judge it, and use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import describe
from ..errors import ConfigError
from .base import akssl, plugin_file_option, plugins_with, set_option, settings_of
from .data import named

if TYPE_CHECKING:
    from ..evaluation import Evaluation

PROTOCOLS = ("knn", "linear", "finetune")
data_option = click.option("--data", help="source name, folder or prepared file  [default: the data of the run]")
batch_option = click.option("--batch-size", type=int, default=256, show_default=True, help="images a forward pass")
device_option = click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True, help="where to compute"
)


@akssl.command("eval")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="knn", show_default=True, help="how to judge")
@data_option
@click.option("--labels", default="1.0", show_default=True, help="shares of the training labels: 0.01,0.1,1.0")
@click.option("--seeds", type=int, default=5, show_default=True, help="draws of the labels")
@click.option("--k", help="neighbours of the k-NN  [default: 10,20,100,200]")
@click.option("--weights", type=click.Path(path_type=Path), help="compare with these weights, .safetensors: ImageNet's")
@click.option("--solver", type=click.Choice(("auto", "lbfgs", "sgd")), help="of the linear probe  [default: auto]")
@click.option("--epochs", type=int, help="of the fine-tuning  [default: 10]")
@click.option("--train-images", type=int, help="learn from at most so many images  [default: all]")
@click.option("--test-images", type=int, help="test on at most so many images  [default: all]")
@batch_option
@device_option
@set_option("a setting of the source: data.size=2000")
@plugin_file_option
@click.option("--json", "as_json", is_flag=True, help="print JSON")
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
    """Did it help? Judge a run's backbone beside raw pixels and the same backbone untrained.

    Accuracies come with 95 % intervals. The run is left as it is, but for RUN_DIR/evaluation.json, which collects what
    was found by protocol, data and share of labels.
    """
    shares = _numbers("labels", labels, float)
    ks = None if k is None else _numbers("k", k, int)
    source = _source(run_dir, data, assignments)
    from ..evaluation import evaluate

    try:
        found = evaluate(run_dir, data=source, labels=shares, k=ks, plugins=plugins_with(plugin_file), **options)
    except KeyboardInterrupt as error:
        raise click.ClickException("stopped; nothing was written.") from error
    click.echo(json.dumps(found.record(), indent=2) if as_json else _summary(found))


@akssl.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@data_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="file to write: .safetensors, .npz, .csv or .parquet"
)
@batch_option
@device_option
@click.option("--force", is_flag=True, help="replace the file that --out names")
@set_option("a setting of the source: data.channels=1")
@plugin_file_option
def embed(
    run_dir: Path,
    data: str | None,
    out: Path,
    batch_size: int,
    device: str,
    force: bool,
    assignments: tuple[str, ...],
    plugin_file: Path | None,
) -> None:
    """Write the features of every image of some data, with ids and labels.

    RUN_DIR may also be a .safetensors file of a backbone. Images that cannot be read are named and left out.
    """
    source = _source(run_dir, data, assignments)
    from ..evaluation.embedding import embed_to_file

    plugins = plugins_with(plugin_file)
    try:
        saved = embed_to_file(
            run_dir, out, data=source, batch_size=batch_size, device=device, overwrite=force, plugins=plugins
        )
    except KeyboardInterrupt as error:
        raise click.ClickException(f"stopped; {out} was not written.") from error
    bad = saved.unreadable
    left_out = f", {len(bad)} unreadable and left out{named(bad)}" if bad else ""
    click.echo(f"{saved.path}: {saved.images} images, {saved.width} features each{left_out}")


def _source(run_dir: Path, data: str | None, assignments: tuple[str, ...]) -> Any:
    """What --data and --set mean together; None: the data of the run."""
    if not assignments:
        return data
    settings = settings_of({"data": data}, assignments)
    if other := sorted(settings.keys() - {"data"}):
        raise ConfigError(f"--set {other[0]}: only settings of the data apply here, --set data.NAME=VALUE.")
    table = settings["data"]
    if "name" not in table:
        from ..rundir.folder import RunDir

        return {**RunDir.open(run_dir).read_config()["data"], **table}
    return table


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers between commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "0.01,0.1,1.0" if kind is float else "10,20"
        raise ConfigError(f"--{option}: expected numbers with commas between, as {example}, got '{text}'.") from None


def _summary(found: Evaluation) -> str:
    """A table of the scores, what they mean, and the answer."""
    split = found.split
    with_k = found.protocol == "knn"
    header = ["labels", "images", *(["k"] if with_k else []), "system", "accuracy", "95 % interval", "draws"]
    lines = [
        [
            f"{100 * score.labels:g} %",
            str(score.images),
            *([str(score.k)] if with_k else []),
            score.system,
            f"{score.accuracy:.2f} %",
            f"{score.low:.2f} to {score.high:.2f}",
            str(len(score.draws)),
        ]
        for score in found.scores
    ]
    overlap = f"{split['overlap']} test images are also training images" if split["overlap"] else "no image in both"
    return "\n".join(
        [
            f"Protocol: {found.protocol}, {found.meaning}",
            f"Data: {found.data}, {split['train_images']} training and {split['test_images']} test images of "
            f"{split['classes']} classes ({split['how']}); {overlap}",
            f"Interval: {found.interval}",
            "",
            describe.table(header, lines),
            "",
            *(f"Note: {note}" for note in found.notes),
            found.answer,
            *([f"Written: {found.file}"] if found.file else []),
        ]
    )

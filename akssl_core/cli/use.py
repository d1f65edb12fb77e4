"""Commands that put a trained backbone to use, a run's or any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config.schema import user_path
from ..settings import dotted
from .base import (
    PATH,
    akssl,
    data_of,
    json_option,
    overwrite_option,
    parsed,
    plugin_file_option,
    plugins_with,
    set_option,
    show,
)
from .judge import batch_option, data_option, device_option

SET = "a setting of the data, data.channels=1, or of SOURCE, source.mean=[0.5,0.5,0.5]"


@akssl.command()
@click.argument("source")
@data_option
@click.option("--out", type=PATH, required=True, help="file to write: .safetensors, .npz, .csv or .parquet")
@click.option("--patches", is_flag=True, help="features of the patches, (rows, columns, D) an image")
@batch_option
@device_option
@overwrite_option("replace the file that --out names")
@set_option(SET)
@plugin_file_option
@json_option
def embed(
    source: str,
    data: str | None,
    out: Path,
    assignments: tuple[str, ...],
    plugin_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the features of every image of some data, with ids and labels.

    SOURCE is the folder of a run, a .safetensors file of weights or of a classifier, or the name of a backbone that has
    published ones, as timm/NAME. Images that cannot be read are named and left out.
    """
    weights, images = _given(source, data, assignments)
    from ..evaluation.embedding import embed_to_file

    try:
        saved = embed_to_file(weights, out, data=images, plugins=plugins_with(plugin_file), **options)
    except KeyboardInterrupt as error:
        raise click.ClickException(f"stopped; {out} was not written.") from error
    show(saved, as_json)


@akssl.command()
@click.argument("source")
@click.argument("query", type=PATH)
@data_option
@click.option("--k", type=int, default=10, show_default=True, help="images for each query")
@click.option("--features", type=PATH, help="file that akssl embed wrote of the data: .safetensors or .npz")
@click.option("--out", type=PATH, help="write one HTML page with the pictures too, search.html")
@overwrite_option("replace the file that --out names")
@batch_option
@device_option
@set_option(SET)
@plugin_file_option
@json_option
def search(
    source: str,
    query: Path,
    data: str | None,
    assignments: tuple[str, ...],
    plugin_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the images most alike to QUERY, an image or a folder, by the features of SOURCE.

    SOURCE is what `akssl embed` takes. All images are compared. Features that akssl embed has written are computed no
    second time with --features FILE.
    """
    weights, images = _given(source, data, assignments)
    from ..evaluation.searching import search as search_in

    show(search_in(weights, query, data=images, plugins=plugins_with(plugin_file), **options), as_json)


@akssl.command()
@click.argument("source")
@data_option
@click.option("--labels", type=PATH, help="table that gives each image of --data its label: CSV, ...")
@click.option("--test-data", type=PATH, help="labelled test images: folder, table or archive")
@click.option("--out", type=PATH, required=True, help="file to write, .safetensors")
@click.option("--share", type=float, default=1.0, show_default=True, help="of the training labels that are used")
@click.option("--parts", default="all", show_default=True, help="all, or head: the backbone stays as it is")
@click.option("--epochs", type=int, default=10, show_default=True, help="of training all parts")
@click.option("--scratch/--no-scratch", default=True, help="compare with the same network from random weights")
@click.option("--seed", type=int, default=0, show_default=True, help="of what is held out, drawn and ordered")
@batch_option
@device_option
@overwrite_option("replace the file that --out names")
@set_option(SET)
@plugin_file_option
@json_option
def finetune(
    source: str,
    data: str | None,
    assignments: tuple[str, ...],
    plugin_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a classifier on the backbone of SOURCE, calibrate it, judge it and keep it.

    SOURCE is what `akssl embed` takes. A linear layer learns on the frozen backbone, then both learn. Its accuracy
    stands beside that of the layer alone and of the same network from random weights.
    """
    weights, images = _given(source, data, assignments)
    from ..evaluation.classifying import finetune as finetune_on

    try:
        found = finetune_on(weights, data=images, plugins=plugins_with(plugin_file), **options)
    except KeyboardInterrupt as error:
        raise click.ClickException(f"stopped; {options['out']} was not written.") from error
    show(found, as_json)


@akssl.command()
@click.argument("model", type=PATH)
@data_option
@click.option("--out", type=PATH, help="table to write: .csv, .parquet or .npz")
@batch_option
@device_option
@overwrite_option("replace the file that --out names")
@set_option("a setting of the data, data.channels=1")
@plugin_file_option
@json_option
def predict(
    model: Path, data: str | None, assignments: tuple[str, ...], plugin_file: Path | None, as_json: bool, **options: Any
) -> None:
    """Say of every image which class MODEL takes it for, and how sure that is.

    MODEL is a file that `akssl finetune` has written. Images that cannot be read are named and left out.
    """
    from ..evaluation.predicting import predict as predict_by

    images = data_of(data, assignments, model)
    show(predict_by(model, images, plugins=plugins_with(plugin_file), **options), as_json)


@akssl.command()
@click.argument("source")
@data_option
@click.option("--out", type=PATH, help="write one HTML page with the pictures too, dedup.html")
@click.option("--list-to", type=PATH, help="write the paths of the copies too, one a line, delete.txt")
@overwrite_option("replace the files that --out and --list-to name")
@batch_option
@device_option
@set_option(SET)
@plugin_file_option
@json_option
def dedup(
    source: str, data: str | None, assignments: tuple[str, ...], plugin_file: Path | None, as_json: bool, **options: Any
) -> None:
    """Find near copies: images recompressed, resized, cropped by up to 5 % or of other brightness. None is deleted.

    SOURCE is what `akssl embed` takes. Of each group of copies the largest is named as the one to keep.
    """
    weights, images = _given(source, data, assignments)
    from ..evaluation.copies import dedup as copies_in

    show(copies_in(weights, data=images, plugins=plugins_with(plugin_file), **options), as_json)


def _given(source: str, data: str | None, assignments: tuple[str, ...]) -> tuple[Any, Any]:
    """SOURCE with its settings, and the data that --data and --set mean; None: those of the run."""
    own = [text for text in assignments if text.startswith("source.")]
    table = dotted([parsed(text.removeprefix("source.")) for text in own])
    others = tuple(text for text in assignments if text not in own)
    return {"source": source, **table} if table else source, data_of(data, others, user_path(source))

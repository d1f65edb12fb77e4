"""Commands that put a trained backbone to use, a run's or any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    labels_option,
    overwrite_option,
    parsed,
    plugin_file_option,
    plugins_with,
    set_option,
    show,
    test_data_option,
)
from .judge import batch_option, data_option, device_option

SHARED = ("data", "assignments", "plugin_file", "as_json")
SET = "a setting of the data, data.channels=1, or of SOURCE, source.mean=[0.5,0.5,0.5]"


def on_data(of_set: str, data: Callable[[Any], Any] = data_option) -> Callable[[Any], Any]:
    """The options that these commands share: which images, in batches of what size and where, and how to answer."""

    def added(function: Any) -> Any:
        last = (batch_option, device_option, set_option(of_set), plugin_file_option, json_option)
        for option in reversed(last):
            function = option(function)
        return data(function)

    return added


@akssl.command()
@click.argument("source")
@click.option("--out", type=PATH, required=True, help="file to write: .safetensors, .npz, .csv or .parquet")
@click.option("--patches", is_flag=True, help="features of the patches, (rows, columns, D) an image")
@overwrite_option("replace the file that --out names")
@on_data(SET)
def embed(out: Path, **asked: Any) -> None:
    """Write the features of every image of some data, with ids and labels.

    SOURCE is the folder of a run, a .safetensors file of weights or of a classifier, or the name of a backbone that has
    published ones, as timm/NAME. Images that cannot be read are named and left out.
    """
    from ..evaluation.embedding import embed_to_file

    _answer(embed_to_file, asked, path=out)


@akssl.command()
@click.argument("source")
@click.argument("query", type=PATH)
@click.option("--k", type=int, default=10, show_default=True, help="images for each query")
@click.option("--features", type=PATH, help="file that akssl embed wrote of the data: .safetensors or .npz")
@click.option("--out", type=PATH, help="write one HTML page with the pictures too, search.html")
@overwrite_option("replace the file that --out names")
@on_data(SET)
def search(**asked: Any) -> None:
    """Find the images most alike to QUERY, an image or a folder, by the features of SOURCE.

    SOURCE is what `akssl embed` takes. All images are compared. Features that akssl embed has written are computed no
    second time with --features FILE.
    """
    from ..evaluation.searching import search as search_in

    _answer(search_in, asked)


@akssl.command()
@click.argument("source")
@labels_option
@test_data_option
@click.option("--out", type=PATH, required=True, help="file to write, .safetensors")
@click.option("--share", type=float, default=1.0, show_default=True, help="of the training labels that are used")
@click.option("--parts", default="all", show_default=True, help="all, or head: the backbone stays as it is")
@click.option("--epochs", type=int, help="of training all parts, exactly  [default: 10, at least 500 steps]")
@click.option("--scratch/--no-scratch", default=True, help="compare with the same network from random weights")
@click.option("--seed", type=int, default=0, show_default=True, help="of what is held out, drawn and ordered")
@overwrite_option("replace the file that --out names")
@on_data(SET)
def finetune(**asked: Any) -> None:
    """Train a classifier on the backbone of SOURCE, calibrate it, judge it and keep it.

    SOURCE is what `akssl embed` takes. A linear layer learns on the frozen backbone, then both learn. Its accuracy
    stands beside that of the layer alone and of the same network from random weights.
    """
    from ..evaluation.classifying import finetune as finetune_on

    _answer(finetune_on, asked)


@akssl.command()
@click.argument("model", type=PATH)
@click.option("--out", type=PATH, help="table to write: .csv, .parquet or .npz")
@overwrite_option("replace the file that --out names")
@on_data(
    "a setting of the data, data.channels=1",
    click.option("--data", help="source name, folder, table, archive or prepared file"),
)
def predict(model: Path, **asked: Any) -> None:
    """Say of every image which class MODEL takes it for, and how sure that is.

    MODEL is a file that `akssl finetune` has written. Images that cannot be read are named and left out.
    """
    from ..evaluation.predicting import predict as predict_by

    _answer(predict_by, asked, model=model)


@akssl.command()
@click.argument("source")
@click.option("--out", type=PATH, help="write one HTML page with the pictures too, dedup.html")
@click.option("--list-to", type=PATH, help="write the paths of the copies too, one a line, delete.txt")
@overwrite_option("replace the files that --out and --list-to name")
@on_data(SET)
def dedup(**asked: Any) -> None:
    """Find near copies: images recompressed, resized, cropped by up to 5 % or of other brightness. None is deleted.

    SOURCE is what `akssl embed` takes. Of each group of copies the largest is named as the one to keep.
    """
    from ..evaluation.copies import dedup as copies_in

    _answer(copies_in, asked)


def _answer(work: Callable[..., Any], asked: Mapping[str, Any], **given: Any) -> None:
    """Do the work on the data that were asked for, and show what comes of it."""
    options = {name: value for name, value in asked.items() if name not in SHARED}
    assignments = asked["assignments"]
    if "source" in options:
        options["source"], data = _given(options["source"], asked["data"], assignments)
    else:
        data = data_of(asked["data"], assignments, given["model"])
    try:
        found = work(**options, **given, data=data, plugins=plugins_with(asked["plugin_file"]))
    except KeyboardInterrupt as error:
        raise click.ClickException("stopped; nothing was written.") from error
    show(found, asked["as_json"])


def _given(source: str, data: str | None, assignments: tuple[str, ...]) -> tuple[Any, Any]:
    """SOURCE with its settings, and the data that --data and --set mean; None: those of the run."""
    own = [text for text in assignments if text.startswith("source.")]
    table = dotted([parsed(text.removeprefix("source.")) for text in own])
    others = tuple(text for text in assignments if text not in own)
    return {"source": source, **table} if table else source, data_of(data, others, user_path(source))

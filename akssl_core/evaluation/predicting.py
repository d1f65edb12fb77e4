"""What a classifier says of images: in memory, or in a table."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import describe
from ..config.schema import user_path
from ..data.prepare import named
from ..errors import visible
from ..exporting.classifier import load_classifier
from ..plugins.manager import Plugins, installed
from ..rundir.files import atomic_file
from .embedding import Ids, refuse_table, work_on
from .opened import Trained

TABLES = (".csv", ".parquet", ".npz")


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of images."""

    ids: Ids
    """The images: names of files where there are any, else numbers."""
    probabilities: Tensor
    """(N, K) float32, a row an image."""
    classes: tuple[str, ...]
    """The K names."""
    unreadable: Mapping[str, str]
    """Images that could not be read and are left out: name -> reason."""
    path: Path | None = None
    """The file, where one was written."""

    @property
    def predicted(self) -> list[str]:
        """The likeliest class of each image."""
        return [self.classes[i] for i in self.probabilities.argmax(1).tolist()]

    @property
    def text(self) -> str:
        """How many images each class has, as `akssl predict` prints it."""
        counts = Counter(self.predicted)
        rows = [[visible(name), str(counts[name])] for name in self.classes]
        left_out = (
            f", {len(self.unreadable)} unreadable and left out{named(self.unreadable)}" if self.unreadable else ""
        )
        where = "" if self.path is None else f"{self.path}: "
        return f"{where}{len(self.ids)} images{left_out}\n{describe.table(['class', 'images'], rows)}"

    def record(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON: each image with its class and how sure that is."""
        sure = self.probabilities.max(1).values.tolist()
        each = [
            dict(zip(("id", "class", "probability"), one, strict=True))
            for one in zip(self.ids, self.predicted, sure, strict=True)
        ]
        return {
            "path": None if self.path is None else str(self.path),
            "images": each,
            "unreadable": dict(self.unreadable),
        }


def predict(
    model: str | Path,
    data: Any,
    out: str | Path | None = None,
    *,
    backbone: nn.Module | None = None,
    batch_size: int = 256,
    device: str = "auto",
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> Predicted:
    """What a classifier that `finetune` has written says of every image of some data, labelled or not.

    Args:
        model: the file of the classifier.
        data: images as `run` takes them.
        out: file to write: .csv or .parquet with the columns id, class, probability and one for each class, or .npz
            with the arrays ids, probabilities and classes.
        backbone: your own network, to be filled, if the run trained one.
        batch_size: images a forward pass.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        overwrite: replace the file `out`.
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: there is no such classifier or data, no image can be read, or the file must not be written.
    """
    path = None if out is None else user_path(out)
    if path is not None:
        refuse_table(path, TABLES, overwrite=overwrite)
    plugins = plugins or installed()
    loaded = load_classifier(model, module=backbone, plugins=plugins)
    work = work_on(Trained(user_path(model), loaded, None, plugins), data, batch_size=batch_size, device=device)
    with torch.random.fork_rng(devices=[]):
        found = work.embedded()
    result = Predicted(found.ids, found.features, loaded.classes, found.unreadable, path)
    if path is not None:
        _write(result, path)
    return result


def _write(found: Predicted, path: Path) -> None:
    """The file of predictions, whole or not at all."""
    with atomic_file(path) as file:
        if path.suffix.lower() == ".npz":
            ids, classes = np.array(found.ids), np.array(found.classes)
            np.savez(file, ids=ids, classes=classes, probabilities=found.probabilities.numpy())
            return
        sure = found.probabilities.max(1).values
        columns = {"id": found.ids, "class": found.predicted, "probability": sure.tolist()}
        each = [(f"p_{name}", of.tolist()) for name, of in zip(found.classes, found.probabilities.T, strict=True)]
        if path.suffix.lower() == ".parquet":
            import pyarrow as pa  # type: ignore[import-untyped]
            from pyarrow import parquet

            names, values = zip(*columns.items(), *each, strict=True)
            parquet.write_table(pa.Table.from_arrays([pa.array(of) for of in values], names=list(names)), file)
            return
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        writer = csv.writer(text)
        writer.writerow([*columns, *(name for name, _ in each)])
        writer.writerows(zip(*columns.values(), *(of for _, of in each), strict=True))
        text.detach()

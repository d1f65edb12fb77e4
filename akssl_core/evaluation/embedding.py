"""Features of a data set by a trained backbone, in memory or in a file."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..config.schema import validate
from ..console import Progress
from ..data import ImageSet, Pixels, StoredImages
from ..data.prepare import named
from ..errors import ConfigError, DataError, did_you_mean
from ..metrics.features import features_of, patches_of
from ..plugins.manager import Plugins
from ..rundir.files import atomic_file, refuse_file, tensor_bytes
from ..settings import TrainSpec
from ..training.hardware import choose_hardware
from .opened import Trained, at_least_one, open_weights

FEATURES_FORMAT = "akssl-features-1"  # of a .safetensors file
FORMATS = (".safetensors", ".npz", ".csv", ".parquet")
WITH_PATCHES = FORMATS[:2]
Ids = list[int] | list[str]


class _Three(NamedTuple):
    features: Tensor
    ids: Ids
    labels: Tensor | None


class Embedded(_Three):
    """Three things, which may be unpacked: `features, ids, labels = embed(...)`.

    `features` is [N, D] float32 on the CPU, of patches [N, rows, columns, D]; `ids` are the names of the image files
    where there are any, else the indices of the images; `labels` is [N] int64 with -1 for "unknown", or None where no
    image has one. `classes` are the names of the labels where they have names. Images that cannot be read are left out;
    `unreadable` has their ids with the reasons.
    """

    classes: tuple[str, ...] | None = None
    unreadable: Mapping[str, str] = {}  # never changed in place

    @property
    def text(self) -> str:
        """How many features there are, and which images could not be read."""
        return _counted(tuple(self.features.shape), self.unreadable)


@dataclass(frozen=True)
class Saved:
    """A file of features."""

    path: Path
    shape: tuple[int, ...]  # of the features
    unreadable: Mapping[str, str]  # id -> reason; left out

    @property
    def text(self) -> str:
        """Where and how many they are, as `akssl embed` prints it."""
        return f"{self.path}: {_counted(self.shape, self.unreadable)}"

    def record(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        return {"path": str(self.path), "shape": list(self.shape), "unreadable": dict(self.unreadable)}


def _counted(shape: tuple[int, ...], unreadable: Mapping[str, str]) -> str:
    left_out = f", {len(unreadable)} unreadable and left out{named(unreadable)}" if unreadable else ""
    images, *grid, width = shape
    each = f"{' x '.join(map(str, grid))} patches with {width} features each" if grid else f"{width} features each"
    return f"{images} images, {each}{left_out}"


def embed(
    source: str | Path | Mapping[str, Any],
    *,
    data: Any = None,
    backbone: nn.Module | None = None,
    patches: bool = False,
    batch_size: int = 256,
    device: str = "auto",
    plugins: Plugins | None = None,
) -> Embedded:
    """Features of every image of some data by a trained backbone, in the order of the data.

    Args:
        source: the folder of a run that has ended, a `.safetensors` file of weights or of a classifier, the name of a
            backbone that has published ones, or a table as of `BackboneSource`: {"source": "w.safetensors",
            "mean": ..., "std": ...}.
        data: what `run` takes as data, labelled or not. Default: the data of the run.
        backbone: your own network, to be filled, if the run trained one.
        patches: features of the patches, or of the places in a CNN's last map, in place of those of whole images.
        batch_size: images a forward pass.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: there are no such weights or data, or no image of it can be read.
    """
    trained = open_weights(source, backbone=backbone, plugins=plugins)
    work = work_on(trained, data, batch_size=batch_size, device=device, patches=patches)
    with torch.random.fork_rng(devices=[]):
        return work.embedded()


def embed_to_file(
    source: str | Path | Mapping[str, Any],
    path: Path,
    *,
    data: Any = None,
    backbone: nn.Module | None = None,
    patches: bool = False,
    batch_size: int = 256,
    device: str = "auto",
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> Saved:
    """The same in a file, which appears whole or not at all. CSV and Parquet hold one batch in memory at a time.

    These two take no patches. `.safetensors` and `.npz` say of which network the features are.
    `.safetensors`: tensors `features`, `labels`, and `ids`, or `names`, which is UTF-8 with a zero byte between names.
    `.npz`: arrays `features`, `ids`, `labels`, `classes`. `.csv`: columns id, label, class, f0, f1, ... `.parquet`:
    columns id, label, class and features, a list of float32 (`pip install akssl-core[parquet]`). What the data do
    not have is left out.

    Raises:
        AksslError: as `embed`, or the file cannot or must not be written.
    """
    refuse_table(path, FORMATS, overwrite=overwrite)
    if patches and path.suffix.lower() not in WITH_PATCHES:
        raise ConfigError(f"--patches: '{path}' holds one row an image. Write {' or '.join(WITH_PATCHES)}.")
    trained = open_weights(source, backbone=backbone, plugins=plugins)
    work = work_on(trained, data, batch_size=batch_size, device=device, patches=patches)
    writers = {".safetensors": _safetensors, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    with torch.random.fork_rng(devices=[]), atomic_file(path) as file:
        shape = writers[path.suffix.lower()](work, file)
    return Saved(path, shape, dict(work.images.unreadable))


def refuse_table(path: Path, formats: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a file of another format, or that cannot or must not be written, before anything is computed."""
    suffix = path.suffix.lower()
    if suffix not in formats:
        hint = did_you_mean(suffix, formats)
        raise ConfigError(f"--out: '{path}' must end in one of {', '.join(formats)}.{hint}")
    refuse_file(path, overwrite=overwrite)
    if suffix == ".parquet":
        try:
            import pyarrow.parquet  # type: ignore[import-untyped] # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "--out: Parquet files need pyarrow, which is not installed: pip install 'akssl-core[parquet]'. Or "
                "write .npz or .csv."
            ) from error


# -- the work -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Work:
    """Images, and what turns them into features."""

    trained: Trained
    images: ImageSet
    data: str
    batch_size: int
    device: torch.device
    patches: bool

    def features(self, pixels: Pixels) -> Tensor:
        """Features (b, D), or of patches (b, rows, columns, D)."""
        backbone, preprocess = self.trained.backbone, self.trained.preprocess
        if not self.patches:
            return features_of(backbone, pixels, preprocess, device=self.device)
        found, grid = patches_of(backbone, pixels, preprocess, device=self.device)
        return found.reshape(len(found), *grid, -1)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features float32 on the CPU, and the positions (b,) of their images; those unreadable are left out."""
        done = 0
        self.trained.backbone.to(self.device)
        with Progress(len(self.images), "image") as progress:
            for start in range(0, len(self.images), self.batch_size):
                index = range(start, min(start + self.batch_size, len(self.images)))
                pixels = self.trained.preprocess.fetch(self.images, index)
                bad = {i for i, _ in pixels.unreadable}
                features = self.features(pixels)
                kept = torch.tensor([i for i in index if i not in bad], dtype=torch.int64)
                progress.update(len(index))
                if len(kept):
                    done += len(kept)
                    yield features.float().cpu()[kept - start], kept
        if not done:
            raise DataError(f"data: none of the {len(self.images)} images in {self.data} can be read.")

    def embedded(self) -> Embedded:
        """All features, laid out once, and what belongs to them."""
        features, count = torch.empty(0), 0
        kept = []
        for block, rows in self.blocks():
            features = features if count else block.new_empty(len(self.images), *block.shape[1:])
            features[count : count + len(block)] = block
            kept.append(rows)
            count += len(block)
        places = torch.cat(kept)
        result = Embedded(features[:count], self.ids(places), self.labels(places))
        result.classes, result.unreadable = self.images.classes, dict(self.images.unreadable)
        return result

    def ids(self, rows: Tensor) -> Ids:
        """Names of files, or numbers where images have no names."""
        names = [self.images.id_of(i) for i in rows.tolist()]
        return [int(name) for name in names] if self.numbered else names

    @property
    def numbered(self) -> bool:
        """Whether images have numbers for names."""
        return self.images.id_of(0).isdecimal() and self.images.id_of(len(self.images) - 1).isdecimal()

    def labels(self, rows: Tensor) -> Tensor | None:
        """The labels of these images, if any image has one."""
        labels = self.images.labels
        return None if labels is None or not (labels >= 0).any() else labels[rows]


def work_on(trained: Trained, data: Any, *, batch_size: int, device: str, patches: bool = False) -> Work:
    """A network and all images of some data, or of the run's own for None, ready to be computed.

    `data` may be an image set too.

    Raises:
        AksslError: there are no such data, or no such device.
    """
    at_least_one("batch_size", batch_size)
    hardware = choose_hardware(validate(TrainSpec, {"device": device, "precision": "fp32"}, registry=trained.plugins))
    if isinstance(data, ImageSet):
        return Work(trained, data, "the query", batch_size, hardware.device, patches)
    opened, name = trained.source(data)
    images = opened.all()
    if opened.left_out and data is not None:
        text = f"data: {opened.left_out} is not looked at, only what a run would train on; ask for it by itself"
        warnings.warn(text, UserWarning, stacklevel=3)
    if isinstance(images, StoredImages) and opened is not data:
        images.store.room = 0  # every image is looked at once, so none is kept in memory
    return Work(trained, images, name, batch_size, hardware.device, patches)


# -- files ----------------------------------------------------------------------------------------
def _safetensors(work: Work, file: IO[bytes]) -> tuple[int, ...]:
    found = work.embedded()
    text = "\0".join(map(str, found.ids)).encode("utf-8", "replace")
    names = {} if work.numbered else {"names": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    tensors = {"features": found.features, **(names or {"ids": torch.tensor(found.ids)})}
    tensors |= {} if found.labels is None else {"labels": found.labels}
    classes = {} if found.classes is None else {"classes": json.dumps(list(found.classes))}
    texts = {"format": FEATURES_FORMAT, "network": work.trained.network_hash, **classes}
    file.write(tensor_bytes(tensors, texts))
    return tuple(found.features.shape)


def _npz(work: Work, file: IO[bytes]) -> tuple[int, ...]:
    found = work.embedded()
    arrays = {"features": found.features.numpy(), "ids": np.array(found.ids), "network": work.trained.network_hash}
    arrays |= {} if found.labels is None else {"labels": found.labels.numpy()}
    arrays |= {} if found.classes is None else {"classes": np.array(found.classes)}
    np.savez(file, **arrays)  # type: ignore[arg-type] # numpy takes arrays by any name; none holds objects
    return tuple(found.features.shape)


def _csv(work: Work, file: IO[bytes]) -> tuple[int, ...]:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    writer, count = csv.writer(text), 0
    for features, rows in work.blocks():
        columns = _columns(work, rows)
        if not count:
            writer.writerow([*columns, *(f"f{i}" for i in range(features.shape[1]))])
        for cells, values in zip(zip(*columns.values(), strict=True), features.numpy(), strict=True):
            writer.writerow([*cells, *map(str, values)])  # the shortest text that gives the same float32 again
        count += len(rows)
    text.detach()  # flushes, and leaves the file open
    return count, work.trained.backbone.embed_dim


def _parquet(work: Work, file: IO[bytes]) -> tuple[int, ...]:
    import pyarrow as pa
    from pyarrow import parquet

    writer, count = None, 0
    try:
        for features, rows in work.blocks():
            values = pa.array(features.numpy().ravel())
            lists = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
            table = pa.table({**_columns(work, rows), "features": lists})
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            count += len(rows)
    finally:
        if writer is not None:
            writer.close()
    return count, work.trained.backbone.embed_dim


def _columns(work: Work, rows: Tensor) -> dict[str, Sequence[Any]]:
    """The columns beside the features of these images: ids, labels and classes."""
    labels, classes = work.labels(rows), work.images.classes
    columns: dict[str, Sequence[Any]] = {"id": work.ids(rows)}
    if labels is not None:
        columns["label"] = labels.tolist()
        if classes is not None:
            columns["class"] = [classes[label] if label >= 0 else "" for label in labels.tolist()]
    return columns

"""Which images of some data are most alike to others, by the features of a trained backbone."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import describe
from ..config.schema import user_path, validate
from ..data import ImageSet, nearest_path, open_source
from ..data.folder import Folder, FolderConfig, one_file
from ..data.prepare import named
from ..data.prepared_file import SUFFIX
from ..errors import ConfigError, DataError, visible
from ..metrics.nearest import nearest
from ..plugins.manager import Plugins
from ..reporting.html import Html, page, section, table, tag
from ..reporting.pictures import channel_note, picture
from ..rundir.files import read_tensors, refuse_file, write_atomic
from .embedding import FEATURES_FORMAT, WITH_PATCHES, Ids, Work, work_on
from .opened import Trained, at_least_one, open_weights

ON_A_PAGE = 100  # queries with pictures; a page of more is slow to open
FEW = 32  # queries for which a pass over the features costs more than the products
TOGETHER = 64  # pictures decoded at a time


@dataclass(frozen=True)
class Searched:
    """The images nearest to each query, the nearest first."""

    queries: Ids
    """The query images: names of files where there are any, else numbers."""
    images: list[Ids]
    """The images nearest to each query, by name or number."""
    distances: Tensor
    """[Q, k] float32: 1 minus the cosine of the features, from 0 (the same direction) to 2."""
    unreadable: Mapping[str, str]
    """Images that could not be read and are left out: name -> reason."""
    page: Path | None = None
    """The page with pictures, where one was written."""

    @property
    def text(self) -> str:
        """A line for each query and neighbour, as `akssl search` prints it."""
        rows = [
            [visible(str(query)), str(rank), f"{distance:.4f}", visible(str(image))]
            for query, near, distances in zip(self.queries, self.images, self.distances.tolist(), strict=True)
            for rank, (image, distance) in enumerate(zip(near, distances, strict=True), 1)
        ]
        parts = [describe.table(["query", "rank", "distance", "image"], rows)]
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable and left out{named(self.unreadable)}")
        return "\n\n".join(parts if self.page is None else [*parts, f"The page: {self.page}"])

    def record(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        found = [
            {"query": query, "nearest": [{"image": i, "distance": d} for i, d in zip(near, distances, strict=True)]}
            for query, near, distances in zip(self.queries, self.images, self.distances.tolist(), strict=True)
        ]
        page = None if self.page is None else str(self.page)
        return {"queries": found, "unreadable": dict(self.unreadable), "page": page}


def search(
    source: str | Path | Mapping[str, Any],
    query: Any,
    *,
    data: Any = None,
    k: int = 10,
    features: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    backbone: nn.Module | None = None,
    batch_size: int = 256,
    device: str = "auto",
    plugins: Plugins | None = None,
) -> Searched:
    """The images of some data that are most alike to one image or several, by the features of a trained backbone.

    All images are compared, by the cosine; distances closer than 1e-6 count as equal, and the earlier image comes
    first. Beside the features this takes some 100 MB, however many images there are.

    Args:
        source: a run, a file of weights, a name or a table, as `embed` takes it.
        query: the path of an image or a folder, or what else `run` takes as data.
        data: the images to search in. Default: the data of the run.
        k: how many images for each query.
        features: a `.safetensors` or `.npz` file that `akssl embed` wrote of the data, which are then not read.
        out: an HTML page to write, with the pictures of up to 100 queries.
        overwrite: replace a file that `out` names.
        backbone: your own network, to be filled, if the run trained one.
        batch_size: images a forward pass.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: there are no such weights, data or query, the features are those of another network, or the page
            cannot be written there.
    """
    at_least_one("k", k)
    file = None if out is None else user_path(out)
    if file is not None:
        refuse_file(file, overwrite=overwrite, page=True)
    trained = open_weights(source, backbone=backbone, plugins=plugins)
    asked = work_on(trained, _queries(query, trained), batch_size=batch_size, device=device)
    known = None if features is None else read_features(user_path(features), trained)
    bank = None if known and not file else work_on(trained, data, batch_size=batch_size, device=device)
    with torch.random.fork_rng(devices=[]):
        queries = asked.embedded()
        if known is None:
            assert bank is not None
            known = bank.embedded()[:2]
    similarity, index = nearest(known[0], queries.features, k, asked.device, few=len(queries.ids) <= FEW)
    ids: list[Any] = [[known[1][i] for i in row] for row in index.tolist()]
    unreadable = {**queries.unreadable, **(bank.images.unreadable if bank else {})}
    found = Searched(queries.ids, ids, (1 - similarity).clamp_(min=0).float(), unreadable, file)
    if file is not None:
        assert bank is not None
        write_atomic(file, _page(found, asked.images, bank).encode())
    return found


def _queries(query: Any, trained: Trained) -> ImageSet:
    """The images that are asked about.

    Raises:
        DataError: there is none.
    """
    try:
        if isinstance(query, str | Path):
            path = user_path(query)
            if not path.exists():
                near = nearest_path(path)
                hint = f" Did you mean '{near}'?" if near else ""
                raise DataError(f"query: there is no '{path}'.{hint} Give an image, or a folder of images.")
            if path.is_dir() or path.suffix.lower() != SUFFIX:
                query = trained.alike({"name": Folder.name, "path": str(path)})
            if path.is_file() and path.suffix.lower() != SUFFIX:
                table = {key: value for key, value in query.items() if key != "name"}
                return one_file(path, validate(FolderConfig, table, registry=trained.plugins))
        return open_source(query, trained.plugins, trained.preprocess.size).all()
    except DataError as error:
        raise DataError(f"query: {str(error).removeprefix('data: ').removeprefix('query: ')}") from error


def read_features(file: Path, trained: Trained) -> tuple[Tensor, Ids]:
    """Features [N, D] of this network, and the ids of their images, from a file that `embed_to_file` wrote.

    Raises:
        ConfigError: there is no such file, or it holds something else.
        RunDirError: it is damaged.
    """
    again = f"Write it with this one: akssl embed {trained.path} --data DATA --out {file.stem}.safetensors"
    if file.suffix.lower() not in WITH_PATCHES:
        raise ConfigError(f"features: '{file}' must end in {' or '.join(WITH_PATCHES)}. {again}")
    if not file.is_file():
        near = nearest_path(file)
        raise ConfigError(f"features: there is no '{file}'.{f' Did you mean {str(near)!r}?' if near else ''} {again}")
    features, ids, network = (_of_npz if file.suffix.lower() == ".npz" else _of_safetensors)(file)
    if features.ndim != 2 or len(features) != len(ids):
        raise ConfigError(f"features: '{file}' has the shape {tuple(features.shape)}; expected a row an image. {again}")
    width = trained.backbone.embed_dim
    if features.shape[1] != width or network not in (None, trained.network_hash):
        what = f"{features.shape[1]} a row, and this one has {width}" if features.shape[1] != width else "as wide"
        raise ConfigError(f"features: those in '{file}' are of another network ({what}). {again}")
    return features, ids


def _of_safetensors(file: Path) -> tuple[Tensor, Ids, str | None]:
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != FEATURES_FORMAT or "features" not in tensors:
        raise ConfigError(f"features: '{file}' was not written by akssl embed.")
    if "names" in tensors:
        return tensors["features"], _names(tensors["names"]), metadata.get("network")
    return tensors["features"], tensors["ids"].tolist(), metadata.get("network")


def _names(text: Tensor) -> list[str]:
    return text.numpy().tobytes().decode("utf-8", "replace").split("\0")


def _of_npz(file: Path) -> tuple[Tensor, Ids, str | None]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            features, ids = torch.from_numpy(arrays["features"]), arrays["ids"].tolist()
            return features, ids, str(arrays["network"]) if "network" in arrays else None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"features: '{file}' is damaged or was not written by akssl embed: {error}") from error


# -- the page ---------------------------------------------------------------------------------------
def _page(found: Searched, asked: ImageSet, bank: Work) -> str:
    """Each query beside the images found for it."""
    queries, images = found.queries[:ON_A_PAGE], found.images[:ON_A_PAGE]
    first = pictures_of(asked, queries, "the query")
    shown = pictures_of(bank.images, [image for near in images for image in near], bank.data)
    rows = []
    for n, (query, near) in enumerate(zip(queries, images, strict=True)):
        distances = [f"{value:.4f}" for value in found.distances[n].tolist()]
        cells = [captioned(shown[str(i)], f"{d}  {i}") for i, d in zip(near, distances, strict=True)]
        rows.append([str(n + 1), captioned(first[str(query)], str(query)), *cells])
    columns = ["", "query", *(f"nearest {rank}" for rank in range(1, found.distances.shape[1] + 1))]
    of = f"The first {len(queries)} of {len(found.queries)} queries. " if len(found.queries) > len(queries) else ""
    said = f"{of}Each row is an image and those of {bank.data} most alike to it by {bank.trained.path}, with distances."
    text = tag("p", said, channel_note(bank.images.channels), class_="quiet")
    return page(
        "Search",
        tag("header", tag("h1", "Search")),
        section("Nearest images", text, table(columns, rows, kind="pictures")),
    )


def pictures_of(images: ImageSet, wanted: Sequence[Any], data: str) -> dict[str, Html]:
    """An <img> of each of these images, by its id.

    Raises:
        DataError: one is not among the images.
    """
    names = set(map(str, wanted))
    rows = {name: i for i in range(len(images)) if (name := images.id_of(i)) in names}
    if missing := sorted(names - rows.keys()):
        raise DataError(
            f"data: {data} has no image '{visible(missing[0])}', of which there are features. Give the data that the "
            f"features were made of: --data DATA."
        )
    found: dict[str, Html] = {}
    for start in range(0, len(rows), TOGETHER):
        some = list(rows.items())[start : start + TOGETHER]
        pixels = images.fetch([i for _, i in some]).each()
        found |= {name: picture(image, name) for (name, _), image in zip(some, pixels, strict=True)}
    return found


def captioned(image: Html, caption: str) -> Html:
    """A picture with a line under it, which the pointer shows whole."""
    return tag("div", image, tag("div", caption, class_="mate", title=caption))

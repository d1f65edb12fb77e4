"""Data sets decoded once into one file, from which training reads the same pixels as from the source."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import validate
from ..console import Progress
from ..errors import ConfigError, DataError, shown
from ..rundir.files import CannotWrite, TensorStream, alone_with, atomic_file, refuse_file
from . import DatasetSource, ImageSet, StoredImages, Subset, suitable_size
from .convert import Square, is_whole, largest_view, shrink, trained_view, with_margin
from .opening import DataSpec, Sources, data_table, open_source
from .prepared_file import DEEP, FORMAT, SUFFIX, VERSION, VIEWS, NotPrepared, PreparedFile, Record, Unread
from .stored import first_few

Pools = list[tuple[int, ImageSet]]  # images, and the row at which they begin
SIDES = 8, 8192  # pixels that the shorter side of images can be reduced to
BATCH = 32  # images decoded at a time, fewer where they are large
BATCH_BYTES = 2**26


@dataclass(frozen=True)
class PreparedData:
    """Data that were decoded into one file."""

    path: Path
    """The file."""
    images: int
    """How many it holds, unreadable ones among them."""
    size: int
    """Of the file in bytes."""
    record: Record
    """The file's own description: channels, shorter side, classes."""
    classes: int
    """How many a label names."""
    unreadable: Mapping[str, str]
    """The reason by the name of the image; these are left out."""
    family: str | None
    """Of the source: the recipe that suits such data."""

    @property
    def text(self) -> str:
        """Where they are, what could not be read, and how to train from it: what `akssl data prepare` prints."""
        size = f"{self.size / 1e9:.2f} GB" if self.size >= 1e9 else f"{self.size / 1e6:.1f} MB"
        classes = f"{self.classes} classes" if self.classes else "no classes"
        facts = f"{self.images} images, {size}, {classes}, shorter side at most {self.record.side} px"
        lines = [f"{self.path}: {facts}, {len(self.unreadable)} unreadable{named(self.unreadable)}"]
        if self.family is not None:
            known = f"--recipe {self.family}"
            lines.append(f"Runs from a file do not choose the recipe of such data by themselves: {known}")
        return "\n".join([*lines, f"Train from it: akssl run simsiam --data {shlex.quote(str(self.path))}"])


def named(unreadable: Mapping[str, str]) -> str:
    """The first few names with their reasons."""
    return f": {first_few(unreadable)}{'; ...' if len(unreadable) > 3 else ''}" if unreadable else ""


def prepare(
    data: str | Path | Mapping[str, Any],
    path: Path,
    *,
    size: int | None,
    views: Sequence[int],
    image_size: int | None,
    overwrite: bool,
    plugins: Sources,
) -> PreparedData:
    """Decode every image of a source once and write one file; it appears whole or not at all.

    It also holds what a backbone is shown of images that had to be reduced, for views of `image_size`, `views` and the
    sizes that suit them.

    Raises:
        AksslError: the target or the source cannot be used, or too many images cannot be read.
    """
    _refuse(path, overwrite=overwrite)
    if size is not None and not (isinstance(size, int) and SIDES[0] <= size <= SIDES[1]):
        raise ConfigError(f"size: expected a whole number from {SIDES[0]} to {SIDES[1]}, got {shown(size)}.")
    spec = validate(DataSpec, {"data": data_table(data, plugins)}, registry=plugins)
    text = str(data["name"] if isinstance(data, Mapping) else data)
    source = open_source(spec.data, plugins, image_size or size)
    if size is not None:
        source.stored_side = size
    try:
        with alone_with(path):
            _refuse(path, overwrite=overwrite)  # another process may have made it by now
            return _write(source, path, text, views)
    except BlockingIOError as other:
        raise ConfigError(
            f"--out: another process (pid {other}) is writing {path}. Wait for it, or choose another name."
        ) from None
    except OSError as error:
        cause = error.cause if isinstance(error, CannotWrite) else error
        raise ConfigError(
            f"--out: cannot write {path}: {cause.strerror or cause}. Free some space or choose another place."
        ) from error


def _refuse(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written.

    Raises:
        ConfigError: another suffix, no such folder, or something is there.
    """
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(f"--out: '{path}' must end in {SUFFIX}, by which runs know such a file. Try {path}{SUFFIX}.")
    refuse_file(path, overwrite=overwrite)


def _write(source: DatasetSource, path: Path, text: str, views: Sequence[int]) -> PreparedData:
    train = source.train()
    trains_on_all = type(source).all is DatasetSource.all  # which would make the same images once more
    parts = {"all": train if trains_on_all else source.all(), "train": train}
    if (pair := source.probe()) is not None:
        parts |= {"bank": pair[0], "queries": pair[1]}
    pools, rows = _union(parts)
    count = sum(len(pool) for _, pool in pools)
    record = _record(source, parts, text, views)
    sizes, reduced = torch.zeros(count, 2, dtype=torch.int32), torch.zeros(count, dtype=torch.uint8)
    labels = _labels(parts, rows, count)
    every = torch.arange(count)  # "all" and "train" are written down where they are not this
    differing = {name: own for name, own in rows.items() if name in ("bank", "queries") or not torch.equal(own, every)}
    fixed = {**labels, **differing, "sizes": sizes, "reduced": reduced}
    metadata = {"format": FORMAT, "version": VERSION, "record": record.model_dump_json()}
    with atomic_file(path) as file:
        stream = TensorStream(file, fixed, ("pixels", "names", "unreadable"), metadata)
        reasons = _write_pixels(stream, pools, record, sizes, reduced)
        ids = _write_names(stream, pools, reasons)
        others = {name: why for part in parts.values() for name, why in part.unreadable.items() if name not in ids}
        unread = Unread(rows=reasons, others={_plain(name): _plain(why) for name, why in others.items()})
        stream.append("unreadable", unread.model_dump_json().encode())
        stream.finish()
        file.flush()
        _check(Path(file.name), source, text)
    classes = len({label for values in labels.values() for label in values.tolist() if label >= 0})
    return PreparedData(path, count, path.stat().st_size, record, classes, {**ids, **unread.others}, source.family)


def _check(draft: Path, source: DatasetSource, text: str) -> None:
    """Leave no file behind that runs would refuse; it takes a source whose labels or images are out of bounds."""
    try:
        PreparedFile.mapped(draft)
    except NotPrepared as error:
        raise DataError(
            f"data: {text} cannot be prepared: the file {error}. Mend the source '{source.name}', or train from it "
            f"as it is."
        ) from error


# -- which images there are -----------------------------------------------------------------------
def _union(parts: Mapping[str, ImageSet]) -> tuple[Pools, dict[str, Tensor]]:
    """Each image of the parts once, in pools with the row at which each begins, and the rows of each part."""
    origins = {name: _origin(images) for name, images in parts.items()}
    pools: dict[int, tuple[int, ImageSet]] = {}
    rows: dict[str, Tensor] = {}
    start = 0
    for key, whole, _ in origins.values():
        if key in pools:
            continue
        named = {name: own for name, (other, _, own) in origins.items() if other == key}
        is_member = torch.zeros(len(whole), dtype=torch.bool)
        for own in named.values():
            is_member[own] = True
        place = start - 1 + is_member.cumsum(0)
        rows |= {name: place[own] for name, own in named.items()}
        pools[key] = start, whole if is_member.all() else whole.subset(is_member.nonzero().flatten())
        start += int(is_member.sum())
    return list(pools.values()), rows


def _origin(images: ImageSet) -> tuple[int, ImageSet, Tensor]:
    """The set that some images are rows of, with a number that tells it apart, and which rows they are."""
    if isinstance(images, StoredImages):
        store = images.store
        store.room = 0  # every image is looked at once, so none is kept in memory
        return id(store), StoredImages(store, range(len(store)), images.side), torch.tensor(list(images.rows))
    if isinstance(images, Subset):
        key, whole, rows = _origin(images.whole)
        return key, whole, rows[images.rows]
    return id(images), images, torch.arange(len(images))


def _labels(parts: Mapping[str, ImageSet], rows: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The labels that any part has for its images; none where no part has any."""
    labels = torch.full((count,), -1)
    given = {name: images.labels for name, images in parts.items() if images.labels is not None}
    for name, own in given.items():
        labels[rows[name]] = torch.where(own >= 0, own, labels[rows[name]])
    return {"labels": labels} if given else {}


def _record(source: DatasetSource, parts: Mapping[str, ImageSet], text: str, views: Sequence[int]) -> Record:
    side, natural = source.stored_side, min(max(source.natural_size, VIEWS[0]), VIEWS[1])
    channels = sorted({images.channels for images in parts.values()})
    if len(channels) > 1:
        raise DataError(f"data: the parts of {text} have {channels} channels; expected one number for all of them.")
    classes = next((images.classes for images in parts.values() if images.classes is not None), None)
    natural = natural if with_margin(natural) <= side else suitable_size(largest_view(side))
    return Record(
        source=_plain(text),
        channels=channels[0],
        side=side,
        natural_size=natural,
        views=tuple(sorted({natural, suitable_size(trained_view(side)), *views})),
        classes=None if classes is None else tuple(map(_plain, classes)),
        mean=source.mean,
        std=source.std,
    )


# -- what is written of them ----------------------------------------------------------------------
@dataclass(frozen=True)
class _Squares:
    """What a backbone sees of an image at several sizes, one after the other."""

    of: tuple[Square, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """(N, c, H, W) uint8 as (N, 1, 1, values) float32."""
        return torch.cat([square(images).flatten(1) for square in self.of], 1)[:, None, None]


def _write_pixels(stream: TensorStream, pools: Pools, record: Record, sizes: Tensor, reduced: Tensor) -> dict[int, str]:
    """The pixels of every image, its size into `sizes`, and the reasons of those that cannot be read, by row.

    Behind an image that was reduced stand its squares, and `reduced` says so.
    """
    reasons: dict[int, str] = {}
    step = max(1, min(BATCH, BATCH_BYTES // (record.channels * record.side**2)))
    batches = (
        (first, pool, range(start, min(start + step, len(pool))))
        for first, pool in pools
        for start in range(0, len(pool), step)
    )
    cut = _Squares(tuple(Square.of(view, record.channels) for view in record.views))
    with Progress(len(sizes), "image") as progress:
        for first, pool, index in batches:
            pixels = pool.fetch(index)
            bad = {i: _plain(reason) for i, reason in pixels.unreadable}
            reasons |= {first + i: reason for i, reason in bad.items()}
            for i in [i for i in index if i not in bad]:
                image = pixels.image(i - index.start)
                if min(image.shape[1:]) > record.side:  # its source has not reduced it: a data set in memory
                    image = shrink(image, record.side)
                stream.append("pixels", image.numpy().tobytes())  # in the order of its axes, whatever its strides
                sizes[first + i] = torch.tensor(image.shape[1:])
                reduced[first + i] = DEEP * image.is_floating_point() + (not is_whole(image, record.side))
                if reduced[first + i] % DEEP:
                    stream.append("pixels", pool.squares([i], cut).images.numpy().tobytes())
            progress.update(len(index))
    return reasons


def _write_names(stream: TensorStream, pools: Pools, reasons: Mapping[int, str]) -> dict[str, str]:
    """The id of every image; the reasons again, by id."""
    unreadable = {}
    for first, pool in pools:
        for i in range(len(pool)):
            name = pool.id_of(i)
            stream.append("names", b"\0" * (first + i > 0) + _plain(name).encode())
            if first + i in reasons:
                unreadable[name] = reasons[first + i]
    return unreadable


def _plain(text: str) -> str:
    """A text as UTF-8 can write it, without the zeros that stand between names."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")

"""What is to be prepared of a source, and how some of its rows become one file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import DataError
from ..rundir.files import TensorStream, atomic_file
from . import DatasetSource, ImageSet, StoredImages, Subset, suitable_size
from .convert import Square, is_whole, largest_view, shrink, trained_view, with_margin
from .prepared_file import DEEP, FORMAT, VERSION, VIEWS, NotPrepared, PreparedFile, Record, Unread
from .shards import PreparedFiles
from .stored import usable_cores

Pools: TypeAlias = list[tuple[int, ImageSet]]  # images, and the row at which they begin
Batches: TypeAlias = Iterator[tuple[int, ImageSet, Sequence[int]]]  # the row at which a pool begins, it, some of it
Tell: TypeAlias = Callable[[int], None]  # is told how many images were done
BATCH = 32  # images decoded at a time, fewer where they are large
BATCH_BYTES = 2**26


@dataclass(frozen=True)
class Work:
    """A source as it is written down: each image of its parts once, in rows."""

    source: DatasetSource
    text: str  # what the source was called
    images: Mapping[str, ImageSet]  # by part
    pools: Pools
    parts: Mapping[str, Tensor]  # rows of each part, where these are not all
    labels: Mapping[str, Tensor]  # of all rows, where there are any
    record: Record

    @classmethod
    def of(cls, source: DatasetSource, text: str, views: Sequence[int], workers: int) -> Work:
        """All of a source, decoded by so many processes."""
        train = source.train()
        trains_on_all = type(source).all is DatasetSource.all  # which would make the same images once more
        images = {"all": train if trains_on_all else source.all(), "train": train}
        if (pair := source.probe()) is not None:
            images |= {"bank": pair[0], "queries": pair[1]}
        pools, rows = _union(images)
        count = sum(len(pool) for _, pool in pools)
        every = torch.arange(count)  # "all" and "train" are written down where they are not this
        parts = {name: own for name, own in rows.items() if name in ("bank", "queries") or not torch.equal(own, every)}
        for _, pool in pools:
            if pool.decoder is not None and workers > 1:
                pool.decoder.threads = max(1, usable_cores() // workers)
        return cls(
            source, text, images, pools, parts, _labels(images, rows, count), _record(source, images, text, views)
        )

    def __len__(self) -> int:
        return sum(len(pool) for _, pool in self.pools)

    def batches(self, rows: Sequence[int]) -> Batches:
        """These rows, which rise, in batches of one pool each."""
        step = max(1, min(BATCH, BATCH_BYTES // (self.record.channels * self.record.side**2)))
        for first, pool in self.pools:
            own = rows[bisect_left(rows, first) : bisect_left(rows, first + len(pool))]
            for start in range(0, len(own), step):
                yield first, pool, [row - first for row in own[start : start + step]]

    def mark(self, reasons: Mapping[int, str]) -> None:
        """Count in unreadable images that were met elsewhere: in another process, or before this one.

        Raises:
            DataError: they are too many.
        """
        for first, pool in self.pools:
            for row in [row - first for row in reasons if 0 <= row - first < len(pool)]:
                if isinstance(pool, StoredImages):
                    pool.store.mark(pool.rows[row], reasons[first + row])

    def others(self, rows: Mapping[int, str]) -> dict[str, str]:
        """What cannot be read and is none of these rows: id -> reason."""
        ids = {pool.id_of(row - first) for first, pool in self.pools for row in rows if 0 <= row - first < len(pool)}
        every = {name: why for part in self.images.values() for name, why in part.unreadable.items()}
        return {utf8(name): utf8(why) for name, why in every.items() if name not in ids}

    def check(self, draft: Path, opened: Callable[[Path], Any] = PreparedFiles.mapped) -> None:
        """Leave nothing behind that runs would refuse; it takes a source whose labels or images are out of bounds."""
        try:
            opened(draft)
        except NotPrepared as error:
            raise DataError(
                f"data: {self.text} cannot be prepared: the file {error}. Mend the source '{self.source.name}', or "
                f"train from it as it is."
            ) from error


def write_rows(work: Work, path: Path, rows: range, tell: Tell, shard: str = "") -> None:
    """One prepared file of some rows; it appears whole or not at all.

    Parts, and what is no row, are written to the file of a whole; those of shards stand in their index.
    """
    sizes, reduced = torch.zeros(len(rows), 2, dtype=torch.int32), torch.zeros(len(rows), dtype=torch.uint8)
    labels = {name: values[rows.start : rows.stop] for name, values in work.labels.items()}
    fixed = {**labels, **({} if shard else work.parts), "sizes": sizes, "reduced": reduced}
    texts = {"format": FORMAT, "version": VERSION, "record": work.record.model_dump_json()}
    texts |= {"shard": shard} if shard else {}
    reasons = {}
    with atomic_file(path) as file:
        stream = TensorStream(file, fixed, ("pixels", "names", "unreadable"), texts)
        for row, reason, made in images_of(work, rows, tell):
            if reason is not None:
                reasons[row] = reason
                continue
            for part in made:
                stream.append("pixels", part.numpy().tobytes())  # in the order of its axes, whatever its strides
            sizes[row - rows.start] = torch.tensor(made[0].shape[1:])
            reduced[row - rows.start] = DEEP * made[0].is_floating_point() + (len(made) > 1)
        between = b""
        for _, pool, index in work.batches(rows):
            for i in index:
                stream.append("names", between + utf8(pool.id_of(i)).encode())
                between = b"\0"
        others = {} if shard else work.others(reasons)
        unread = Unread(rows={row - rows.start: why for row, why in reasons.items()}, others=others)
        stream.append("unreadable", unread.model_dump_json().encode())
        stream.finish()
        file.flush()
        work.check(Path(file.name), PreparedFile.mapped if shard else PreparedFiles.mapped)


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
        source=utf8(text),
        channels=channels[0],
        side=side,
        natural_size=natural,
        views=tuple(sorted({natural, suitable_size(trained_view(side)), *views})),
        classes=None if classes is None else tuple(map(utf8, classes)),
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


def images_of(work: Work, rows: Sequence[int], tell: Tell) -> Iterator[tuple[int, str | None, tuple[Tensor, ...]]]:
    """Of each of these rows: the row, why its image cannot be read, or the image, and its squares if it was reduced."""
    record = work.record
    cut = _Squares(tuple(Square.of(view, record.channels) for view in record.views))
    for first, pool, index in work.batches(rows):
        pixels = pool.fetch(index)
        bad = dict(pixels.unreadable)
        images = {i: pixels.image(place) for place, i in enumerate(index) if i not in bad}
        for i, image in images.items():
            if min(image.shape[1:]) > record.side:  # its source has not reduced it: a data set in memory
                images[i] = shrink(image, record.side)
        reduced = [i for i, image in images.items() if not is_whole(image, record.side)]
        squares = dict(zip(reduced, pool.squares(reduced, cut).images, strict=True)) if reduced else {}
        for i in index:
            made = tuple(found[i] for found in (images, squares) if i in found)
            yield first + i, utf8(bad[i]) if i in bad else None, made
        tell(len(index))


def utf8(text: str) -> str:
    """A text as UTF-8 can write it, without the zeros that stand between names."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")

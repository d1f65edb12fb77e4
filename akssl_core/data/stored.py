"""Images that are decoded when they are asked for, remembered, and stood in for where they cannot be read."""

from __future__ import annotations

import os
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..errors import DataError, visible
from .base import ImageSet, Pixels
from .convert import Cut, is_whole
from .decode import Unreadable

Form: TypeAlias = int | Cut  # reduced to this shorter side, or as a backbone sees it
SAMPLE = 64  # headers read to learn the usual size and the channels


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ImageStore(ABC):
    """Images outside memory, decoded when they are asked for. It keeps decoded ones, and the names of unreadable ones.

    A subclass says where they lie (`cells`), how one is read (`header`, `decode`), its name (`id_of`) and how many
    `channels` it decodes to. `StoredImages` makes an image set of its rows.

    Args:
        count: the number of images; they are the rows 0 to count - 1.
        place: where they lie, for messages: "./photos".
        max_unreadable: share of the images that may be unreadable, rounded up to whole images; the setting of
            this name in the source's config.
        cache_gb: memory for decoded images in GiB.
        broken: entries that are not rows but count as unreadable images: id -> reason.
    """

    noun: ClassVar[str] = "images"
    """The word for rows in messages."""
    expected: ClassVar[str] = "can be read"
    """The end of the message "none of 64 images ..."."""
    threads: int = usable_cores()
    """How many threads decode a batch; 1: the one that fetches it; 0: nothing is decoded."""
    channels: int
    """Of every decoded image."""

    def __init__(
        self,
        count: int,
        place: str,
        *,
        max_unreadable: float,
        cache_gb: float,
        broken: Mapping[str, str] | None = None,
    ) -> None:
        self.count, self.place, self.share = count, place, max_unreadable
        self.unreadable = dict(broken or {})  # id -> reason
        self.reasons: dict[int, str] = {}  # by row: two names that are no text may look alike when printed
        self.total = count + len(self.unreadable)
        self.room = int(cache_gb * 2**30)
        self._kept: dict[tuple[Form, int], Tensor] = {}

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def cells(self, rows: Sequence[int]) -> Sequence[Any]:
        """The argument of `header` and `decode` for each of these rows: a path, bytes, a cell of a table."""

    @abstractmethod
    def header(self, cell: Any) -> tuple[int, int]:
        """(channels it is worth, shorter side) of one image, without decoding it.

        Raises:
            Unreadable: with the reason.
        """

    @abstractmethod
    def decode(self, cell: Any, side: int | None) -> Tensor:
        """One image as (channels, h, w), its shorter side at most `side`. Several threads call it at once.

        It is uint8, or float32 in 0..255 where it has more than 8 bits.

        None asks for the original, of which a backbone is shown its part; `decode_image` knows both.

        Raises:
            Unreadable: with the reason.
        """

    def id_of(self, row: int) -> str:
        """The name of an image for people: a file's path where there is one, else its number."""
        return str(row)

    def file_of(self, row: int) -> Path | None:
        """The file that an image lies in alone, where there is one."""
        return None

    def look(self, count: int | None = None) -> tuple[int, int]:
        """(most channels, median shorter side) of 64 images spread over the first `count`, by their headers.

        Raises:
            DataError: none of them can be read, or too many images cannot.
        """
        count = self.count if count is None else count
        rows = sorted({i * count // SAMPLE for i in range(SAMPLE)})
        seen, reasons = [], {}
        for row, cell in zip(rows, self.cells(rows), strict=True):
            try:
                seen.append(self.header(cell))
            except Unreadable as error:
                reasons[row] = str(error)
        if not seen:
            named = first_few({self.id_of(row): reason for row, reason in reasons.items()})
            looked_at = f"{len(rows)} {self.noun} looked at in {self.place}"
            raise DataError(f"data: none of {looked_at} {self.expected}: {named}.")
        for row, reason in reasons.items():
            self.mark(row, reason)
        self.check()
        return max(channels for channels, _ in seen), statistics.median_low(side for _, side in seen)

    def mark(self, row: int, reason: str) -> None:
        """Record an image that cannot be read.

        Raises:
            DataError: more than the allowed share cannot be read.
        """
        self.reasons[row] = self.unreadable[self.id_of(row)] = reason
        self.check()

    def check(self) -> None:
        """Stop when too many images cannot be read.

        Raises:
            DataError: with their number, share and first few names, and the setting to raise.
        """
        bad, count = len(self.unreadable), self.total
        if bad > ceil(self.share * count):
            raise DataError(
                f"data: {bad} of {count} {self.noun} in {self.place} cannot be read ({bad / count:.1%}, allowed "
                f"{self.share:.1%}): {first_few(self.unreadable)}. Repair or remove them, or raise data.max_unreadable."
            )

    def read(self, rows: Sequence[int], side: int) -> dict[int, Tensor]:
        """The images at these rows, reduced to a shorter side of `side`; those that cannot be read are left out.

        Raises:
            DataError: too many images cannot be read.
        """
        found = self._read(rows, side, lambda cell: (side, self.decode(cell, side)))
        return {row: image for row, (_, image) in found.items()}

    def squares(self, rows: Sequence[int], side: int, square: Cut) -> dict[int, Tensor]:
        """The same as a backbone sees them, cut out of the originals; `side` is that of the sets which train.

        An original that is no larger is kept for both uses.

        Raises:
            DataError: too many images cannot be read.
        """

        def one(cell: Any) -> tuple[Form, Tensor]:
            image = self.decode(cell, None)
            return (side, image) if is_whole(image, side) else (square, square(image[None])[0])

        kept = {row: self._kept[side, row] for row in rows if (side, row) in self._kept}
        found: dict[int, tuple[Form, Tensor]] = {
            row: (side, image) for row, image in kept.items() if is_whole(image, side)
        }
        found |= self._read([row for row in rows if row not in found], square, one)
        return {row: square(image[None])[0] if form == side else image for row, (form, image) in found.items()}

    def _read(
        self, rows: Sequence[int], form: Form, decode: Callable[[Any], tuple[Form, Tensor]]
    ) -> dict[int, tuple[Form, Tensor]]:
        """The images that are kept in this form, and the others decoded, which say in which form they may be kept."""
        wanted = dict.fromkeys(rows)
        images = {row: (form, self._kept[form, row]) for row in wanted if (form, row) in self._kept}
        missing = [row for row in wanted if row not in images and row not in self.reasons]
        for row, result in zip(missing, self._decoded(missing, decode), strict=True):
            if isinstance(result, Unreadable):
                self.mark(row, str(result))
            else:
                images[row] = result
                self._keep((result[0], row), result[1])
        return images

    def _decoded(
        self, rows: Sequence[int], decode: Callable[[Any], tuple[Form, Tensor]]
    ) -> list[tuple[Form, Tensor] | Unreadable]:
        """Decode in `threads` threads; they live for one batch alone."""

        def one(cell: Any) -> tuple[Form, Tensor] | Unreadable:
            try:
                return decode(cell)
            except Unreadable as error:
                return error

        cells = self.cells(rows) if rows else []
        if len(cells) <= 1 or self.threads <= 1:
            return [one(cell) for cell in cells]
        with ThreadPoolExecutor(self.threads, thread_name_prefix="akssl-decode") as pool:
            return list(pool.map(one, cells))

    def _keep(self, key: tuple[Form, int], image: Tensor) -> None:
        """Keep an image while there is room. Nothing is dropped: every image is as likely to come next."""
        if image.nbytes <= self.room:
            self._kept[key] = image
            self.room -= image.nbytes


class StoredImages(ImageSet):
    """Some rows of a store as images. One that cannot be read is stood in for by the next that can.

    The next one is looked for among these images alone, first among those with the same label, so that a
    bank never shows a query and a probe is not told a wrong label.

    Args:
        store: where the images come from; several sets may share its memory and its record.
        rows: those of the store that are shown, in this order.
        side: the shorter side that larger images are reduced to.
        labels: one a row, (N,) int64 with -1 for "unknown", or None.
        classes: their names, or None.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: Sequence[int],
        side: int,
        labels: Tensor | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.store, self.decoder = store, store if store.threads else None
        self.rows, self.side = rows, side
        self.labels, self.classes, self.channels = labels, classes, store.channels
        self._instead: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Sequence[int]) -> Pixels:
        """The images at these positions, in this order, reduced to a little more than the size of the views.

        Raises:
            DataError: too many images cannot be read.
        """
        return self._stacked(index, lambda rows: self.store.read(rows, self.side))

    def squares(self, index: Sequence[int], square: Cut) -> Pixels:
        """The same as a backbone sees them, cut out of the originals.

        Raises:
            DataError: too many images cannot be read.
        """
        return self._stacked(index, lambda rows: self.store.squares(rows, self.side, square))

    def _stacked(self, index: Sequence[int], read: Callable[[list[int]], dict[int, Tensor]]) -> Pixels:
        index = [int(i) for i in index]
        images = read([self.rows[i] for i in index])
        bad = tuple((i, self.store.reasons[self.rows[i]]) for i in index if self.rows[i] not in images)
        stand_ins = {i: self._stand_in(i, read) for i, _ in bad}
        return Pixels.stack([stand_ins[i] if i in stand_ins else images[self.rows[i]] for i in index], bad)

    def _stand_in(self, i: int, read: Callable[[list[int]], dict[int, Tensor]]) -> Tensor:
        """The image shown instead of image i: always the same one, found once."""
        for j in [self._instead[i]] if i in self._instead else self._after(i):
            for image in read([self.rows[j]]).values():
                self._instead[i] = j
                return image
        store = self.store
        bad = first_few(store.unreadable)
        raise DataError(f"data: none of {len(self)} {store.noun} in {store.place} can be read: {bad}.")

    def _after(self, i: int) -> Iterator[int]:
        """The other positions from i on, around the end; those with the same label first."""
        if self.labels is not None:
            same = torch.nonzero(self.labels == self.labels[i]).flatten()
            yield from same[same > i].tolist()
            yield from same[same < i].tolist()
        yield from range(i + 1, len(self))
        yield from range(i)

    def id_of(self, i: int) -> str:
        """The name that the store has for the image."""
        return self.store.id_of(self.rows[i])

    def file_of(self, i: int) -> Path | None:
        """The file that the store has it from."""
        return self.store.file_of(self.rows[i])

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The images of the whole store that could not be read so far: id -> reason."""
        return self.store.unreadable

    def subset(self, rows: Tensor) -> ImageSet:
        """Some of these images, with the same memory and the same record."""
        labels = None if self.labels is None else self.labels[rows]
        return StoredImages(self.store, [self.rows[i] for i in rows.tolist()], self.side, labels, self.classes)


def first_few(unreadable: Mapping[str, str]) -> str:
    """The first few names with their reasons, for a message."""
    return "; ".join(f"{visible(name)} ({visible(reason)})" for name, reason in sorted(unreadable.items())[:3])

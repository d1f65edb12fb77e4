"""The file that `akssl data prepare` writes: what it holds, and the check of one that comes from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field, FiniteFloat, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config.schema import S, Schema, first_mistake
from ..errors import DataError
from .base import LARGEST
from .convert import Square
from .scan import nearest_path

SUFFIX = ".safetensors"
FORMAT, VERSION = "akssl-images", "3"
READABLE = ("1", "2", VERSION)  # the first had no squares, the second no images of more than 8 bits
SHARDS = "akssl-shards"  # the format of an index, which names the rows of several such files
PARTS = ("all", "train", "bank", "queries")  # rows of each part, (n,) int64; without "all" or "train" it is every row
LONGEST = 65535  # side of an image in pixels
VIEWS = (8, 512)  # smallest and largest side of view that a file may ask for
MOST_CLASSES = 2**20  # of classes without names, which are counted in a table in memory

_DTYPES = {
    "pixels": "U8",
    "names": "U8",
    "unreadable": "U8",
    "reduced": "U8",
    "sizes": "I32",
    **dict.fromkeys(("labels", *PARTS), "I64"),
}
_FLOAT = 4  # bytes of a value of a square, and of an image with more than 8 bits
DEEP = 2  # in "reduced": the image has more than 8 bits; 1: it was reduced
_NEEDED = ("pixels", "sizes", "names", "unreadable")
_FORMATS: Mapping[str | None, tuple[Sequence[str], Sequence[str]]] = {  # their versions, and what they need
    FORMAT: (READABLE, _NEEDED),
    SHARDS: (("1",), ()),
}
Held: TypeAlias = tuple[dict[str, Tensor], dict[str, str], os.stat_result]  # tensors, texts, size and time of a file


class Record(Schema):
    """The description of the images in the header."""

    source: str = Field(description="what they were prepared from")
    channels: int = Field(ge=1, le=1024, description="of every image")
    side: int = Field(ge=1, le=LONGEST, description="the shorter side that larger images were reduced to")
    natural_size: int = Field(ge=VIEWS[0], le=VIEWS[1], description="the side of view that suits them")
    views: tuple[Annotated[int, Field(ge=1, le=LARGEST)], ...] = Field(
        (), max_length=8, description="sides of the squares behind each image that was reduced, cut from the original"
    )
    classes: tuple[str, ...] | None = Field(None, description="names of the classes")
    mean: tuple[FiniteFloat, ...] | None = Field(None, description="known statistics per channel")
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] | None = Field(
        None, description="known statistics per channel"
    )

    @model_validator(mode="after")
    def _one_a_channel(self) -> Record:
        for values in (self.mean, self.std):
            if values is not None and len(values) != self.channels:
                raise ValueError("mean and std have one number a channel")
        return self


class Unread(Schema):
    """The images that could not be read when the file was made. Such rows have no pixels; others stand in for them."""

    rows: dict[int, str] = Field(description="row -> reason")
    others: dict[str, str] = Field(description="id of what is no row -> reason")


class NotPrepared(Exception):
    """A file is not a prepared one, or is damaged; the text completes a sentence that begins with its name."""


@dataclass(frozen=True)
class PreparedFile:
    """A checked file. Pixels stay on disk: the file is mapped into memory, and what is looked at is read."""

    path: Path
    record: Record
    pixels: Tensor  # (bytes,) uint8: the images (C, h, w), one after the other
    sizes: Tensor  # (N, 2) int32: height and width; 0, 0 for an image that could not be read
    reduced: Tensor  # (N,) bool: the original was larger or longer
    deep: Tensor  # (N,) bool: its pixels are float32
    starts: Tensor  # (N,) int64: where in `pixels` each begins
    labels: Tensor | None  # (N,) int64, -1 for "unknown"
    names: Tensor  # uint8: the ids as UTF-8, a zero between two
    unread: Unread
    shard: str  # of which shards it is which; "" for a whole
    seen: os.stat_result  # of the file when it was mapped

    @classmethod
    def mapped(cls, path: Path, held: Held | None = None) -> PreparedFile:
        """Map a file, or take what it holds, and check all but its pixels, which may be anything.

        Raises:
            NotPrepared: with what is wrong.
        """
        tensors, metadata, seen = held or held_in(path)
        if metadata["format"] != FORMAT:
            raise NotPrepared("is damaged: it is an index")
        record = parsed(Record, metadata.get("record", ""), "record")
        count = _check_sizes(tensors, record)
        unread = _unread(tensors)
        if int((tensors["names"] == 0).sum()) != count - 1:
            raise NotPrepared(f"is damaged: its names are not those of {count} images")
        _check_labels(tensors, record, count)
        amounts = _amounts(tensors, record)
        return cls(
            path=path,
            record=record,
            pixels=tensors["pixels"],
            sizes=tensors["sizes"],
            reduced=_reduced(tensors, record),
            deep=_deep(tensors),
            starts=amounts.cumsum(0) - amounts,
            labels=tensors.get("labels"),
            names=tensors["names"],
            unread=unread,
            shard=metadata.get("shard", ""),
            seen=seen,
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def check(self) -> None:
        """Refuse to read on in a file that was written to since: pixels that are gone end the process (SIGBUS).

        A file that replaced this one, as `akssl data prepare --overwrite` makes it, does no harm: the old one stays
        mapped until the run ends. A change within the milliseconds of a read goes unnoticed.

        Raises:
            DataError: it was cut, or its contents changed.
        """
        try:
            now = self.path.stat()
        except OSError:
            return  # removed: what is mapped stays
        before = self.seen
        same = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if os.path.samestat(now, before) and not same:
            raise DataError(
                f"data: {self.path} was changed while it was read ({before.st_size} bytes before, {now.st_size} now). "
                f"Put it back as it was, or prepare it again: akssl data prepare SRC --out FILE{SUFFIX}"
            )

    def image(self, row: int) -> Tensor:
        """One image (C, h, w): a view of the mapped file, or a copy of float32."""
        pixels = self.pixels[int(self.starts[row]) :][: self._length(row)]
        pixels = pixels.clone().view(torch.float32) if self.deep[row] else pixels  # a copy lies aligned
        return pixels.view(self.record.channels, *self.sizes[row].tolist())

    def _length(self, row: int) -> int:
        """Bytes of an image without its squares."""
        return self.record.channels * int(self.sizes[row].long().prod()) * (_FLOAT if self.deep[row] else 1)

    def square(self, row: int, square: Square) -> Tensor | None:
        """What a backbone sees of one image, where the file has it from the original."""
        views, channels = self.record.views, self.record.channels
        if not self.reduced[row] or square.size not in views or square.resize != Square.of(square.size, 1).resize:
            return None
        amounts = [_FLOAT * channels * view**2 for view in views]
        place = views.index(square.size)
        start = int(self.starts[row]) + self._length(row) + sum(amounts[:place])
        values = self.pixels[start : start + amounts[place]].clone().view(torch.float32)  # a copy lies aligned
        return square(values.view(1, channels, square.size, square.size))[0]

    @cached_property
    def ids(self) -> list[str]:
        """The name of each image."""
        return self.names.numpy().tobytes().decode("utf-8", "replace").split("\0")


def held_in(path: Path) -> Held:
    """The tensors of a prepared file or an index, the header's texts, and the file's size and time.

    `safe_open` maps the file and checks that they fill it exactly.
    All but the pixels are copied, so that what was checked stays as it is.

    Raises:
        NotPrepared: it is none, or cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise NotPrepared("cannot be read: it is not a regular file")
    try:
        seen = path.stat()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if (kind := metadata.get("format")) not in _FORMATS:
                raise NotPrepared("is a safetensors file without prepared images")
            readable, needed = _FORMATS[kind]
            if metadata.get("version") not in readable:
                raise NotPrepared(
                    f"is of version {metadata.get('version')!r:.20}, and this akssl reads {' and '.join(readable)}"
                )
            names = set(file.keys())
            if lacking := [name for name in needed if name not in names]:
                raise NotPrepared(f"is damaged: it lacks {', '.join(lacking)}")
            for name in names & _DTYPES.keys():
                _check_type(name, file.get_slice(name))
            tensors = {name: file.get_tensor(name) for name in names & _DTYPES.keys()}
            return {name: t if name == "pixels" else t.clone() for name, t in tensors.items()}, metadata, seen
    except FileNotFoundError as error:
        near = nearest_path(path)
        raise NotPrepared("does not exist" + (f" (did you mean '{near}'?)" if near else "")) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise NotPrepared(f"cannot be read: {' '.join(str(error).split()):.200}".rstrip(".")) from error


def _check_type(name: str, view: Any) -> None:
    found, shape, wanted = view.get_dtype(), view.get_shape(), _DTYPES[name]
    axes = 2 if name == "sizes" else 1
    if found != wanted or len(shape) != axes or (axes == 2 and shape[1] != 2):
        expected = f"{wanted} of shape {'(N, 2)' if axes == 2 else '(N,)'}"
        raise NotPrepared(f"is damaged: '{name}' is {found} of shape {tuple(shape)!s:.40}, not {expected}")


def parsed(schema: type[S], text: str | bytes, what: str) -> S:
    """A record of a file, checked.

    Raises:
        NotPrepared: with its first mistake.
    """
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        raise NotPrepared(f"is damaged: its {what} is wrong: {first_mistake(error)}") from error


def _unread(tensors: Mapping[str, Tensor]) -> Unread:
    """The record of unreadable images; its rows must be those without pixels."""
    unread = parsed(Unread, tensors["unreadable"].numpy().tobytes(), "list of unreadable images")
    empty = (tensors["sizes"][:, 0] == 0).nonzero().flatten().tolist()
    if sorted(unread.rows) != empty:
        raise NotPrepared(f"is damaged: {len(empty)} images have no pixels, and {len(unread.rows)} are unreadable")
    return unread


def _amounts(tensors: Mapping[str, Tensor], record: Record) -> Tensor:
    """Bytes of each image with its squares, (N,) int64."""
    squares = _FLOAT * sum(view**2 for view in record.views)
    pixels = tensors["sizes"].long().prod(1) * torch.where(_deep(tensors), _FLOAT, 1)
    return (pixels + squares * _reduced(tensors, record)) * record.channels


def _reduced(tensors: Mapping[str, Tensor], record: Record) -> Tensor:
    """(N,) bool: which images were larger before, by the file's own word; by their size where it has none."""
    return tensors["reduced"] % DEEP != 0 if "reduced" in tensors else tensors["sizes"].amin(1) == record.side


def _deep(tensors: Mapping[str, Tensor]) -> Tensor:
    """(N,) bool: which images have more than 8 bits."""
    return tensors["reduced"] >= DEEP if "reduced" in tensors else torch.zeros(len(tensors["sizes"]), dtype=torch.bool)


def _check_sizes(tensors: Mapping[str, Tensor], record: Record) -> int:
    """That the images fill the pixels exactly; their number."""
    sizes, pixels = tensors["sizes"], tensors["pixels"]
    if len(sizes) == 0:
        raise NotPrepared("is damaged: it holds no image")
    low, high = int(sizes.min()), int(sizes.max())
    if low < 0 or high > LONGEST:
        raise NotPrepared(f"is damaged: sides of images run from {low} to {high} px, not from 0 to {LONGEST}")
    if bool(((sizes[:, 0] == 0) != (sizes[:, 1] == 0)).any()):
        raise NotPrepared("is damaged: an image has a height without a width, or the reverse")
    shorter = int(sizes.amin(1).max())
    if shorter > record.side:
        raise NotPrepared(
            f"is damaged: an image has a shorter side of {shorter} px, more than the {record.side} it states"
        )
    reduced = _reduced(tensors, record)
    if reduced.shape != (len(sizes),) or bool((reduced & (sizes[:, 0] == 0)).any()):
        raise NotPrepared("is damaged: it does not say which of its images were reduced")
    amounts = _amounts(tensors, record)
    # In float64, which cannot overflow and is exact below 2^53: a larger sum is no file's length.
    total = float(amounts.double().sum())
    if total != pixels.numel():
        raise NotPrepared(f"is damaged: its sizes add up to {total:.0f} bytes of pixels, and it holds {pixels.numel()}")
    return len(sizes)


def _check_labels(tensors: Mapping[str, Tensor], record: Record, count: int) -> None:
    """That labels are those of all images and of known classes."""
    if (labels := tensors.get("labels")) is not None:
        most = MOST_CLASSES if record.classes is None else len(record.classes)
        if len(labels) != count:
            raise NotPrepared(f"is damaged: it has {len(labels)} labels for {count} images")
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high >= most:
            raise NotPrepared(f"is damaged: its labels run from {low} to {high}, not from -1 to {most - 1}")

"""What preparing data will take, from a few of the images: room, memory and time, and a hash to know them again."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from .written import Work, images_of

SAMPLE = 32  # images spread over the rows; half of them warm up
ROW = 64  # bytes that an image takes beside its pixels: its size, its label and its name


@dataclass(frozen=True, slots=True)
class Forecast:
    """What preparing will take."""

    images: int
    """How many there are."""
    bytes: int
    """That they will take on the disk."""
    shards: int
    """In how many files."""
    left: int
    """Images that are still to be decoded; the others lie in shards that are kept."""
    memory: int | None
    """Bytes that a process takes at its peak; None: this system does not tell."""
    minutes: float
    """Until it is done, without the time of the disk."""

    @property
    def text(self) -> str:
        """A line to read before it begins."""
        files = in_shards(self.shards) if self.shards > 1 else "1 file"
        kept = f", {self.images - self.left} of them kept" if self.left < self.images else ""
        time = f"{self.minutes:.0f} minutes" if self.minutes >= 1 else "less than a minute"
        memory = "" if self.memory is None else f", {in_words(self.memory)} of memory a process"
        return f"{self.images} images{kept}: about {in_words(self.bytes)} in {files}, {time}{memory}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What a few images have told of all."""

    hash: str
    bytes: int  # of all images, without the rest of their files
    seconds: float  # an image, in one process


def look(work: Work) -> Sample:
    """Make what would be written of a few images spread over all.

    Raises:
        DataError: too many images cannot be read.
    """
    found, amount, seconds = hashlib.blake2b(digest_size=16), 0, []
    rows = sorted({i * len(work) // SAMPLE for i in range(SAMPLE)})
    for half in (rows[::2], rows[1::2]):
        begin = time.perf_counter()
        for one in images_of(work, half, lambda count: None):
            found.update(f"{one.row} {one.reason} {tuple(one.size)} {one.reduced}".encode() + b"".join(one.pixels))
            amount += sum(map(len, one.pixels))
        seconds += [(time.perf_counter() - begin) / len(half)] if half else []
    return Sample(found.hexdigest(), (amount // len(rows) + ROW) * len(work), min(seconds))


def forecast(work: Work, sample: Sample, shards: int, left: int, workers: int, folder: Path) -> Forecast:
    """What is still to be done.

    Raises:
        ConfigError: the disk has too little room.
    """
    room, free = sample.bytes * left // len(work), shutil.disk_usage(folder).free
    if room > free:
        raise ConfigError(
            f"--out: {left} images will take about {in_words(room)}, and {in_words(free)} are free in {folder}. Free "
            f"some space, choose another place, or reduce the images further with --size."
        )
    minutes = sample.seconds * left / workers / 60
    return Forecast(len(work), sample.bytes, shards, left, _peak(), minutes)


def _peak() -> int | None:
    """Bytes of memory that this process has taken at most; it has decoded a batch as large as those to come."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def in_shards(count: int) -> str:
    """A number of shards for people."""
    return f"{count} shard{'s' * (count > 1)}"


def in_words(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

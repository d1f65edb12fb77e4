"""What preparing data will take, from a few of the images: room, memory and time, and a hash to know them again."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass

from .written import Work, images_of, utf8

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
        kept = f", {self.images - self.left} of them kept" if self.left < self.images else ""
        time = f"{self.minutes:.0f} minutes" if self.minutes >= 1 else "less than a minute"
        files = f"{self.shards} file{'s' * (self.shards > 1)}"
        memory = "" if self.memory is None else f", {in_words(self.memory)} of memory a process"
        return f"{self.images} images{kept}: about {in_words(self.bytes)} in {files}, {time}{memory}"


def look(work: Work) -> tuple[str, int, float]:
    """A hash of names, labels, parts and a few images spread over all; bytes of all; seconds an image, in one process.

    Raises:
        DataError: too many images cannot be read.
    """
    found, amount, seconds = hashlib.blake2b(work.record.model_dump_json().encode(), digest_size=16), 0, []
    for _, pool in work.pools:
        for i in range(len(pool)):
            found.update(utf8(pool.id_of(i)).encode() + b"\0")
    for name, values in {**work.labels, **work.parts}.items():
        found.update(name.encode() + values.numpy().tobytes())
    rows = sorted({i * len(work) // SAMPLE for i in range(SAMPLE)})
    for half in filter(None, (rows[::2], rows[1::2])):
        begin = time.perf_counter()
        for row, reason, made in images_of(work, half, lambda count: None):
            found.update(f"{row} {reason} {[tuple(part.shape) for part in made]}".encode())
            for part in made:
                found.update(part.numpy().tobytes())
            amount += sum(part.nbytes for part in made)
        seconds.append((time.perf_counter() - begin) / len(half))
    return found.hexdigest(), (amount // len(rows) + ROW) * len(work), min(seconds)


def peak() -> int | None:
    """Bytes of memory that this process has taken at most; it has decoded a batch as large as those to come."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def in_words(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

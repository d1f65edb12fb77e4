"""Batches of raw images in an order that is a function of (seed, epoch), the same for any workers and processes."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import AksslError, DataError
from .base import ImageSet, Pixels

LoadedBatch: TypeAlias = tuple[Pixels, Tensor, Tensor | None]  # pixels, index (b,) int64, label (b,) int64

T = TypeVar("T")
DEPTH = 2  # batches made ready while one is computed with


class Loader:
    """The training batches of one process out of `world`. A last batch that is not full is left out.

    Args:
        images: what to load.
        batch_size: images a step over all processes.
        seed: of the run; the order of epoch e is a permutation drawn from (seed, e).
        world: number of processes; process `rank` gets the rank-th part of every batch.
        rank: this process.
        workers: processes that read a data set which runs code of the user's own, 0 reads in this process; threads
            that decode the images of a batch, 0 leaves one a core.
        device: where the pixels come to lie. A GPU gets them while it computes.

    Raises:
        DataError: there are fewer images than one batch holds, or a batch cannot be shared evenly.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        seed: int = 0,
        world: int = 1,
        rank: int = 0,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        _check_sizes(len(images), batch_size, world)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.world, self.rank, self.workers = world, rank, workers
        self.device = device or torch.device("cpu")
        self._readers: _Readers | None = None  # between epochs
        if images.decoder is not None and workers:
            images.decoder.threads = workers

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the images."""
        return len(self.images) // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """The permutation of one epoch, (N,) int64."""
        key = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        return torch.randperm(len(self.images), generator=generator)

    def epoch(self, epoch: int, start: int = 0) -> Generator[LoadedBatch, None, None]:
        """The batches of an epoch from step `start` on. Closing the generator stops what runs in the background.

        Raises:
            DataError: from the images, as `ImageSet.fetch` tells.
        """
        share = self.batch_size // self.world
        steps = self.order(epoch)[: self.steps_per_epoch * self.batch_size].view(-1, self.world, share)
        index = steps[start:, self.rank]  # (steps, b)
        with closing(self._fetched(index, epoch)) as fetched:
            for row, pixels in zip(index, fetched, strict=True):
                yield pixels, row, None if self.images.labels is None else self.images.labels[row]

    def _fetched(self, index: Tensor, epoch: int) -> Generator[Pixels, None, None]:
        """The pixels of each row of `index` (steps, b) in turn, in the way that suits the images."""
        if self.images.loading == "process" and self.workers > 0:
            batches = self._by_workers(index, f"{self.seed} {epoch} {self.rank}")
        else:
            batches = (self.images.fetch(row.tolist()) for row in index)
        if self.device.type == "cuda":
            return _sent_ahead(batches, len(index), self.device)
        return _ahead(batches, len(index)) if self.images.loading == "thread" else batches

    def _by_workers(self, index: Tensor, key: str) -> Generator[Pixels, None, None]:
        """The same from worker processes, which stay for the next epoch if this one is read to its end."""
        readers, self._readers = self._readers or _Readers(self.images, self.workers), None
        batches = readers.begin(index, key)
        try:
            for batch in batches:
                if isinstance(batch, AksslError):
                    raise batch
                yield batch
            self._readers = readers
        finally:
            del batches, readers  # their end is that of the workers; a traceback must not keep them

    def close(self) -> None:
        """End the worker processes."""
        self._readers = None


def _check_sizes(count: int, batch_size: int, world: int) -> None:
    if batch_size % world:
        raise DataError(
            f"batch_size: {batch_size} images cannot be shared evenly by {world} processes. "
            f"Use {batch_size // world * world or world}, say."
        )
    if count < batch_size:
        largest = count - count % world
        cure = f"The largest batch size that works is {largest}." if largest > 1 else "Add images."
        images = "one image" if count == 1 else f"{count} images"
        raise DataError(f"batch_size: {batch_size} is more than the {images} to train on. {cure}")


def _ahead(batches: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """The same, made in one background thread, a few batches ahead, so that decoding overlaps computing."""
    pending: deque[Future[T]] = deque()
    with closing(batches), ThreadPoolExecutor(1, thread_name_prefix="akssl-loader") as pool:
        try:
            for _ in range(count):
                pending.append(pool.submit(next, batches))
                if len(pending) > DEPTH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _sent_ahead(
    batches: Generator[Pixels, None, None], count: int, device: torch.device
) -> Generator[Pixels, None, None]:
    """The same on a GPU: pinned and copied by the background thread, on a stream of its own beside what is computed."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types

    def sent() -> Generator[tuple[Pixels, torch.cuda.Event], None, None]:
        for pixels in batches:
            with torch.cuda.stream(stream):
                there = pixels.to(device), stream.record_event()
            yield there

    with closing(batches), closing(_ahead(sent(), count)) as ahead:
        for pixels, arrived in ahead:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(arrived)  # the GPU waits, not the host
            pixels.images.record_stream(computing)  # or its memory would be given away while it is read
            yield pixels


class _Rows:
    """What the worker processes are told to read: a row of the index each, and by which key they draw."""

    def __init__(self) -> None:
        self.index, self.key = torch.empty(0, 0, dtype=torch.int64), ""

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[str, list[int]]]:
        return ((self.key, row.tolist()) for row in self.index)


class _Batches(Dataset["Pixels | AksslError"]):
    """An image set whose items are whole batches, as worker processes see it."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.key = images, ""

    def __getitem__(self, told: tuple[str, list[int]]) -> Pixels | AksslError:
        key, rows = told
        if key != self.key:
            self.key = key
            _seed(key)
        try:
            return self.images.fetch(rows)
        except AksslError as error:  # sent as a value: raised there, its text would arrive inside a traceback
            return error


class _Readers:
    """Worker processes that fetch batches, in order. They end with this object."""

    def __init__(self, images: ImageSet, workers: int) -> None:
        self.rows, self.times = _Rows(), 0
        self.loader = DataLoader(
            _Batches(images),
            batch_size=None,
            sampler=self.rows,
            num_workers=workers,
            collate_fn=as_it_is,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # its own, so that starting workers draws nothing from the run's
            persistent_workers=True,
        )

    def begin(self, index: Tensor, key: str) -> Iterator[Pixels | AksslError]:
        """The batches of each row of `index` (steps, b) in turn; what data sets draw themselves follows from `key`."""
        self.times += 1
        self.rows.index, self.rows.key = index, f"{self.times}:{key}"  # read twice, they draw the same twice
        return iter(self.loader)


def _begin(worker: int) -> None:
    """In a worker: errors travel to the main process, and a pipe that breaks since another worker died is no news."""
    sys.excepthook = lambda *_: None


def _seed(key: str) -> None:
    """In a worker: a data set's own draws are new in each epoch, and the same in each run with this seed."""
    worker = get_worker_info()
    assert worker is not None
    text = f"{key.partition(':')[2]} {worker.id}"
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def as_it_is(batch: Any) -> Any:
    """In place of torch's collation: the items are batches already."""
    return batch

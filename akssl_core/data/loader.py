"""Batches of raw images in an order that is a function of (seed, epoch), the same for any workers and processes."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import AksslError, DataError
from .base import ImageSet, Pixels

LoadedBatch: TypeAlias = tuple[Pixels, Tensor, Tensor | None]  # pixels, index (b,) int64, label (b,) int64

DEPTH = 2  # batches made ready while one is computed with


class Loader:
    """The training batches of one process out of `world`. A last batch that is not full is left out.

    Args:
        images: what to load.
        batch_size: images a step over all processes.
        seed: of the run; the order of epoch e is a permutation drawn from (seed, e).
        world: number of processes; process `rank` gets the rank-th part of every batch.
        rank: this process.
        workers: processes that read a data set which runs code of the user's own; 0 reads in this process.

    Raises:
        DataError: there are fewer images than one batch holds, or a batch cannot be shared evenly.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, *, seed: int = 0, world: int = 1, rank: int = 0, workers: int = 0
    ) -> None:
        _check_sizes(len(images), batch_size, world)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.world, self.rank, self.workers = world, rank, workers

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
            return _by_workers(self.images, index, self.workers, f"{self.seed} {epoch} {self.rank}")
        if self.images.loading == "thread":
            return _ahead(self.images.fetch, index)
        return (self.images.fetch(row.tolist()) for row in index)


def _check_sizes(count: int, batch_size: int, world: int) -> None:
    if batch_size % world:
        raise DataError(
            f"batch_size: {batch_size} images cannot be shared evenly by {world} processes. "
            f"Use {batch_size // world * world or world}, say."
        )
    if count < batch_size:
        largest = count - count % world
        cure = f"The largest batch size that works is {largest}." if largest else "Add images."
        raise DataError(f"batch_size: {batch_size} is more than the {count} images to train on. {cure}")


def _ahead(fetch: Callable[[Sequence[int]], Pixels], index: Tensor) -> Generator[Pixels, None, None]:
    """Fetch in one background thread, a few batches ahead, so that decoding overlaps computing."""
    pending: deque[Future[Pixels]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="akssl-loader") as pool:
        try:
            for row in index:
                pending.append(pool.submit(fetch, row.tolist()))
                if len(pending) > DEPTH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Parts(Dataset["Pixels | AksslError"]):
    """An image set whose items are whole batches, as worker processes see it."""

    def __init__(self, images: ImageSet, index: Tensor) -> None:
        self.images, self.index = images, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Pixels | AksslError:
        try:
            return self.images.fetch(self.index[i].tolist())
        except AksslError as error:  # sent as a value: raised there, its text would arrive inside a traceback
            return error


def _by_workers(images: ImageSet, index: Tensor, workers: int, key: str) -> Generator[Pixels, None, None]:
    """Fetch in worker processes, in order."""
    batches: Iterator[Pixels | AksslError] = iter(
        DataLoader(
            _Parts(images, index),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_begin, key),
            generator=torch.Generator(),  # its own, so that starting workers draws nothing from the run's
        )
    )
    try:
        for batch in batches:
            if isinstance(batch, AksslError):
                raise batch
            yield batch
    finally:
        del batches  # its end is that of the workers; a traceback must not keep them


def _begin(key: str, worker: int) -> None:
    """In a worker: a data set's own draws are new in each epoch, and the same in each run with this seed.

    Errors travel to the main process, and a pipe that breaks since another worker died is no news.
    """
    sys.excepthook = lambda *_: None
    seed = int.from_bytes(hashlib.blake2b(f"{key} {worker}".encode(), digest_size=4).digest(), "big")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _as_it_is(batch: Any) -> Any:
    """In place of torch's collation: the items are batches already."""
    return batch

"""Several ranks in one process: each is a thread, and the collectives of `dist` meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import dist

T = TypeVar("T")
PATIENCE = 60  # seconds a rank waits for the others before the step counts as stuck


class Meeting:
    """Where the ranks exchange tensors."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.slots: list[Tensor | None] = [None] * world
        self.barrier = threading.Barrier(world)

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """The tensors that all ranks bring, as copies."""
        self.slots[rank] = x
        self.barrier.wait(PATIENCE)
        brought = [part.clone() for part in self.slots if part is not None]
        self.barrier.wait(PATIENCE)  # nobody overwrites a slot before all have read it
        return brought


@dataclass(frozen=True)
class ThreadRank:
    """One rank, as `dist.Group` describes it."""

    rank: int
    meeting: Meeting

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.meeting.world

    def all_gather(self, x: Tensor) -> Tensor:
        """The rows of every rank, in rank order."""
        return torch.cat(self.meeting.exchange(self.rank, x))

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return torch.stack(self.meeting.exchange(self.rank, x)).sum(0)


def on_ranks(world: int, work: Callable[[ThreadRank], T]) -> list[T]:
    """Do some work on each rank, all running at the same time; gives what it returns, by rank.

    A rank that raises breaks the barrier, so that the others end as well; its own error is the one that is raised.
    """
    meeting = Meeting(world)

    def one(rank: int) -> T:
        group = ThreadRank(rank, meeting)
        try:
            with dist.acting_in(group):
                return work(group)
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        futures: list[Any] = [pool.submit(one, rank) for rank in range(world)]
    errors = [future.exception() for future in futures if future.exception() is not None]
    causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (causes or errors)[0]
    return [future.result() for future in futures]

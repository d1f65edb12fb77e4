"""The loader: order, sharing, restarts, background work and its end."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from akssl_core.data import ImageSet, Loader, Pixels, TensorImages, Wrapped
from akssl_core.errors import DataError


class Slow(ImageSet):
    """Images whose values are their positions, fetched in a thread that is remembered."""

    channels = 1

    def __init__(self, count, loading="thread", bad=-1):
        self.count, self.loading, self.bad = count, loading, bad
        self.fetched, self.threads = [], set()

    def __len__(self):
        return self.count

    def fetch(self, index):
        self.threads.add(threading.current_thread().name.split("_")[0])
        self.fetched.append(tuple(index))
        if self.bad in index:
            raise DataError(f"image {self.bad} is broken")
        return Pixels(torch.tensor(index, dtype=torch.uint8).view(-1, 1, 1, 1))


class Numbers(Dataset):
    """The same as a torch data set."""

    targets = tuple(i % 4 for i in range(48))

    def __len__(self):
        return 48

    def __getitem__(self, i):
        if i == 45:
            time.sleep(0.01)  # a slow item must not change the order
        return torch.full((1, 8, 8), i, dtype=torch.uint8), i % 4


def memory(count=50):
    images = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    return TensorImages(images, torch.arange(count) % 7)


def epoch(loader, number=0, start=0):
    return [(pixels.images, index, label) for pixels, index, label in loader.epoch(number, start)]


def indices(loader, number=0, start=0):
    return [index.tolist() for _, index, _ in loader.epoch(number, start)]


def test_batches_are_full_and_show_what_their_index_says():
    loader = Loader(memory(), 8, seed=1)
    batches = epoch(loader)
    assert loader.steps_per_epoch == len(batches) == 6
    seen = torch.cat([index for _, index, _ in batches])
    assert len(set(seen.tolist())) == 48
    for images, index, label in batches:
        assert images.flatten().tolist() == index.tolist()
        assert label.tolist() == [i % 7 for i in index.tolist()]


def test_the_order_is_a_function_of_seed_and_epoch():
    assert indices(Loader(memory(), 8, seed=1), 3) == indices(Loader(memory(), 8, seed=1), 3)
    assert indices(Loader(memory(), 8, seed=1), 3) != indices(Loader(memory(), 8, seed=1), 4)
    assert indices(Loader(memory(), 8, seed=1), 3) != indices(Loader(memory(), 8, seed=2), 3)
    assert sorted(Loader(memory(), 8).order(5).tolist()) == list(range(50))


def test_neither_the_run_nor_the_order_draws_from_the_global_generator():
    before = torch.get_rng_state()
    epoch(Loader(Wrapped(Numbers()).all(), 8, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loading", ["direct", "thread"])
def test_an_epoch_can_start_anywhere(loading):
    loader = Loader(Slow(50, loading), 8, seed=1)
    assert indices(loader, 2, start=4) == indices(loader, 2)[4:]
    assert indices(loader, 2, start=6) == []


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_each_batch(world):
    whole = indices(Loader(memory(), 8, seed=1))
    parts = [indices(Loader(memory(), 8, seed=1, world=world, rank=rank)) for rank in range(world)]
    assert [[i for part in step for i in part] for step in zip(*parts, strict=True)] == whole


def test_workers_change_nothing():
    images = Wrapped(Numbers()).all()
    assert images.loading == "process"
    plain, helped = epoch(Loader(images, 8, seed=1)), epoch(Loader(images, 8, seed=1, workers=2))
    for one, other in zip(plain, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(plain) == 6


def test_images_in_memory_need_no_thread():
    direct, thread = Slow(16, "direct"), Slow(16, "thread")
    epoch(Loader(direct, 4))
    epoch(Loader(thread, 4))
    assert direct.threads == {"MainThread"}
    assert thread.threads == {"akssl-loader"}


def test_a_thread_works_ahead_but_not_far():
    images = Slow(80)
    batches = Loader(images, 4).epoch(0)
    next(batches)
    time.sleep(0.05)
    assert 1 <= len(images.fetched) <= 3
    batches.close()


@pytest.mark.parametrize("loading", ["direct", "thread"])
def test_an_error_reaches_the_consumer(loading):
    images = Slow(16, loading, bad=3)
    with pytest.raises(DataError, match="image 3 is broken"):
        epoch(Loader(images, 4))
    assert alive() == []


class Broken(Numbers):
    """One item is no image."""

    def __getitem__(self, i):
        return "text" if i == 5 else super().__getitem__(i)


def test_an_error_in_a_worker_arrives_as_it_was():
    images = Wrapped(Numbers()).all()
    images.data = Broken()
    with pytest.raises(DataError, match=r"^data: item 5 of Broken holds str") as caught:
        epoch(Loader(images, 8, workers=1))
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []


def alive():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("akssl")]


def test_closing_early_leaves_nothing_behind():
    images = Slow(240)
    batches = Loader(images, 4).epoch(0)
    next(batches)
    batches.close()
    assert alive() == []
    done = len(images.fetched)
    assert done <= 4
    helped = Loader(Wrapped(Numbers()).all(), 4, workers=2).epoch(0)
    next(helped)
    helped.close()
    assert multiprocessing.active_children() == []


class Processes(Slow):
    """Images that tell which process fetched them."""

    def fetch(self, index):
        number = torch.tensor(list(os.getpid().to_bytes(8, "little")), dtype=torch.uint8)
        return Pixels(number.expand(len(index), 1, 1, 8))


def test_workers_stay_from_epoch_to_epoch_and_end_with_the_run():
    loader = Loader(Processes(16, "process"), 4, workers=2)
    seen = [{tuple(images[0].flatten().tolist()) for images, *_ in epoch(loader, number)} for number in (0, 1, 1)]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == len(multiprocessing.active_children()) == 2
    batches = loader.epoch(2)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []
    assert len(epoch(loader, 3)) == 4
    loader.close()
    assert multiprocessing.active_children() == []


def test_dropping_the_batches_leaves_nothing_behind():
    batches = Loader(Slow(240), 4).epoch(0)
    next(batches)
    del batches
    assert alive() == []


def test_a_batch_larger_than_the_data_names_the_largest_that_works():
    with pytest.raises(DataError, match="batch_size: 10000 is more than the 50 images.*that works is 50"):
        Loader(memory(), 10_000)
    with pytest.raises(DataError, match=r"2 is more than the one image to train on\. Add images\."):
        Loader(memory(1), 2)
    with pytest.raises(DataError, match="that works is 48"):
        Loader(memory(), 10_000, world=4)
    with pytest.raises(DataError, match="Add images"):
        Loader(memory(3), 4, world=4)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(DataError, match="10 images cannot be shared evenly by 4 processes. Use 8, say"):
        Loader(memory(), 10, world=4)


def test_images_without_labels_give_none():
    assert epoch(Loader(Slow(8, "direct"), 4))[0][2] is None


class Spoken(Slow):
    """Images that tell whether their process would print a traceback of its own."""

    def fetch(self, index):
        return Pixels(torch.full((len(index), 1, 1, 1), int(sys.excepthook is sys.__excepthook__), dtype=torch.uint8))


def test_workers_leave_talking_to_the_main_process():
    images = Spoken(8, "process")
    assert all(pixels.all() for pixels, _, _ in epoch(Loader(images, 4)))
    assert not any(pixels.any() for pixels, _, _ in epoch(Loader(images, 4, workers=1)))


class Drawing(Dataset):
    """A data set of a user's, whose items are drawn by three generators."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        drawn = [np.random.randint(256), random.randrange(256), int(torch.randint(256, ()))]
        return torch.tensor(drawn, dtype=torch.uint8)[:, None, None].expand(3, 8, 8).contiguous()


def test_workers_draw_anew_in_each_epoch_and_alike_in_each_run():
    images = Wrapped(Drawing()).train()

    def drawn(seed, epoch):
        loader = Loader(images, 2, seed=seed, workers=2)
        return torch.cat([pixels.images[:, :, 0, 0] for pixels, *_ in loader.epoch(epoch)])

    first, second, other = drawn(1, 0), drawn(1, 1), drawn(2, 0)
    assert torch.equal(first, drawn(1, 0))
    staying = Loader(images, 2, seed=1, workers=2)
    for number, expected in ((0, first), (1, second), (1, second), (0, first)):
        again = torch.cat([pixels.images[:, :, 0, 0] for pixels, *_ in staying.epoch(number)])
        assert torch.equal(again, expected), "workers that stay draw otherwise than new ones"
    for channel in range(3):
        rows = [set(part[:, channel].tolist()) for part in (first, second, other)]
        assert rows[0] != rows[1]
        assert rows[0] != rows[2]
        assert len(rows[0]) > 4, "two workers draw the same"

"""Folders of drawn images, which several test files read, and whether two sources show the same."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from akssl_core.data import Folder
from akssl_core.data.folder import FolderConfig


def folder(path, image_size=None, **settings):
    return Folder(FolderConfig(path=path, **settings), image_size)


def save(path, size=(30, 20), mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def same(first, second):
    """Two image sets show the same in every way, whatever the order in which they are asked."""
    count = len(first)
    assert len(second) == count
    assert (first.channels, first.classes, first.loading) == (second.channels, second.classes, second.loading)
    assert [first.id_of(i) for i in range(count)] == [second.id_of(i) for i in range(count)]
    assert (first.labels is None) == (second.labels is None)
    assert first.labels is None or torch.equal(first.labels, second.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    for index in [*order.split(7), torch.arange(count)]:
        a, b = (images.fetch(index.tolist()) for images in (first, second))
        assert torch.equal(a.images, b.images)
        assert (a.sizes is None) == (b.sizes is None)
        assert a.sizes is None or torch.equal(a.sizes, b.sizes)
        assert a.unreadable == b.unreadable


def assert_same_sources(first, second):
    assert first.natural_size == second.natural_size
    same(first.all(), second.all())
    same(first.train(), second.train())
    assert (first.probe() is None) == (second.probe() is None)
    for a, b in zip(first.probe() or (), second.probe() or (), strict=True):
        same(a, b)

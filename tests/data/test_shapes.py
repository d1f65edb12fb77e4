"""The drawn data: a function of its numbers alone, balanced, of any size, and hard for raw pixels."""

from __future__ import annotations

import pytest
import torch

from akssl_core import ConfigError, build
from akssl_core.data.preprocess import Preprocess
from akssl_core.data.shapes import CLASSES, SHAPES, TEST, TRAIN, DrawnImages, draw
from akssl_core.metrics.features import pixels_as_features
from akssl_core.metrics.nearest import knn


def source(side=None, **settings):
    return build("data", "shapes", side, **settings)


def test_an_image_depends_on_its_number_alone():
    index = torch.tensor([3, 1, 700, 12])
    whole = draw(torch.arange(1000), 16)
    assert torch.equal(draw(index, 16), whole[index])
    assert torch.equal(draw(torch.tensor([700]), 16)[0], whole[700])


def test_seed_split_and_number_each_change_the_image():
    first = draw(torch.tensor([5]), 24)
    assert not torch.equal(draw(torch.tensor([5]), 24, seed=1), first)
    assert not torch.equal(draw(torch.tensor([5]), 24, split=TEST), first)
    assert not torch.equal(draw(torch.tensor([15]), 24), first)


def test_images_do_not_depend_on_how_many_there_are():
    few, many = source(size=20).train(), source(size=300).train()
    assert torch.equal(few.fetch(range(20)).images, many.fetch(range(20)).images)


def test_labels_are_balanced_and_named():
    train = source(size=200).train()
    assert train.labels.bincount().tolist() == [20] * 10
    assert train.classes == CLASSES == tuple(SHAPES)
    assert len(CLASSES) == 10


@pytest.mark.parametrize("side", [8, 33, 224])
def test_any_size(side):
    images = source(side, size=20).train().fetch([0, 7]).images
    assert images.shape == (2, 3, side, side)
    assert images.dtype == torch.uint8
    assert images.float().std() > 20


def test_large_sets_are_drawn_when_they_are_fetched():
    lazy, small = source(224, size=10_000).train(), source(224, size=20).train()
    assert isinstance(lazy, DrawnImages)
    assert torch.equal(lazy.fetch([3, 11]).images, small.fetch([3, 11]).images)


def test_probe_is_a_bank_of_training_images_and_other_queries():
    shapes = source(size=50, test_size=30)
    bank, queries = shapes.probe()
    assert bank is shapes.train()
    assert len(queries) == 30
    assert torch.equal(queries.fetch([4]).images, draw(torch.tensor([4]), 32, split=TEST))
    assert not torch.equal(queries.fetch([4]).images, draw(torch.tensor([4]), 32, split=TRAIN))


def test_colours_tell_nothing_of_the_kind():
    images = draw(torch.arange(4000), 16).float()
    kinds = torch.arange(4000) % 10
    background = images.quantile(0.5, dim=3).quantile(0.5, dim=2)  # (N, 3), mostly background
    means = torch.stack([background[kinds == k].mean(0) for k in range(10)])
    assert (means - means.mean(0)).abs().max() < 0.35 * background.std()


def test_each_kind_is_drawn_by_its_own_outline():
    """At high resolution the object's area over the cell's is that of the kind: no two kinds cover alike by chance."""
    grid = torch.linspace(-1, 1, 200)
    x, y = torch.meshgrid(grid, grid, indexing="xy")
    areas = {name: (kind(x, y) < 0).float().mean().item() for name, kind in SHAPES.items()}
    assert all(0.1 < area < 0.7 for area in areas.values()), areas
    covers = {name: kind(x, y) < 0 for name, kind in SHAPES.items()}
    for a in covers:
        for b in covers:
            if a < b:
                assert (covers[a] ^ covers[b]).float().mean() > 0.05, (a, b)


def test_raw_pixels_say_little_about_the_kind():
    shapes = source(size=3000, test_size=500)
    bank, queries = shapes.probe()
    preprocess = Preprocess(32, 3, shapes.mean, shapes.std, 32)
    features = [pixels_as_features(images, preprocess) for images in (bank, queries)]
    assert knn(features[0], bank.labels, features[1], queries.labels) < 30


@pytest.mark.parametrize("settings", [{"size": 0}, {"test_size": -1}, {"seed": -1}, {"sizes": 5}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        source(**settings)

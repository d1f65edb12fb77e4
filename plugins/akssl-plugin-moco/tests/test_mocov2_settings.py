"""MoCo v2's settings against the size of the data, its recipes, and a short run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_moco import MoCoV2

import akssl_core
from akssl_core import ConfigError, Facts, dist
from akssl_core.testing import config_of, spec_of


def facts(images: int = 100_000, batch_size: int = 256, forward_size: int | None = None) -> Facts:
    return Facts(images, batch_size, forward_size or batch_size, 32, 10, {"global": 2})


def config(**settings: Any) -> Any:
    return config_of(MoCoV2, **settings)


def chosen(known: Facts, **settings: Any) -> dict[str, Any]:
    return {name: choice.value for name, choice in MoCoV2.choose(config(**settings), known).items()}


def test_paper_settings_stay_where_they_fit() -> None:
    paper = config()
    assert (paper.queue_size, paper.out_dim, paper.momentum.start, paper.symmetric) == (65536, 128, 0.999, False)
    assert chosen(facts()) == {}


@pytest.mark.parametrize(
    ("known", "settings", "size"),
    [
        (facts(images=2000), {}, 1792),
        (facts(images=2000), {"symmetric": True}, 1536),
        (facts(batch_size=96), {}, 65472),
        (facts(images=300), {"symmetric": True}, 512),
    ],
    ids=["few images", "two keys an image", "odd batch", "less than a step"],
)
def test_queue_is_within_the_data_and_of_whole_steps(known: Facts, settings: dict[str, Any], size: int) -> None:
    assert chosen(known, **settings)["queue_size"] == size


def test_choices_say_why() -> None:
    choices = MoCoV2.choose(config(), facts(images=2000, batch_size=100))
    assert choices["queue_size"].value == 2000
    assert choices["queue_size"].reason == "at most the 2000 training images, a multiple of the 100 keys of a step"
    assert choices["bn_splits"].reason == "equal groups of a forward pass of 100 images, at least 8 in each"
    (choice,) = MoCoV2.choose(config(), facts(batch_size=96)).values()
    assert choice.reason == "a multiple of the 96 keys of a step"


@pytest.mark.parametrize(("forward", "splits"), [(100, 5), (32, 4), (16, 2), (14, 1), (13, 1), (68, 4)])
def test_groups_are_equal_and_not_too_small(forward: int, splits: int) -> None:
    assert chosen(facts(batch_size=256, forward_size=forward))["bn_splits"] == splits


def test_chosen_settings_pass_the_check() -> None:
    for images in (50, 300, 5000):
        for size in (2, 17, 96, 256):
            known = facts(images=images, batch_size=size)
            assert len(MoCoV2.check(config(**chosen(known)), known)) == (size > images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"queue_size": 1000},
            "queue_size: 1000 must be a multiple of the 256 keys of a step; 768 and 1024 are.",
        ),
        ({"queue_size": 100}, "queue_size: 100 must be a multiple of the 256 keys of a step; 256 is."),
        (
            {"queue_size": 768, "symmetric": True},
            "queue_size: 768 must be a multiple of the 512 keys of a step; 512 and 1024 are.",
        ),
        ({"bn_splits": 6}, "bn_splits: 6 must divide a forward pass of 256 images; 4 and 8 do."),
        ({"bn_splits": 200}, "bn_splits: 200 must divide a forward pass of 256 images; 128 does."),
        (
            {"bn_splits": 256},
            "bn_splits: 256 must leave at least 2 images in each group of a forward pass of 256 images; 128 does.",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MoCoV2.check(config(**settings), facts())
    assert str(error.value) == f"method.{message}"


@pytest.mark.parametrize(
    ("world", "batch", "wanted", "chosen_splits"),
    [
        (1, 256, 8, 8),
        (2, 256, 8, 8),
        (4, 256, 8, 8),
        (8, 256, 8, 8),
        (3, 192, 8, 6),
        (16, 512, 8, 16),  # every process has one group at least
        (4, 28, 8, 1),  # groups of 7 would be too small
        (2, 256, 1, 1),
    ],
)
def test_groups_are_counted_over_all_processes(world: int, batch: int, wanted: int, chosen_splits: int) -> None:
    known = facts(batch_size=batch, forward_size=batch // world)
    with dist.acting_in(dist.Imagined(world)):
        found = chosen(known, queue_size=65536 // batch * batch, bn_splits=wanted)
        assert found.get("bn_splits", wanted) == chosen_splits
        assert not MoCoV2.check(config(queue_size=batch, bn_splits=chosen_splits), known)
        seen = MoCoV2.derived(config(bn_splits=chosen_splits), known)["batch norms see"]
    assert f" of {batch // chosen_splits} images" in seen


def test_groups_that_processes_cannot_share_equally_are_refused() -> None:
    with dist.acting_in(dist.Imagined(4)), pytest.raises(ConfigError) as error:
        MoCoV2.check(config(bn_splits=2), facts(forward_size=64))
    assert str(error.value) == (
        "method.bn_splits: 2 must be 1 or a multiple of the 4 processes, and divide a forward pass of 256 images; "
        "1 and 4 do."
    )


def test_small_groups_are_warned_of() -> None:
    (warning,) = MoCoV2.check(config(bn_splits=64), facts())
    assert warning.startswith("method.bn_splits: groups of 4 images")


def test_a_queue_longer_than_the_data_is_warned_of() -> None:
    (warning,) = MoCoV2.check(config(queue_size=1024), facts(images=1000))
    assert warning.startswith("method.queue_size: 1024 keys of 1000 training images")
    assert not MoCoV2.check(config(queue_size=1024), facts(images=1024))


@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet"])
def test_recipes_are_valid(recipe: str) -> None:
    spec = spec_of("mocov2", recipe=recipe)
    assert spec.recipe == recipe
    assert spec.train.batch_size % spec.method.config.bn_splits == 0
    assert spec.method.config.queue_size % spec.train.batch_size == 0


def test_a_run_with_few_images_trains(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = akssl_core.run(
        method="mocov2",
        data=images,
        epochs=1,
        batch_size=16,
        out=tmp_path / "run",
        report=False,
        recipe="cifar",
        options={"hidden_dim": 8, "out_dim": 8},
        backbone={"name": "resnet_tiny", "widths": [4, 4, 8, 8]},
    )
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "queue_size: 64" in config, "as many keys as images"
    assert "bn_splits: 2" in config, "at least 8 images in each group"
    assert math.isfinite(result.metrics["loss"])
    assert "z_std_ratio" in result.history[0]

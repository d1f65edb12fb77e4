"""What follows from the size of the data, the batch and the run; and the recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from akssl_plugin_swav import SwAV

import akssl_core
from akssl_core import ConfigError, Facts, ImageSpec
from akssl_core.testing import spec_of


def facts(images: int = 1_281_167, batch: int = 256, epochs: int = 200, forward: int | None = None) -> Facts:
    return Facts(images, batch, forward or batch, 224, epochs, {"global": 2, "local": 6})


def config(**settings: Any) -> Any:
    return spec_of("swav", options=settings).method


def chosen(known: Facts, **settings: Any) -> dict[str, Any]:
    choices = SwAV.choose(config(**{"prototypes": 3000, "queue_size": 3840, **settings}).config, known)
    assert all(choice.reason and len(choice.reason) < 80 for choice in choices.values())
    return {name: choice.value for name, choice in choices.items()}


PAPER = {"queue_from_epoch": 15, "freeze_prototypes_epochs": 1}


def test_the_settings_of_the_paper_stay_as_they_are() -> None:
    assert chosen(facts(), **PAPER) == {}
    assert chosen(facts(batch=4096, epochs=100), queue_size=0, **PAPER) == {}


def test_a_batch_larger_than_the_queue_has_none() -> None:
    assert chosen(facts(batch=4096), **PAPER) == {"queue_size": 0}


def test_the_queue_holds_whole_batches_and_no_more_than_the_images() -> None:
    assert chosen(facts(batch=500), **PAPER) == {"queue_size": 3500}
    got = chosen(facts(images=2000, batch=128), prototypes=100, **PAPER)
    assert got == {"queue_size": 1792}  # with a batch of 128: at most 2000
    assert chosen(facts(images=100, batch=64), prototypes=10, **PAPER) == {"queue_size": 0}


def test_a_batch_too_small_for_its_prototypes_gets_the_queue_of_the_paper() -> None:
    assert chosen(facts(batch=256), queue_size=0, **PAPER) == {"queue_size": 3840}
    assert chosen(facts(batch=1024), queue_size=0, **PAPER) == {"queue_size": 3072}
    assert chosen(facts(batch=4096, forward=512), queue_size=0, **PAPER) == {"queue_size": 4096}  # accumulated


def test_prototypes_are_at_most_a_tenth_of_the_images() -> None:
    assert chosen(facts(images=10_000), **PAPER)["prototypes"] == 1000
    assert chosen(facts(images=12, batch=4), **PAPER)["prototypes"] == 2


def test_prototypes_are_at_most_the_samples_of_one_assignment() -> None:
    got = chosen(facts(images=9000, batch=32), prototypes=800, queue_size=320, **PAPER)
    assert got == {"prototypes": 352}


def test_a_short_run_uses_its_queue_for_half_of_the_time_and_trains_its_prototypes() -> None:
    got = chosen(facts(epochs=4), **PAPER)
    assert got == {"queue_from_epoch": 1.99, "freeze_prototypes_epochs": 0.4}
    assert chosen(facts(epochs=40), **PAPER) == {}
    got = chosen(facts(images=1000, batch=16, epochs=1), prototypes=50, **PAPER)
    assert (got["queue_size"], got["queue_from_epoch"]) == (496, 0.0)  # half of the images seen, in batches of 16


@pytest.mark.parametrize("epochs", [1, 2, 3, 30])
@pytest.mark.parametrize("batch", [2, 7, 16, 48, 256, 1024])
@pytest.mark.parametrize("images", [64, 130, 1000, 10_007])
def test_what_is_chosen_passes_its_own_check_without_a_warning(images: int, batch: int, epochs: int) -> None:
    if batch > images:
        return
    for forward in (batch, max(1, batch // 2)):
        known = facts(images=images, batch=batch, epochs=epochs, forward=forward)
        for queue_size in (0, 1024, 3840):
            settings = {"prototypes": 3000, "queue_size": queue_size, **PAPER}
            settings |= {name: choice.value for name, choice in SwAV.choose(config(**settings).config, known).items()}
            assert list(SwAV.check(config(**settings).config, known)) == [], settings


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1000, "method.queue_size: 1000 must be a multiple of the batch of 256; 768 and 1024 are."),
        (100, "method.queue_size: 100 must be a multiple of the batch of 256; 0 (no queue) and 256 are."),
    ],
)
def test_a_queue_of_broken_batches_is_an_error_that_names_the_nearest_sizes(size: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SwAV.check(config(queue_size=size).config, facts())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "known", "warning"),
    [
        ({"prototypes": 513, "queue_size": 256}, facts(), "method.prototypes: 513 share 512 samples"),
        ({"queue_size": 1024}, facts(images=1000), "method.queue_size: 1024 is more than the 1000 training images"),
        (
            {"queue_from_epoch": 19},
            facts(images=3840, epochs=20),
            "method.queue_from_epoch: the queue is full after 20",
        ),
        ({"freeze_prototypes_epochs": 20}, facts(epochs=20), "method.freeze_prototypes_epochs: 20 is the whole run"),
    ],
)
def test_warnings(settings: dict[str, Any], known: Facts, warning: str) -> None:
    base = {"prototypes": 512, "queue_size": 3840, "queue_from_epoch": 2, "freeze_prototypes_epochs": 1}
    found = list(SwAV.check(config(**{**base, **settings}).config, known))
    assert any(text.startswith(warning) for text in found), found
    assert list(SwAV.check(config(**base).config, facts())) == []


@pytest.mark.parametrize(
    ("rate", "batch", "warned"),
    [(4.8, 4096, False), (0.6, 256, False), (4.8, 256, True), (4.8, 2048, False), (0.0, 2, False)],
)
def test_a_rate_of_a_larger_batch_is_warned_of(rate: float, batch: int, warned: bool) -> None:
    settings = {"prototypes": 2, "queue_size": 0, "freeze_prototypes_epochs": 1}
    known = replace(facts(batch=batch, images=100_000), peak_rate=rate)
    found = list(SwAV.check(config(**settings).config, known))
    assert [text.partition(": a peak of 4.8")[0] for text in found] == ["optimizer.lr"] * warned


def test_the_rate_of_the_imagenet_recipe_is_warned_of_at_a_small_batch(tmp_path) -> None:
    images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    given = {"data": images, "backbone": "resnet_tiny", "image_size": 16, "batch_size": 16, "epochs": 20}
    notes = akssl_core.explain("swav", **given, recipe="imagenet").notes
    assert any(text.startswith("warning: optimizer.lr: a peak of 4.8 at a batch of 16") for text in notes), notes


def test_a_queue_that_is_never_used_matters_only_where_there_is_one() -> None:
    settings = {"prototypes": 100, "queue_size": 0, "queue_from_epoch": 99, "freeze_prototypes_epochs": 1}
    assert list(SwAV.check(config(**settings).config, facts(epochs=10))) == []


# -- recipes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet", "imagenet_small_batch"])
def test_recipes_are_valid_and_have_views_the_method_takes(recipe: str) -> None:
    spec: Any = spec_of("swav", recipe=recipe)
    assert spec.recipe == recipe
    groups = spec.augmentation.build(ImageSpec(32, 3, (0.5,) * 3, (0.25,) * 3)).groups()
    assert (groups[0].name, len(groups[0].transforms)) == ("global", 2)
    for group in groups[1:]:
        assert group.name == "local"
        assert len(group.transforms) in SwAV.views["local"]
        assert group.size < groups[0].size


@pytest.mark.parametrize(("recipe", "batch", "queue"), [("imagenet", 4096, 0), ("imagenet_small_batch", 256, 3840)])
def test_imagenet_recipes_decay_and_adapt_every_parameter_at_learning_rates_of_their_batch(
    recipe: str, batch: int, queue: int
) -> None:
    spec: Any = spec_of("swav", recipe=recipe)
    optimizer = spec.optimizer.config
    assert (spec.train.batch_size, spec.method.config.queue_size) == (batch, queue)
    assert (optimizer.lr_per, optimizer.exempt_1d, optimizer.denominator) == (None, False, "sum_of_norms")
    assert optimizer.lr.end == pytest.approx(optimizer.lr.start / 1000)
    assert list(SwAV.check(spec.method.config, facts(batch=batch, epochs=spec.train.epochs))) == []


def test_a_tiny_run_from_start_to_end(tmp_path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    result = akssl_core.run(
        method="swav",
        data=images,
        backbone={"name": "resnet_tiny", "widths": [8, 8, 16, 16]},
        options={"hidden_dim": 16, "out_dim": 8, "prototypes": 6, "queue_size": 16, "queue_from_epoch": 0},
        epochs=1,
        batch_size=16,
        precision="fp32",
        out=tmp_path / "run",
        report=False,
    )
    assert 0 < result.metrics["loss"] < 10
    assert {"code_entropy", "z_std_ratio"} <= result.history[-1].keys()

"""What DINOv2 chooses for a data set, what it warns of, and its recipes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from akssl_plugin_dinov2 import DINOv2

from akssl_core import ConfigError, Facts, Now, Schedule
from akssl_core.testing import config_of, spec_of


def config(**settings: Any) -> Any:
    return config_of(DINOv2, **settings)


def facts(images: int = 1_281_167, epochs: int = 100, batch: int = 2048, side: int = 14) -> Facts:
    views = {"global": 2, "local": 8}
    return Facts(images, batch, batch, 16 * side, epochs, views, backbone="vit", embed_dim=384, tokens=(side, side))


# -- what is chosen -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("images", "outputs"),
    [(1_281_167, 65536), (50_000, 4096), (10_000, 1024), (2048, 256), (100, 256)],
    ids=["ImageNet", "CIFAR", "shapes", "few", "fewest"],
)
def test_outputs_are_at_most_one_for_every_8_images(images: int, outputs: int) -> None:
    chosen = DINOv2.choose(config(), facts(images))
    found = {name: choice.value for name, choice in chosen.items()}
    assert found == ({} if outputs == 65536 else {"out_dim": outputs, "patch_out_dim": outputs})


def test_a_short_run_gets_through_its_schedules() -> None:
    assert DINOv2.choose(config(), facts(epochs=30)) == {}
    chosen = DINOv2.choose(config(), facts(epochs=12))
    schedule = Schedule.model_validate(chosen["teacher_temperature"].value)
    assert [schedule(Now(epoch, 1, 12)) for epoch in (0, 6, 12)] == pytest.approx([0.04, 0.055, 0.07])
    chosen = DINOv2.choose(config(teacher_temperature=0.04), facts(epochs=1))
    assert {name: choice.value for name, choice in chosen.items()} == {"freeze_last_layer_epochs": 0.1}


def test_last_layers_may_stay_as_drawn() -> None:
    drawn = config(freeze_last_layer_epochs=None, teacher_temperature=0.04)
    assert DINOv2.choose(drawn, facts(epochs=1)) == {}
    assert DINOv2.check(drawn, facts(epochs=1)) == []


# -- what is refused and warned of ----------------------------------------------------------------
def test_settings_that_go_well_together_are_silent() -> None:
    assert DINOv2.check(config(), facts()) == []
    assert DINOv2.check(config(out_dim=131072, patch_out_dim=131072), facts(batch=3072)) == [], "the authors' long run"


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({"teacher_temperature": 0.5}, {}, "collapse to uniform"),
        ({"freeze_last_layer_epochs": 100}, {}, "never trained"),
        ({}, {"batch": 64}, "Use 4096 outputs or fewer"),
        ({"out_dim": 32}, {"batch": 3}, "the nearest of 3 images"),
        ({"koleo": {"group": 2}}, {}, "the nearest of 2 images"),
        ({}, {"side": 1}, "nothing is ever hidden"),
    ],
)
def test_settings_that_go_badly_together_are_told(settings: dict[str, Any], given: dict[str, int], words: str) -> None:
    (warning,) = DINOv2.check(config(**settings), facts(**given))
    assert words in warning


def test_batch_norms_in_a_shared_head_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shared_head: batch norms .* Set method.shared_head=false"):
        DINOv2.check(config(shared_head=True, head_batch_norm=True), facts())


def test_what_is_left_out_is_not_warned_of() -> None:
    assert DINOv2.check(config(out_dim=32, koleo_weight=0.0), facts(batch=2)) == []
    assert DINOv2.check(config(targets="center"), facts(batch=64)) == []
    assert DINOv2.check(config(mask_chance=0.0), facts(side=1)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_temperature": 0}, "teacher_temperature: should be above 0 all the time"),
        ({"momentum": 1.5}, "momentum: should stay between 0 and 1"),
        ({"mask_ratio": [0.5, 0.1]}, "mask_ratio: should be two numbers from 0 to 1, the smaller one first"),
        ({"mask_chance": 2}, "mask_chance"),
        ({"targets": "sinkhron"}, "sinkhorn"),
        ({"gram": {"begin": 2}}, "gram.begin"),
        ({"koleo": {"group": 1}}, "koleo.group"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_defaults_are_the_authors() -> None:
    c = config()
    assert (c.hidden_dim, c.bottleneck_dim, c.out_dim, c.head_layers) == (2048, 256, 65536, 3)
    assert (c.mask_chance, c.mask_ratio, c.koleo_weight, c.freeze_last_layer_epochs) == (0.5, (0.1, 0.5), 0.1, 1.0)
    assert (c.momentum.start, c.momentum.end, c.momentum.shape, c.momentum.per) == (0.992, 1.0, "cosine", "step")
    assert (c.targets, c.shared_head, c.gram) == ("sinkhorn", False, None)


# -- what a run should look like ------------------------------------------------------------------
def test_it_is_judged_by_nearest_neighbours_and_says_what_faults_look_like() -> None:
    assert (DINOv2.headline, DINOv2.collapses, DINOv2.accumulates) == ("knn", True, False)
    even, certain, patches_even, _, alike = DINOv2.landmarks(config(out_dim=256, patch_out_dim=64), facts())
    assert patches_even.where["patch_entropy"][0] == pytest.approx(0.998 * math.log(64))
    assert even.where["teacher_entropy"][0] == pytest.approx(0.998 * math.log(256))
    assert certain.where["teacher_entropy"][1] < 0.1
    assert alike.where == {"koleo": (5.0, math.inf)}
    curves = DINOv2.curves(config(out_dim=256, patch_out_dim=64), facts())
    assert curves["cls_loss"].lines["even outputs"] == pytest.approx(math.log(256))
    assert curves["patch_loss"].lines["even outputs"] == pytest.approx(math.log(64) / 2)
    assert DINOv2.curves(config(out_dim=256, shared_head=True), facts())["patch_agreement"].lines["chance"] == 1 / 256
    assert DINOv2.derived(config(out_dim=4096), facts(50_000, batch=512)) == {
        "hidden patches": "19 to 98 of 196, in 50% of the global crops",
        "images per output": "12.2 (4096 outputs)",
        "targets of a step per output": "0.25",
    }


# -- recipes --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "batch", "rate"), [("imagenet", 1024, 2e-3), ("cifar", 512, 1.414214e-3)])
def test_rates_follow_the_root_of_the_batch(name: str, batch: int, rate: float) -> None:
    """0.002 for a batch of 1024; the authors' ViT-L has 0.004, so 0.00565685 at their 2048."""
    spec = spec_of("dinov2", recipe=name)
    assert spec.train.batch_size == batch
    assert spec.optimizer.config.lr.start == pytest.approx(rate, rel=1e-6)
    assert spec.optimizer.config.scale(batch) == 1
    theirs = DINOv2.published[name].values["optimizer"]["lr"]["start"]
    assert theirs == pytest.approx(5.656854e-3, rel=1e-6)


@pytest.mark.parametrize("name", ["default", "cifar", "imagenet"])
def test_recipes_sharpen_the_teacher_and_clip(name: str) -> None:
    spec = spec_of("dinov2", recipe=name)
    assert spec.train.clip.norm == 3.0
    assert spec.train.clip.per == {"default": "parameter", "cifar": "model", "imagenet": "network"}[name]
    assert not [text for text in DINOv2.check(spec.method.config, facts(batch=1024)) if "temperature" in text]


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(ConfigError, match="head_layers: should be less than or equal to 256"):
        config_of(DINOv2, head_layers=10**12)

"""What DINO chooses for a data set, what it warns of, and the recipes of arXiv 2104.14294."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from akssl_plugin_dino import DINO

import akssl_core
from akssl_core import ConfigError, Facts, Now, Schedule
from akssl_core.testing import config_of, spec_of

MULTICROP = {"global": 2, "local": 8}


def config(**settings: Any) -> Any:
    return config_of(DINO, **settings)


def facts(images: int = 1_281_167, epochs: float = 100, image_size: int = 224, **views: int) -> Facts:
    return Facts(images, 256, 256, image_size, epochs, {**MULTICROP, **views})


def recipe(name: str) -> Any:
    return spec_of("dino", recipe=name)


# -- what is chosen -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("images", "outputs"),
    [(1_281_167, 65536), (50_000, 4096), (10_000, 1024), (2048, 256), (100, 256)],
    ids=["ImageNet", "CIFAR", "shapes", "few", "fewest"],
)
def test_outputs_are_at_most_one_for_every_8_images(images: int, outputs: int) -> None:
    chosen = DINO.choose(config(), facts(images))
    if outputs == 65536:
        assert "out_dim" not in chosen
    else:
        assert chosen["out_dim"].value == outputs
        assert str(images) in chosen["out_dim"].reason


def test_no_more_outputs_are_chosen_than_the_recipe_has() -> None:
    assert "out_dim" not in DINO.choose(config(out_dim=300), facts(50_000))
    assert "out_dim" not in DINO.choose(config(out_dim=64), facts(10))


def test_a_long_run_keeps_its_schedules_and_a_short_one_gets_through_them() -> None:
    assert DINO.choose(config(), facts(epochs=30)) == {}
    chosen = DINO.choose(config(), facts(epochs=12))
    assert chosen.keys() == {"teacher_temperature"}
    schedule = Schedule.model_validate(chosen["teacher_temperature"].value)
    assert [schedule(Now(epoch, 1, 12)) for epoch in (0, 6, 12)] == pytest.approx([0.04, 0.055, 0.07])
    chosen = DINO.choose(config(teacher_temperature=0.04), facts(epochs=1))
    assert {name: choice.value for name, choice in chosen.items()} == {"freeze_last_layer_epochs": 0.1}
    assert DINO.choose(config(), facts(epochs=0.25))["freeze_last_layer_epochs"].value == 0.025


def test_choices_reach_a_run_unless_the_user_has_set_the_value() -> None:
    pixels = torch.randint(0, 256, (64, 3, 16, 16)).to(torch.uint8)

    def resolved(**options: Any) -> Any:
        small = {"hidden_dim": 8, "bottleneck_dim": 4, **options}
        given: dict[str, Any] = {
            "data": pixels,
            "epochs": 3,
            "batch_size": 16,
            "options": small,
            "recipe": "imagenet_boosted",
            "image_size": 32,
        }
        given["backbone"] = {"name": "resnet_tiny"}
        return akssl_core.explain("dino", **given)

    found = resolved()
    assert found.spec.method.config.out_dim == 256
    assert found.spec.method.config.teacher_temperature.over == 3
    assert found.origins["method.out_dim"].startswith("rule: a power of two")
    assert resolved(out_dim=400).spec.method.config.out_dim == 400


# -- what is refused and warned of ----------------------------------------------------------------
@pytest.mark.parametrize(
    "temperature",
    [0.5, 0.1, {"start": 0.04, "end": 0.2, "shape": "linear"}, {"start": 0.04, "warmup": 5, "warmup_from": 0.3}],
    ids=["flat", "equal", "ends flat", "starts flat"],
)
def test_a_teacher_as_flat_as_the_student_is_warned_of(temperature: Any) -> None:
    (warning,) = DINO.check(config(teacher_temperature=temperature), facts())
    assert "collapse to uniform" in warning
    assert "0.04 to 0.07" in warning


def test_the_students_temperature_counts_where_it_is_set() -> None:
    assert not DINO.check(config(teacher_temperature=0.15, loss={"name": "dino", "student_temperature": 0.2}), facts())
    assert DINO.check(config(loss={"name": "dino", "student_temperature": 0.05}), facts())


def test_a_last_layer_that_is_never_trained_is_warned_of() -> None:
    (warning,) = DINO.check(config(freeze_last_layer_epochs=100), facts(epochs=100))
    assert "never trained" in warning
    assert not DINO.check(config(freeze_last_layer_epochs=99), facts(epochs=100))


def test_a_last_layer_as_drawn_is_a_choice_that_nothing_shortens() -> None:
    drawn = config(freeze_last_layer_epochs=None)
    assert not DINO.check(drawn, facts(epochs=1))
    assert "freeze_last_layer_epochs" not in DINO.choose(drawn, facts(epochs=1))


def test_a_run_without_local_crops_is_told_to_widen_the_global_ones() -> None:
    (warning,) = DINO.check(config(), facts(local=0))
    assert "[0.14, 1]" in warning
    (warning,) = DINO.check(config(), Facts(10_000, 256, 256, 224, 100, {"global": 2}))
    assert "[0.14, 1]" in warning
    assert not DINO.check(config(), facts(local=1))
    assert not DINO.check(config(), facts(local=0, image_size=32)), "what is known holds for large images"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_temperature": 0}, "teacher_temperature: should be above 0 all the time"),
        ({"teacher_temperature": {"start": 0.07, "warmup": 30}}, "warmup_from"),
        ({"momentum": 1.5}, "momentum: should stay between 0 and 1"),
        ({"center_momentum": 1.0}, "center_momentum"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_defaults_are_the_papers() -> None:
    c = config()
    assert (c.hidden_dim, c.bottleneck_dim, c.out_dim, c.head_layers, c.head_batch_norm) == (2048, 256, 65536, 3, False)
    assert (c.center_momentum, c.freeze_last_layer_epochs, c.loss.config.student_temperature) == (0.9, 1.0, 0.1)
    assert (c.momentum.start, c.momentum.end, c.momentum.shape, c.momentum.per) == (0.996, 1.0, "cosine", "step")
    assert (c.teacher_temperature.start, c.teacher_temperature.end, c.teacher_temperature.per) == (0.04, 0.07, "epoch")


# -- recipes --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["default", "cifar", "imagenet", "imagenet_boosted", "imagenet_resnet"])
def test_recipes_are_valid_and_sharpen_the_teacher(name: str) -> None:
    spec = recipe(name)
    assert spec.recipe == name
    assert spec.optimizer.config.lr_per == 256
    views = {"global": 2} if name == "cifar" else MULTICROP
    assert not DINO.check(spec.method.config, Facts(50_000, 256, 256, 32, 100, views))


@pytest.mark.parametrize(
    ("name", "decay"), [("imagenet", (0.04, 0.4)), ("imagenet_boosted", (0.04, 0.4)), ("imagenet_resnet", (1e-4, 1e-4))]
)
def test_imagenet_recipes_have_what_steadies_training(name: str, decay: tuple[float, float]) -> None:
    spec, last = recipe(name), Now(999, 10, 1000)
    assert (spec.train.clip.norm, spec.train.clip.per) == (3.0, "parameter")
    rates = spec.optimizer.config
    assert rates.lr.warmup == 10
    assert (rates.weight_decay.start, rates.weight_decay(last)) == pytest.approx(decay, rel=1e-3)
    assert rates.exempt_1d
    end = rates.lr(Now(1000, 10, 1000)) * spec.train.batch_size / 256
    assert end == pytest.approx(1e-6)
    assert spec.method.config.freeze_last_layer_epochs == 1
    assert spec.method.config.out_dim == 65536


def test_local_crops_are_smaller_in_pixels_and_in_area_than_global_ones() -> None:
    image = akssl_core.ImageSpec(224, 3, (0.5,) * 3, (0.25,) * 3)
    for name, area in (("imagenet", 0.4), ("imagenet_resnet", 0.14)):
        ref = recipe(name).augmentation
        large, small = ref.build(image).groups()
        assert [(g.name, g.size, len(g.transforms)) for g in (large, small)] == [("global", 224, 2), ("local", 96, 8)]
        assert ref.config.first.scale == ref.config.second.scale == (area, 1.0)
        assert ref.config.local.scale == (0.05, area)
        blurs = [p.blur for p in (ref.config.first, ref.config.second, ref.config.local)]
        solarized = [p.solarize for p in (ref.config.first, ref.config.second, ref.config.local)]
        assert (blurs, solarized) == ([1.0, 0.1, 0.5], [0.0, 0.2, 0.0])


def test_stochastic_depth_is_the_students_alone() -> None:
    backbone = akssl_core.build(
        "backbone", "vit_tiny", akssl_core.ImageSpec(16, 3, (0.5,) * 3, (0.25,) * 3), patch_size=8, drop_path=0.1
    )
    method = akssl_core.build("method", "dino", backbone, hidden_dim=8, bottleneck_dim=4, out_dim=16).train()
    assert all(block.drop_path.training for block in method.backbone.blocks)
    assert not any(block.drop_path.training for block in method.teacher.backbone.blocks)

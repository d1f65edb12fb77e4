"""iBOT's losses in numbers, what it chooses for a data set and warns of, and its recipes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from akssl_plugin_ibot import IBOT
from torch import Tensor

import akssl_core
from akssl_core import ConfigError, Facts, Now
from akssl_core.testing import config_of, spec_of

CENTER = torch.zeros(4)


def config(**settings: Any) -> Any:
    return config_of(IBOT, **settings)


def facts(images: int = 1_281_167, epochs: int = 800, side: int = 14) -> Facts:
    return Facts(images, 256, 256, 224, epochs, {"global": 2, "local": 10}, embed_dim=384, tokens=(side, side))


# -- the losses -----------------------------------------------------------------------------------
def patches(student: Tensor, teacher: Tensor, weights: Tensor, crops: int = 4, temperature: float = 0.04) -> float:
    center = torch.zeros(student.shape[1])
    return akssl_core.build("loss", "ibot_patch")(student, teacher, weights, crops, center, temperature).item()


def test_patches_weigh_by_their_crop_and_not_by_their_number() -> None:
    """Costs of 1 and 3 in one crop, of 5 in another, two crops without a mask: ((1 + 3) / 2 + 5) / 4."""
    share = torch.tensor([1.0, 3.0, 5.0]).neg().exp()
    student = 0.1 * torch.stack([share, 1 - share], 1).log()
    certain = torch.tensor([[100.0, 0.0]]).expand(3, -1)
    assert patches(student, certain, torch.tensor([0.5, 0.5, 1.0])) == pytest.approx(1.75, abs=1e-5)


@pytest.mark.parametrize(
    ("temperature", "met", "missed"),
    [(0.04, 1.361909e-4, 10.000136), (0.06, 1.379238e-4, None), (0.07, 1.549367e-4, 10.000130)],
)
def test_certain_targets_that_are_met_or_missed(temperature: float, met: float, missed: float | None) -> None:
    one, weights = torch.eye(4)[:1], torch.ones(1)
    of_crops = akssl_core.build("loss", "ibot")([one] * 2, [one] * 2, CENTER, temperature).item()
    assert of_crops == pytest.approx(met, abs=1e-7)
    assert patches(one, one, weights, 1, temperature) == pytest.approx(met, abs=1e-7)
    if missed is not None:
        assert patches(one.roll(1, 1), one, weights, 1, temperature) == pytest.approx(missed, abs=1e-5)


def test_constants_of_a_row_change_nothing_and_the_centre_absorbs_a_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher, vector = (torch.randn(n, 5, generator=generator) * 0.1 for n in (3, 3, 1))
    weights, add = torch.tensor([0.5, 0.5, 1.0]), torch.tensor([[1.0], [-2.0], [0.5]])
    loss = akssl_core.build("loss", "ibot_patch")
    expected = loss(student, teacher, weights, 4, torch.zeros(5), 0.05)
    for s, t, c in (
        (student + add, teacher, torch.zeros(5)),
        (student, teacher + add, torch.zeros(5)),
        (student, teacher + vector, vector[0]),
    ):
        torch.testing.assert_close(loss(s, t, weights, 4, c, 0.05), expected, rtol=1e-4, atol=1e-5)


def test_only_the_student_receives_a_gradient() -> None:
    student, teacher, center = (torch.randn(n, 4).requires_grad_() for n in (3, 3, 1))
    akssl_core.build("loss", "ibot_patch")(student, teacher, torch.ones(3), 4, center, 0.04).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert center.grad is None


def test_equal_logits_cost_log_k_times_the_share_of_masked_crops() -> None:
    even = torch.zeros(3, 4)
    assert patches(even, even, torch.tensor([0.5, 0.5, 1.0])) == pytest.approx(0.693147, abs=1e-6)
    none = torch.zeros(0, 4, requires_grad=True)
    loss = akssl_core.build("loss", "ibot_patch")(none, none, torch.zeros(0), 4, CENTER, 0.04)
    loss.backward()
    assert loss.item() == 0


# -- what is chosen -------------------------------------------------------------------------------
@pytest.mark.parametrize(("images", "outputs"), [(1_281_167, None), (50_000, 4096), (10_000, 1024), (100, 256)])
def test_outputs_are_at_most_one_for_every_8_images(images: int, outputs: int | None) -> None:
    chosen = IBOT.choose(config(), facts(images))
    assert (chosen["out_dim"].value if "out_dim" in chosen else None) == outputs


def test_a_long_run_keeps_its_schedules_and_a_short_one_gets_through_them() -> None:
    assert IBOT.choose(config(), facts(epochs=30)) == {}
    chosen = IBOT.choose(config(), facts(epochs=1))
    assert chosen["freeze_last_layer_epochs"].value == 0.1
    assert chosen["teacher_temperature"].value["over"] == chosen["patch_temperature"].value["over"] == 1


# -- what is refused and warned of ----------------------------------------------------------------
def test_a_grid_on_which_no_block_can_be_hidden_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crops of 224 px have 1 x 1 patches; expected at least 2 x 2"):
        IBOT.check(config(), facts(side=1))
    assert not IBOT.check(config(), facts(side=2))


@pytest.mark.parametrize(("name", "loss"), [("teacher_temperature", "loss"), ("patch_temperature", "patch_loss")])
def test_a_teacher_as_flat_as_the_student_is_warned_of(name: str, loss: str) -> None:
    (warning,) = IBOT.check(config(**{name: 0.1}), facts())
    assert warning.startswith(f"method.{name}: it reaches 0.1, and the student's is 0.1")
    assert f"method.{loss})" in warning
    other = {"name": getattr(config(), loss).name, "student_temperature": 0.2}
    assert not IBOT.check(config(**{name: 0.15, loss: other}), facts())


def test_last_layers_that_are_never_trained_are_warned_of() -> None:
    (warning,) = IBOT.check(config(freeze_last_layer_epochs=100), facts(epochs=100))
    assert "never trained" in warning
    assert not IBOT.check(config(freeze_last_layer_epochs=None), facts(epochs=1)), "where it is meant"
    assert "freeze_last_layer_epochs" not in IBOT.choose(config(freeze_last_layer_epochs=None), facts(epochs=1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher_temperature": 0}, "teacher_temperature: should be above 0 all the time"),
        ({"patch_temperature": {"start": 0.07, "warmup": 30}}, "patch_temperature: should be above 0"),
        ({"momentum": 1.5}, "momentum: should stay between 0 and 1"),
        ({"patch_weight": -1}, "patch_weight: should never be below 0"),
        ({"mask_ratio": [0.5, 0.1]}, "smaller number first"),
        ({"mask_ratio": [0.0, 0.5]}, "greater than 0"),
        ({"mask_chance": 0}, "greater than 0"),
        ({"mask_shape": "blocks"}, "'block' or 'random'"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**settings)


def test_it_says_what_faults_and_health_look_like() -> None:
    assert IBOT.headline == "knn"
    even, found = math.log(8192), IBOT.landmarks(config(), facts())
    assert [sorted(landmark.where) for landmark in found] == [
        ["teacher_entropy"],
        ["cls_loss", "teacher_entropy"],
        ["patch_entropy"],
        ["patch_entropy", "patch_loss"],
    ]
    assert all(landmark.where[next(iter(landmark.where))][0] in (0.0, 0.998 * even) for landmark in found)
    curves = IBOT.curves(config(), facts())
    assert curves["patch_loss"].lines == {"even outputs": pytest.approx(even / 2)}
    assert curves["patch_agreement"].lines == {"chance": 1 / 8192}
    assert IBOT.derived(config(), facts()) == {
        "hidden patches": "19.6 to 98 of 196, in 50% of the global crops",
        "images per output": "156 (8192 outputs)",
    }


# -- recipes --------------------------------------------------------------------------------------
def test_defaults_are_the_papers() -> None:
    c = config()
    assert (c.hidden_dim, c.bottleneck_dim, c.out_dim, c.head_layers, c.shared_head) == (2048, 256, 8192, 3, True)
    assert (c.mask_chance, c.mask_ratio, c.mask_shape) == (0.5, (0.1, 0.5), "block")
    assert (c.loss.config.student_temperature, c.patch_loss.config.student_temperature) == (0.1, 0.1)
    assert c.patch_weight.corners == [1.0, 1.0]


@pytest.mark.parametrize("name", list(IBOT.recipes))
def test_recipes_are_valid_and_sharpen_the_teacher(name: str) -> None:
    assert not IBOT.check(spec_of("ibot", recipe=name).method.config, facts(side=4))


def test_the_authors_recipe_is_theirs() -> None:
    spec, last = spec_of("ibot", recipe="imagenet"), Now(999, 10, 1000)
    rates = spec.optimizer.config
    assert (spec.train.clip.norm, spec.train.clip.per) == (3.0, "parameter")
    assert rates.scale(spec.train.batch_size) * rates.lr.start == pytest.approx(2e-3)
    assert rates.scale(spec.train.batch_size) * rates.lr.end == pytest.approx(1e-6)
    assert (rates.weight_decay.start, rates.weight_decay(last)) == pytest.approx((0.04, 0.4), rel=1e-3)
    large, small = spec.augmentation.build(akssl_core.ImageSpec(224, 3, (0.5,) * 3, (0.25,) * 3)).groups()
    assert [(g.size, len(g.transforms)) for g in (large, small)] == [(224, 2), (96, 10)]


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(akssl_core.ConfigError, match="head_layers: should be less than or equal to 256"):
        config_of(IBOT, head_layers=10**12)

"""What the views say of themselves, and which settings they refuse."""

from __future__ import annotations

import pytest

from akssl_core.augment import Asymmetric, MultiCrop, NamedViews, Pair
from akssl_core.config.schema import validate
from akssl_core.data.base import ImageSpec
from akssl_core.errors import ConfigError

SIDE = "size: should be a whole number of pixels, 8 or more, or a share between 0 and 1, got"
COMPONENTS = [Pair, Asymmetric, MultiCrop]


def spec(size: int = 32, channels: int = 3) -> ImageSpec:
    return ImageSpec(size, channels, (0.4,) * channels, (0.25,) * channels)


def build(component, image: ImageSpec | None = None, **settings):
    return component(validate(component.Config, settings, registry=None), image or spec())


# -- notes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("channels", [1, 13])
def test_color_operations_left_out_are_said_once(component, channels):
    notes = [n for n in build(component, spec(32, channels)).notes if "left out" in n]
    assert notes == [f"left out: saturation, hue, grayscale; they need 3 channels and the images have {channels}"]


def test_nothing_is_said_of_operations_that_were_not_asked_for():
    asked = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.5}
    assert build(Pair, spec(32, 1), **asked).notes == []
    assert build(Pair, spec(32, 1), **{**asked, "hue": 0.1}).notes == [
        "left out: hue; they need 3 channels and the images have 1"
    ]
    assert build(Pair, spec(32, 1), **{**asked, "hue": 0.1, "jitter": 0.0}).notes == []


def test_the_choice_of_blur_is_said():
    assert build(Pair, spec(32)).notes == ["blur: none on views of 32 px; published recipes blur from 64 px up"]
    assert build(Pair, spec(96)).notes == ["blur: probability 0.5 on views of 96 px, as in published recipes"]
    assert build(Pair, spec(32), blur=0.5).notes == []


def test_a_blur_that_was_set_is_kept_at_any_size():
    assert build(Pair, spec(16), blur=0.7).groups()[0].transforms[0].policy.blur == 0.7


def test_views_smaller_than_the_image_are_told():
    said = "global views are 24 px, the images of the backbone 32 px"
    named = build(NamedViews, spec(32), groups={"global": {"size": 0.75}})
    assert build(Pair, spec(32), size=0.75).notes == build(Pair, spec(32), size=24).notes == named.notes
    assert named.notes == [said, *build(Pair, spec(24)).notes]


def test_the_choice_of_the_local_size_is_said():
    assert build(MultiCrop, spec(224)).notes[0] == "local views have 96 px (96/224 of 224 px, even, at least 8)"
    assert not any("local" in note for note in build(MultiCrop, local_size=16).notes)


# -- refusals -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": [1.0, 0.2]}, "scale: should have the smaller number first, got [1.0, 0.2]"),
        ({"scale": 0.2}, "scale: should be two numbers, the smallest and the largest, got 0.2"),
        ({"scale": [0.2]}, "scale: should be two numbers, the smallest and the largest, got [0.2]"),
        ({"scale": [0.0, 1.0]}, "scale.0: should be greater than 0, got 0.0"),
        ({"scale": [0.5, 2.0]}, "scale.1: should be less than or equal to 1, got 2.0"),
        ({"ratio": [0, 1]}, "ratio.0: should be greater than 0, got 0"),
        ({"flip": 1.5}, "flip: should be less than or equal to 1, got 1.5"),
        ({"hue": 0.6}, "hue: should be less than or equal to 0.5, got 0.6"),
        ({"brightness": -1}, "brightness: should be greater than or equal to 0, got -1"),
        ({"blur_sigma": [0, 2]}, "blur_sigma.0: should be greater than 0, got 0"),
        (
            {"size": "half"},
            f"{SIDE} 'half'",
        ),
        ({"size": 1.5}, f"{SIDE} 1.5"),
        ({"size": 4}, f"{SIDE} 4"),
        ({"gray": 0.2}, "unknown setting 'gray'. Did you mean 'grayscale'?"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings, message):
    with pytest.raises(ConfigError) as error:
        validate(Pair.Config, settings, registry=None)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("component", "settings", "message"),
    [
        (Asymmetric, {"second": {"flip": 3}}, "second.flip: should be less than or equal to 1, got 3"),
        (NamedViews, {"groups": {"local": {"flip": 3}}}, "groups.local.flip: should be less than or equal to 1, got 3"),
        (
            NamedViews,
            {"groups": {"local": {"cuont": 3}}},
            "groups.local: unknown setting 'cuont'. Did you mean 'count'?",
        ),
        (NamedViews, {"groups": {"global": {"count": 0}}}, "groups.global.count: should be greater than or equal to 1"),
        (NamedViews, {"groups": {"global": 2}}, "groups.global: should be a table (name: value), got 2"),
        (NamedViews, {"groups": {}}, "groups: should not be empty, got {}"),
    ],
)
def test_a_wrong_setting_of_one_view_is_named_with_its_path(component, settings, message):
    with pytest.raises(ConfigError) as error:
        validate(component.Config, settings, registry=None)
    assert str(error.value).startswith(message)

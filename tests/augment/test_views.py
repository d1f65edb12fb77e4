from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import functional as TF

from akssl_core.augment import (
    Asymmetric,
    MultiCrop,
    NamedViews,
    Pair,
    PolicyTransform,
    ViewPolicy,
    akssl_register,
    base,
    policy,
)
from akssl_core.augment.policy import _chunks
from akssl_core.augment.views import local_size
from akssl_core.config.schema import validate
from akssl_core.data.base import ImageSpec, Pixels
from akssl_core.draws import Draws

COMPONENTS = [Pair, Asymmetric, MultiCrop]
NOTHING = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0, "flip": 0.0}


def spec(size: int = 32, channels: int = 3) -> ImageSpec:
    return ImageSpec(size, channels, (0.4,) * channels, (0.25,) * channels)


def pixels(count: int = 6, size: int = 32, channels: int = 3) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    return Pixels(torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8))


def draws(count: int = 6, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws.of(seed, epoch, torch.arange(count))


def build(component, image: ImageSpec | None = None, **settings):
    return component(validate(component.Config, settings, registry=None), image or spec())


def view(image: ImageSpec | None = None, count: int = 64, **settings) -> torch.Tensor:
    transform = PolicyTransform(ViewPolicy(**settings), 32, image or spec())
    return transform(pixels(count), draws(count))


# -- the transform of a policy --------------------------------------------------------------------
def test_a_view_is_torchvisions_chain_with_the_same_parameters():
    policy = ViewPolicy(blur=0.5, solarize=0.5, grayscale=0.5)
    transform = PolicyTransform(policy, 24, spec())
    batch, drawn = pixels(16), draws(16)
    crops = transform.crop.sample(drawn, torch.tensor([[32, 32]]).expand(16, 2))
    jitter, gray, blur, solarize = [operation.sample(drawn) for operation in transform.operations]
    for i, result in enumerate(transform(batch, drawn)):
        x = TF.resized_crop(batch.images[i].float(), *crops.boxes[i].tolist(), [24, 24], antialias=True) / 255
        x = TF.horizontal_flip(x) if crops.flip[i] else x
        adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for which in jitter.order[i].tolist() if jitter.on[i] else ():
            x = adjust[which](x.clamp(0, 1), float(jitter.factors[i, which]))
        x = TF.rgb_to_grayscale(x, 3) if gray.on[i] else x
        x = TF.gaussian_blur(x, [13, 13], [float(blur.sigma[i])] * 2) if blur.on[i] else x
        x = TF.solarize(x, 0.5) if solarize.on[i] else x
        different = (result - TF.normalize(x, [0.4] * 3, [0.25] * 3)).abs() > 1e-4
        assert float(different.float().mean()) < 0.002  # a value within rounding of the threshold inverts or not


@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("size", [8, 32, 33, 96, 512])
def test_any_size_and_channel_count(size, channels):
    count = 4 if size < 512 else 1
    image = spec(size, channels)
    transform = PolicyTransform(ViewPolicy(blur=1.0, solarize=1.0, jitter=1.0), size, image)
    result = transform(pixels(count, size, channels), draws(count))
    assert result.shape == (count, channels, size, size)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    low, high = -0.4 / 0.25, 0.6 / 0.25
    assert low - 1e-4 <= result.min() < result.max() <= high + 1e-4
    assert all(o.channels is None or channels in o.channels for o in transform.operations)


def test_ragged_images_give_the_views_they_give_alone():
    singles = [pixels(1, size).images[0] for size in (20, 40, 64)]
    singles.append(singles[2][:, :30])
    transform = PolicyTransform(ViewPolicy(blur=0.5), 24, spec(24))
    together = transform(Pixels.stack(singles), draws(4))
    for i, image in enumerate(singles):
        alone = transform(Pixels(image[None]), Draws.of(0, 0, torch.tensor([i])))
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)


def test_without_operations_only_the_crop_is_left():
    transform = PolicyTransform(ViewPolicy(**NOTHING, scale=(1.0, 1.0), ratio=(1.0, 1.0)), 32, spec())
    assert transform.operations == []
    expected = (pixels().images.float() / 255 - 0.4) / 0.25
    torch.testing.assert_close(transform(pixels(), draws()), expected, atol=1e-5, rtol=0)


def test_without_strengths_there_is_no_jitter():
    quiet = ViewPolicy(brightness=0, contrast=0, saturation=0, hue=0, grayscale=0, blur=0)
    assert PolicyTransform(quiet, 32, spec()).operations == []


def test_chunks_cover_the_batch_once():
    parts = list(_chunks(torch.empty(600, 3, 32, 32)))
    assert parts == [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert list(_chunks(torch.empty(3, 3, 1024, 1024))) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("limit", [0, 2**24])
def test_views_made_in_one_go_are_those_made_alone(monkeypatch, limit):
    monkeypatch.setattr(policy, "TOGETHER_UP_TO", limit)
    augmentation, batch = MultiCrop(MultiCrop.Config(local_count=3), spec()), pixels(10)
    views = augmentation(batch, draws(10))
    flat = [transform for group in augmentation.groups() for transform in group.transforms]
    assert [len(group) for group in views.values()] == [2, 3]
    for v, (view, transform) in enumerate(zip(views.all(), flat, strict=True)):
        torch.testing.assert_close(view, transform(batch, draws(10).view(v)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("limit", [0, 2**24])
def test_ragged_images_may_be_shown_in_one_go(monkeypatch, limit):
    monkeypatch.setattr(policy, "TOGETHER_UP_TO", limit)
    batch = Pixels.stack([pixels(1, size).images[0] for size in (20, 40, 64)])
    augmentation = build(Pair)
    transform = augmentation.groups()[0].transforms[0]
    for v, made in enumerate(augmentation(batch, draws(3))["global"]):
        torch.testing.assert_close(made, transform(batch, draws(3).view(v)), atol=1e-5, rtol=0)
    twice = batch.repeat(2)
    assert twice.sizes.tolist() == [[20, 20], [40, 40], [64, 64]] * 2
    assert [twice.image(i).equal(batch.image(i % 3)) for i in range(6)] == [True] * 6


# -- on another device, which cannot be asked for values ------------------------------------------
class Calls(TorchDispatchMode):
    """Counts the operations that reach the meta device: a GPU would launch each of them."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.is_meta]
        self.count += bool(made) and not func.is_view
        return result


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("component", "calls"), [(Pair, 230), (Asymmetric, 460), (MultiCrop, 690)])
def test_no_step_of_the_views_asks_the_device_for_values(component, calls, interpolation, ragged):
    policy = {"blur": 0.5, "solarize": 0.5, "interpolation": interpolation}
    names = {Pair: [], Asymmetric: ["first", "second"], MultiCrop: ["first", "second", "local"]}[component]
    augmentation = build(component, spec(64), **({name: policy for name in names} or policy))
    sizes = [(64, 40)] * 30 + [(50, 72)] * 2 if ragged else [(64, 72)] * 32
    batch = Pixels.stack([torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]).to(torch.device("meta"))
    augmentation(batch, draws(32))  # what is made once
    with Calls() as counted:
        views = augmentation(batch, draws(32)).all()
    assert all(view.is_meta and view.is_contiguous(memory_format=torch.channels_last) for view in views)
    assert 50 < counted.count <= calls


def test_what_is_sent_together_arrives_as_it_was():
    groups = [[torch.tensor([True, False, True])], [], [torch.arange(5)[::2], torch.rand(2, 3).t(), torch.empty(0, 4)]]
    there = base.together(groups, torch.device("cpu"))
    assert [len(group) for group in there] == [1, 0, 3]
    for arrived, tensor in zip(chain(*there), chain(*groups), strict=True):
        assert arrived.dtype == tensor.dtype
        assert torch.equal(arrived, tensor)


def test_chunks_do_not_show_in_the_views():
    transform, batch = PolicyTransform(ViewPolicy(blur=0.5, solarize=0.2), 32, spec()), pixels(300)
    whole = transform(batch, draws(300))
    pieces = [
        transform(Pixels(batch.images[start : start + 100]), Draws.of(0, 0, torch.arange(start, start + 100)))
        for start in (0, 100, 200)
    ]
    torch.testing.assert_close(whole, torch.cat(pieces), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.05, 0.2)},
        {"ratio": (1.0, 1.0)},
        {"flip": 0.0},
        {"jitter": 0.2},
        {"brightness": 0.1},
        {"contrast": 0.1},
        {"saturation": 0.1},
        {"hue": 0.3},
        {"grayscale": 0.9},
        {"blur": 0.1},
        {"blur_sigma": (1.5, 2.0)},
        {"solarize": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_reaches_the_pixels(change):
    base = {"blur": 0.5}
    assert set(change) <= set(ViewPolicy.model_fields)
    assert not torch.equal(view(**base), view(**{**base, **change}))


# -- randomness -----------------------------------------------------------------------------------
def test_views_are_the_same_for_any_split_and_order():
    augmentation, batch = build(Pair, blur=0.5), pixels(12)
    whole = augmentation(batch, draws(12))["global"]
    index = torch.tensor([9, 2, 11, 5])
    some = augmentation(Pixels(batch.images[index]), Draws.of(0, 0, index))["global"]
    for a, b in zip(whole, some, strict=True):
        torch.testing.assert_close(a[index], b, atol=1e-5, rtol=0)


def test_the_same_draws_give_the_same_bits():
    first, second = (build(MultiCrop)(pixels(), draws()).all() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_images_with_equal_pixels_get_different_views():
    twins = Pixels(pixels(1).images.repeat(16, 1, 1, 1))
    views = build(Pair)(twins, draws(16))["global"][0]
    assert torch.cdist(views.flatten(1), views.flatten(1)).fill_diagonal_(9).min() > 1


def test_the_views_of_an_image_differ():
    views = build(MultiCrop, local_count=3, local_size=32)(pixels(16), draws(16)).all()
    for i in range(len(views)):
        for j in range(i):
            assert ((views[i] - views[j]).flatten(1).norm(dim=1) > 1).all()


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_epoch_and_seed_change_every_image(other):
    a, b = (build(Pair)(pixels(), d)["global"][0] for d in (draws(), draws(**other)))
    assert ((a - b).flatten(1).norm(dim=1) > 1).all()


def test_parameters_differ_within_a_batch():
    transform = PolicyTransform(ViewPolicy(blur=0.5), 32, spec())
    crops = transform.crop.sample(draws(64), torch.tensor([[32, 32]]).expand(64, 2))
    assert len(crops.boxes.unique(dim=0)) > 60
    assert len(crops.flip.unique()) == 2
    for operation in transform.operations:
        assert len(operation.sample(draws(64)).on.unique()) == 2


# -- components -----------------------------------------------------------------------------------
def test_registers_those_that_a_config_can_name():
    class Names(list):
        add = list.append

    names = Names()
    akssl_register(registry=names)
    assert [component.name for component in names] == ["pair", "views", "asymmetric", "multicrop"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_groups_match_the_views(component):
    augmentation = build(component, spec(40))
    views = augmentation(pixels(3, 48), draws(3))
    assert list(views) == [group.name for group in augmentation.groups()]
    for group in augmentation.groups():
        assert [v.shape for v in views[group.name]] == [(3, 3, group.size, group.size)] * len(group.transforms)


@pytest.mark.parametrize("component", COMPONENTS)
def test_settings_survive_being_written_down(component):
    config = validate(component.Config, {"size": 48}, registry=None)
    assert validate(component.Config, config.model_dump(mode="json"), registry=None) == config


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_setting_is_described(component):
    def fields(schema):
        for name, field in schema.model_fields.items():
            yield name, field
            if hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation)

    assert [name for name, field in fields(component.Config) if not field.description] == []


def test_pair_views_follow_one_policy():
    first, second = build(Pair, blur=0.3, hue=0.2).groups()[0].transforms
    assert first is second
    assert first.policy.blur == 0.3
    assert first.policy.hue == 0.2


def test_size_is_the_runs_unless_it_is_given():
    assert build(Pair, spec(48)).groups()[0].size == 48
    assert build(Pair, spec(48), size=24)(pixels(), draws())["global"][0].shape[-1] == 24


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_pair_has_as_many_views_as_it_is_told(count):
    alike, two = build(Pair, count=count, blur=0.5)(pixels(), draws())["global"], build(Pair, blur=0.5)
    assert len(alike) == count
    for more, one in zip(alike, two(pixels(), draws())["global"], strict=False):
        assert torch.equal(more, one)  # one more view changes none of the others


def test_named_views_have_a_policy_a_count_and_a_size_a_group():
    groups = {"global": {"count": 1, "blur": 1.0}, "local": {"count": 3, "size": 16, "scale": [0.1, 0.2], "flip": 0}}
    made = build(NamedViews, spec(40), groups=groups)
    large, small = made.groups()
    assert (large.name, large.size, len(large.transforms)) == ("global", 40, 1)
    assert (small.name, small.size, len(small.transforms)) == ("local", 16, 3)
    assert (large.transforms[0].policy.blur, small.transforms[0].policy.scale) == (1.0, (0.1, 0.2))
    views = made(pixels(), draws())
    assert [[view.shape[-1] for view in group] for group in views.values()] == [[40], [16] * 3]
    assert "blur: none on views of 16 px; published recipes blur from 64 px up" in made.notes
    config = made.config.model_dump(mode="json")
    assert validate(NamedViews.Config, config, registry=None) == made.config
    assert list(config["groups"]) == ["global", "local"]


def test_named_groups_make_the_views_of_a_pair_and_of_multicrop():
    policy = {"scale": [0.2, 0.9], "blur": 0.3}
    pair, named = build(Pair, **policy), build(NamedViews, groups={"global": policy})
    assert all(map(torch.equal, pair(pixels(), draws())["global"], named(pixels(), draws())["global"]))
    crops = build(MultiCrop, local_count=3, local_size=16)
    local = {"scale": [0.05, 0.14], "size": 16, "count": 3}
    named = build(NamedViews, groups={"global": {"scale": [0.14, 1.0]}, "local": local})
    for one, other in zip(crops(pixels(), draws()).all(), named(pixels(), draws()).all(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_asymmetric_views_follow_their_policies():
    first, second = build(Asymmetric, first={"blur": 1.0}, second={"blur": 0.1}).groups()[0].transforms
    assert (first.policy.blur, second.policy.blur) == (1.0, 0.1)
    assert (first.policy.solarize, second.policy.solarize) == (0.0, 0.2)  # untouched defaults stay


def test_multicrop_offers_global_and_local_views():
    large, small = build(MultiCrop, spec(224), local_count=4).groups()
    assert (large.name, large.size, len(large.transforms)) == ("global", 224, 2)
    assert (small.name, small.size, len(small.transforms)) == ("local", 96, 4)
    assert small.transforms[0].policy.scale == (0.05, 0.14)


def test_multicrop_without_local_views_has_one_group():
    assert [group.name for group in build(MultiCrop, local_count=0).groups()] == ["global"]


@pytest.mark.parametrize(("size", "local"), [(8, 8), (32, 14), (64, 28), (96, 42), (224, 96), (512, 220)])
def test_local_size_keeps_the_published_proportion(size, local):
    assert local_size(size) == local


@pytest.mark.parametrize("patch", [2, 4, 7, 8, 14, 16, 32])
def test_local_views_of_open_size_are_whole_patches(patch):
    for size in range(32, 513):
        augmentation = build(MultiCrop, spec(size))
        augmentation.fit_patches(patch)
        local = augmentation.groups()[1].size
        assert local % patch == 0
        assert local == patch or abs(local - size * 96 / 224) <= max(patch / 2, 8)
    assert (
        augmentation.notes[0] == f"local views have {local} px (96/224 of 512 px, in patches of {patch} px, at least 8)"
    )


SIDES = [
    (None, 32, 4, 32), (24, 32, 16, 24), (0.75, 32, 2, 24), (0.75, 32, 4, 24), (0.7, 32, 2, 22), (0.1, 32, 2, 8),
    (0.5, 12, 2, 8), (0.9, 9, 16, 9), (0.625, 32, 8, 24),
    (0.75, 224, 2, 168), (0.75, 224, 16, 176), (0.75, 518, 14, 392), (0.1, 224, 16, 16),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "image", "patch", "side"), SIDES)
@pytest.mark.parametrize("component", [Pair, Asymmetric, MultiCrop, NamedViews])
def test_a_share_of_the_image_is_whole_patches(component, asked, image, patch, side):
    settings = {"groups": {"global": {"size": asked}}} if component is NamedViews else {"size": asked}
    augmentation = build(component, spec(image), **settings)
    augmentation.fit_patches(patch)
    assert [group.size for group in augmentation.groups()][:1] == [side]
    assert {transform.size for transform in augmentation.groups()[0].transforms} == {side}


def test_a_local_size_that_was_set_is_kept():
    augmentation = build(MultiCrop, local_size=13)
    augmentation.fit_patches(4)
    assert augmentation.groups()[1].size == 13

"""Losses, the step and the teacher, on toys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from akssl_plugin_distill import Distill, mixed
from akssl_plugin_distill.teacher import aligned, resized
from torch import Tensor, nn

import akssl_core
from akssl_core import Backbone, Batch, ConfigError, DataError, Facts, Features, ImageSpec, Now, Schema, Views, view_as
from akssl_core.nn import Frozen, state_digest
from akssl_core.testing import spec_of

NOW = Now(3, 4, 16)
IMAGE = ImageSpec(16, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
TEACHER = {"source": "random", "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}}


def make(backbone: Backbone | None = None, **settings: Any) -> Distill:
    torch.manual_seed(1)
    backbone = backbone or akssl_core.build("backbone", "resnet_tiny", IMAGE, widths=[4, 4, 8, 12])
    method = akssl_core.build("method", "distill", backbone, **{"teacher": TEACHER, **settings})
    assert isinstance(method, Distill)
    return method


def batch(count: int = 6, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(Views({"global": [torch.randn(count, 3, 16, 16, generator=generator)]}), torch.arange(count))


def loss(name: str, *args: Tensor | None, **settings: Any) -> float:
    return float(akssl_core.build("loss", name, **settings)(*args))


# -- losses: values worked out by hand ------------------------------------------------------------
AXES = torch.eye(6)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.3004892), (0.2, 4.8679111), (0.07, 14.2856786)])
def test_likeness_to_the_wrong_row(temperature: float, value: float) -> None:
    found = loss("distill_similarity", AXES[1:2], AXES[:1], AXES[:4], temperature=temperature)
    assert found == pytest.approx(value, abs=1e-5)


def test_likeness_that_agrees_costs_nothing_and_none_costs_little() -> None:
    assert loss("distill_similarity", AXES[:1], AXES[:1], AXES[:4]) == pytest.approx(0, abs=1e-6)
    found = loss("distill_similarity", AXES[5:], AXES[:1], AXES[:4], temperature=1.0)
    assert found == pytest.approx(0.1179929, abs=1e-5)


def test_rows_that_are_not_valid_are_no_classes() -> None:
    rows = torch.cat([AXES[:2], torch.zeros(2, 6)])
    valid = torch.tensor([True, True, False, False])
    s, t = AXES[1:2], AXES[:1]
    assert loss("distill_similarity", s, t, rows, temperature=1.0) == pytest.approx(0.3004892, abs=1e-5)
    assert loss("distill_similarity", s, t, rows, valid, temperature=1.0) == pytest.approx(0.4621172, abs=1e-5)


def test_temperatures_of_seed_make_a_contrast_with_the_own_row() -> None:
    settings = {"temperature": 0.2, "teacher_temperature": 1e-4}
    t, queue = AXES[:1], AXES[1:5]
    rows = torch.cat([t, queue])
    assert loss("distill_similarity", t, t, rows, **settings) == pytest.approx(0.0265950, abs=1e-5)
    assert loss("distill_similarity", AXES[5:], t, rows, **settings) == pytest.approx(math.log(5), abs=1e-5)
    twice = torch.cat([t, t, queue[:3]])
    entropy = math.log(2)  # of the teacher, by which a cross-entropy is larger
    assert loss("distill_similarity", t, t, twice, **settings) == pytest.approx(0.7032034 - entropy, abs=1e-5)


@pytest.mark.parametrize(("temperature", "there", "back"), [(1.0, 0.1179929, 0.1073740), (0.07, 1.3862657, 9.3279932)])
def test_likeness_of_tokens(temperature: float, there: float, back: float) -> None:
    unlike, alike = torch.eye(4)[None], torch.ones(1, 4, 4)
    assert loss("distill_tokens", alike, unlike, temperature=temperature) == pytest.approx(there, abs=1e-5)
    assert loss("distill_tokens", unlike, alike, temperature=temperature) == pytest.approx(back, abs=1e-5)
    assert loss("distill_tokens", 3 * unlike, unlike, temperature=temperature) == pytest.approx(0, abs=1e-6)


def test_features_and_tokens_themselves() -> None:
    one, e0, e1 = (torch.tensor([[x]]) for x in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0]))
    for student, teacher, value in ((one, one, 0), (2 * one, one, 0.05), (e0, e1, 0.95), (-e0, e0, 1.875)):
        assert loss("distill_feature_tokens", student, teacher) == pytest.approx(value, abs=1e-5)
    assert loss("distill_feature", 3 * one[0], one[0]) == pytest.approx(0, abs=1e-6)


def test_likeness_knows_no_directions() -> None:
    """A common rotation of student, teacher and rows changes nothing."""
    generator = torch.Generator().manual_seed(3)
    s, t, rows = (torch.randn(n, 8, generator=generator) for n in (5, 5, 12))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    before = loss("distill_similarity", s, t, rows)
    assert loss("distill_similarity", s @ turn, t @ turn, rows @ turn) == pytest.approx(before, abs=1e-4)


def test_gradients_reach_the_student_alone() -> None:
    s, t, rows = (torch.randn(n, 8, requires_grad=True) for n in (5, 5, 12))
    akssl_core.build("loss", "distill_similarity")(s, t, rows).backward()
    assert s.grad is not None
    assert t.grad is None
    assert rows.grad is None


# -- grids ----------------------------------------------------------------------------------------
def test_the_coarser_grid_is_resized_between_centres() -> None:
    tokens = torch.tensor([[[0.0], [1.0], [0.0], [1.0]]])
    finer = resized(tokens, (2, 2), (4, 4))
    torch.testing.assert_close(finer.view(4, 4), torch.tensor([0, 0.25, 0.75, 1]).expand(4, 4))
    coarse, fine = torch.randn(2, 4, 3), torch.randn(2, 16, 5)
    grids = {4: (2, 2), 16: (4, 4)}
    for mine, other in ((coarse, fine), (fine, coarse)):
        student, teacher = (Features(x.mean(1), x, grids[x.shape[1]]) for x in (mine, other))
        s, t = aligned(mine, student, teacher)
        assert s.shape[1] == t.shape[1] == 16
        assert any(x is fine for x in (s, t)), "the finer one stays as it is"


# -- pixels ---------------------------------------------------------------------------------------
def test_the_same_pixels_under_another_normalisation() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    wanted = ImageSpec(16, 3, (0.1, 0.2, 0.3), (0.5, 0.4, 0.3))

    def normal(spec: ImageSpec) -> Tensor:
        mean, std = (torch.tensor(x)[:, None, None] for x in (spec.mean, spec.std))
        return (pixels - mean) / std

    torch.testing.assert_close(view_as(normal(IMAGE), IMAGE, wanted), normal(wanted), atol=1e-5, rtol=1e-5)
    images = normal(IMAGE)
    assert view_as(images, IMAGE, IMAGE) is images
    assert view_as(images, IMAGE, ImageSpec(24, 3, IMAGE.mean, IMAGE.std)).shape == (2, 3, 24, 24)


def test_gray_images_are_shown_to_a_network_of_colours_and_not_the_other_way() -> None:
    gray = ImageSpec(16, 1, (0.5,), (0.5,))
    shown = view_as(torch.ones(2, 1, 16, 16), gray, IMAGE)  # white
    torch.testing.assert_close(shown[0, :, 0, 0], (1 - torch.tensor(IMAGE.mean)) / torch.tensor(IMAGE.std))
    with pytest.raises(DataError, match="3 channels cannot be shown to a network of 1"):
        view_as(torch.ones(2, 3, 16, 16), IMAGE, gray)


# -- the teacher ----------------------------------------------------------------------------------
def test_the_teacher_is_no_part_of_what_is_trained_saved_or_copied() -> None:
    method = make()
    assert not [name for name, _ in method.named_parameters() if name.startswith("teacher")]
    assert [name for name in method.state_dict() if name.startswith("teacher")] == ["teacher.sha256"]
    method.train()
    assert not any(part.training for part in method.teacher.module.modules())
    assert not any(p.requires_grad for p in method.teacher.module.parameters())


def test_a_step_leaves_the_teacher_bit_for_bit() -> None:
    method = make(variant="similarity").train()
    before = method.teacher.about["sha256"]
    for seed in range(3):
        method(batch(seed=seed), NOW)["loss"].backward()
    assert state_digest(method.teacher.module.backbone.state_dict()) == before


class Pointwise(Backbone):
    """A network that looks at each pixel alone: a mirrored image has the mirrored tokens."""

    name = "pointwise"
    embed_dim = 8

    def __init__(self, image: ImageSpec = IMAGE) -> None:
        super().__init__(Schema(), image)
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 8, 1)

    def features(self, images: Tensor) -> Features:
        x = self.conv(images).relu()
        return Features(x.mean((2, 3)), x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))


class AsTold(nn.Module):
    """A teacher that is a network as it is."""

    embed_dim = 8

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, index: Tensor, epoch: int) -> Features:
        return self.backbone.features(images)


def twins(**settings: Any) -> Distill:
    """A student that is its teacher already."""
    method = make(Pointwise(), **settings)
    method.teacher = Frozen(AsTold(Pointwise()))
    method.head = nn.Identity()
    if method.token_head is not None:
        method.token_head = nn.Identity()
    if settings["variant"].startswith("similarity"):
        method.queue = akssl_core.nn.Queue(4, 8)
    return method


@pytest.mark.parametrize("variant", ["feature", "feature+tokens", "similarity", "similarity+tokens"])
@pytest.mark.parametrize("mixup", [False, True])
def test_a_student_that_is_its_teacher_has_no_loss(variant: str, mixup: bool) -> None:
    """Separate draws of views or mixtures for the two would show."""
    terms = twins(variant=variant, mixup=mixup).train()(batch(), NOW)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("variant", ["feature+tokens", "similarity+tokens"])
def test_mirrored_pixels_have_mirrored_tokens(variant: str) -> None:
    method = twins(variant=variant)
    method.token_head = nn.Linear(8, 8)
    first = batch()
    (x,) = first.views["global"]
    mirrored = Batch(Views({"global": [x.flip(-1)]}), first.index)
    assert method(mirrored, NOW)["loss"].item() == pytest.approx(method(first, NOW)["loss"].item(), abs=1e-5)


# -- the step -------------------------------------------------------------------------------------
def test_mixtures_are_of_the_next_image_and_mostly_the_own_one() -> None:
    images = torch.randn(5, 3, 4, 4)
    x = mixed(images, batch(5).shared_draws.uniform("mixup", 1))
    share = ((x - images.roll(-1, 0)) / (images - images.roll(-1, 0))).flatten()
    assert float(share.max() - share.min()) < 1e-3
    assert 0.5 <= float(share.mean()) <= 1


def test_rows_of_the_queue_take_part_once_they_are_there() -> None:
    method = make(variant="similarity", queue_size=8, mixup=False).train()
    first = method(batch(6, seed=1), NOW)["loss"].item()
    with torch.no_grad():
        method.queue.rows.add_(1)  # still random, and not valid
    assert method(batch(6, seed=1), NOW)["loss"].item() == first
    method.queue.after_step(NOW)
    assert int(method.queue.filled) == 8, "what two passes have pushed"
    assert method(batch(6, seed=1), NOW)["loss"].item() != first


def test_likenesses_are_those_of_float32_in_fp16() -> None:
    method = make(variant="similarity", mixup=False).train()
    with torch.autocast("cpu", dtype=torch.float16):
        terms = method(batch(), NOW)
    assert terms["loss"].isfinite()
    assert 0 <= terms["agreement"] <= 1


def test_the_queue_holds_what_the_teacher_made() -> None:
    method = make(variant="similarity", queue_size=8, mixup=False).train()
    one = batch(6)
    method(one, NOW)
    method.queue.after_step(NOW)
    made = method.teacher(one.views["global"][0], one.index, 0).pooled
    torch.testing.assert_close(method.queue.rows[-6:], made)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.2}, "temperature has no effect with variant feature"),
        ({"variant": "similarity", "hidden_dim": 8}, "hidden_dim has no effect with variant similarity"),
        ({"variant": "similarity", "token_weight": 2.0}, "token_weight has no effect with variant similarity"),
        ({"target_views": 3}, "target_views has no effect with no targets"),
        ({"targets": "a.safetensors", "mixup": True}, "targets hold features of whole images, not of mixtures"),
        ({"targets": "a.safetensors", "variant": "feature+tokens"}, "targets hold features .*, not of patch tokens"),
        ({"teacher": {"source": "random"}}, "method.teacher.backbone: is missing"),
        ({"teacher": "no/such/file.safetensors"}, "method.teacher: there is no '.*/no/such/file.safetensors'"),
        ({"teacher": "resnet_tiny"}, "method.teacher: there are no published weights of resnet_tiny"),
        ({"teacher": "resnet_tini"}, "method.teacher: 'resnet_tini' is neither a run folder .* Did you mean"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**settings)


def facts(images: int = 100) -> Facts:
    return Facts(images=images, batch_size=10, forward_size=10, image_size=16, epochs=1, views={"global": 1})


def test_the_queue_is_half_of_few_images_and_mixtures_go_with_likeness() -> None:
    config = make(variant="similarity").config
    chosen = {name: choice.value for name, choice in Distill.choose(config, facts()).items()}
    assert chosen == {"queue_size": 50, "mixup": True}
    assert {name: choice.value for name, choice in Distill.choose(make().config, facts()).items()} == {"mixup": False}
    long = make(variant="similarity", queue_size=100).config
    with pytest.raises(ConfigError, match=r"method.queue_size: 100 is no less than the 100 .* 50 will do"):
        Distill.check(long, facts())


def test_a_recipe_s_settings_do_not_stand_in_the_way_of_another_variant() -> None:
    for recipe in ("cifar", "imagenet"):
        for changed in ({"variant": "feature"}, {"variant": "similarity", "targets": "kept.safetensors"}):
            assert spec_of("distill", recipe=recipe, options=changed).method.config.variant == changed["variant"]


def test_a_run_without_a_teacher_is_told_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"method.teacher: there is nothing to learn from. .*--set method.teacher="):
        Distill.check(make().config.model_copy(update={"teacher": None}), facts())


def test_a_network_without_patches_is_refused_for_tokens() -> None:
    class NoPatches(Pointwise):
        def features(self, images: Tensor) -> Features:
            return Features(super().features(images).pooled)

    with pytest.raises(ConfigError, match="backbone: it has no patch tokens"):
        make(NoPatches(), variant="feature+tokens")


def test_a_small_budget_learns_likenesses_of_whole_images() -> None:
    config = spec_of("distill", recipe="default").method.config
    assert (config.variant, config.mixup, config.targets) == ("similarity", False, None)


@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet"])
def test_recipes_are_valid_and_of_one_view(recipe: str) -> None:
    spec = spec_of("distill", recipe=recipe)
    assert spec.recipe == recipe
    assert spec.augmentation.config.count == 1
    assert spec.train.clip.norm == 1.0

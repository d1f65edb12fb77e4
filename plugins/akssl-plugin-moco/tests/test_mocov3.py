"""MoCo v3 against the formulas, layers and frozen parts of arXiv 2104.02057."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_moco import MoCoV3
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Backbone, Batch, ConfigError, Features, ImageSpec, Now, Schema, TokenBackbone, Views
from akssl_core.nn import StepState
from akssl_core.testing import ToyBackbone, optimizer_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
IMAGE = ImageSpec(8, 3, (0.5,) * 3, (0.25,) * 3)


class ToyTokens(TokenBackbone):
    """Patches of 4 px, each on its own through two layers."""

    name = "toy_tokens"
    embed_dim = 12
    patch_size = 4

    def __init__(self) -> None:
        super().__init__(Schema(), IMAGE)
        self.patch_embed = nn.Conv2d(3, 12, 4, 4)
        self.layer = nn.Linear(12, 12)

    def features(self, images: Tensor, **unused: Any) -> Features:
        x = self.layer(self.patch_embed(images).flatten(2).transpose(1, 2).tanh())
        return Features(x.relu().mean(1), x, (2, 2))


def make(backbone: type[Backbone] = ToyBackbone, **settings: Any) -> MoCoV3:
    torch.manual_seed(0)
    small = {"hidden_dim": 20, "out_dim": 16, **settings}
    method = akssl_core.build("method", "mocov3", backbone(), **small)
    assert isinstance(method, MoCoV3)
    return method


def batch(size: int = 8, seed: int = 1) -> Batch:
    return toy_batch(size, seed=seed)


def end_step(method: MoCoV3, now: Now = NOW) -> None:
    """What the engine does after the optimizer's step."""
    for module in method.modules():
        if isinstance(module, StepState):
            module.after_step(now)


def one_direction(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Row by row: the own key against the keys of all images."""
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    rows = [-torch.stack([row @ other for other in k]).div(temperature).log_softmax(0)[i] for i, row in enumerate(q)]
    return torch.stack(rows).mean()


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "temperature", "expected"), [(4, 1.0, 2.974674), (2, 1.0, 1.253047), (4, 0.2, 0.016010)]
)
def test_loss_of_keys_that_equal_orthogonal_queries(count: int, temperature: float, expected: float) -> None:
    rows = torch.eye(count)
    loss = akssl_core.build("loss", "infonce_mocov3", temperature=temperature)
    assert loss(rows, rows, rows, rows).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 5.545177), (0.2, 1.109035)])
def test_loss_of_equal_rows_is_4_temperatures_log_n(temperature: float, expected: float) -> None:
    rows = torch.ones(4, 6)
    loss = akssl_core.build("loss", "infonce_mocov3", temperature=temperature)
    assert loss(rows, rows, rows, rows).item() == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(4 * temperature * math.log(4), abs=1e-5)


def test_loss_is_that_of_crossed_views_over_rows_of_any_length() -> None:
    torch.manual_seed(0)
    q1, q2, k1, k2 = (torch.randn(5, 6) for _ in range(4))
    loss = akssl_core.build("loss", "infonce_mocov3", temperature=0.3)
    expected = 2 * 0.3 * (one_direction(q1, k2, 0.3) + one_direction(q2, k1, 0.3))
    torch.testing.assert_close(loss(q1, q2, k1, k2), expected)
    torch.testing.assert_close(loss(3 * q1, q2, k1, 0.1 * k2), expected)
    torch.testing.assert_close(loss(q2, q1, k2, k1), expected)


def test_gradient_of_the_loss_reaches_queries_alone() -> None:
    torch.manual_seed(0)
    q1, q2, k1, k2 = (torch.randn(5, 6, requires_grad=True) for _ in range(4))
    akssl_core.build("loss", "infonce_mocov3")(q1, q2, k1, k2).backward()
    assert q1.grad is not None
    assert q2.grad is not None
    assert k1.grad is None
    assert k2.grad is None


def test_default_temperature_is_the_resnets() -> None:
    assert akssl_core.build("loss", "infonce_mocov3").config.temperature == 1.0


# -- a step ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("backbone", [ToyBackbone, ToyTokens])
def test_step_contrasts_predictions_with_keys_of_the_other_view(backbone: type[Backbone]) -> None:
    method, b = make(backbone), batch()
    with torch.no_grad():
        for p in method.key.parameters():
            p.mul_(1.3)  # so that keys are not projections of the online encoder
    x1, x2 = b.views["global"]
    loss = method.step(b, NOW)["loss"]
    q1, q2 = (method.predictor(method.projector(method.backbone(x))) for x in (x1, x2))
    k1, k2 = (method.key.projector(method.key.backbone(x)) for x in (x1, x2))
    torch.testing.assert_close(loss, 2 * (one_direction(q1, k2, 1.0) + one_direction(q2, k1, 1.0)))


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    assert loss(x2, x1) == pytest.approx(loss(x1, x2), abs=1e-5)
    assert loss(x1 + torch.randn_like(x1), x2) != pytest.approx(loss(x1, x2), abs=1e-4)
    assert loss(x1, x2 + torch.randn_like(x2)) != pytest.approx(loss(x1, x2), abs=1e-4)


def test_each_view_has_a_forward_pass_of_its_own() -> None:
    method = make()
    method.step(batch(6), NOW)
    assert method.backbone.seen == [(6, 8), (6, 8)]
    assert method.key.backbone.seen == [(6, 8), (6, 8)]


def test_gradient_reaches_backbone_projector_and_predictor_alone() -> None:
    method = make()
    method.step(batch(), NOW)["loss"].backward()
    for name, p in method.named_parameters():
        if name.startswith("key."):
            assert p.grad is None, name
            assert not p.requires_grad, name
        else:
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name


def test_one_gradient_step_lowers_the_loss() -> None:
    method, b = make(), batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    first = method.step(b, NOW)["loss"]
    first.backward()
    optimizer.step()
    assert method.step(b, NOW)["loss"] < first


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_first_loss_is_about_4_temperatures_log_n(temperature: float) -> None:
    """Untrained predictions are about orthogonal to all keys."""
    loss = {"name": "infonce_mocov3", "temperature": temperature}
    method = make(hidden_dim=256, out_dim=128, loss=loss)
    value = method.step(batch(64), NOW)["loss"].item()
    assert value == pytest.approx(4 * temperature * math.log(64), rel=0.15)


# -- the slow encoder -----------------------------------------------------------------------------
def test_momentum_encoder_starts_as_a_copy_and_moves_only_after_the_step() -> None:
    method, b = make(momentum=0.9), batch()
    old = {name: p.clone() for name, p in method.key.named_parameters()}
    assert {name.split(".")[0] for name in old} == {"backbone", "projector"}, "the predictor has no slow copy"
    assert all(torch.equal(p, method.get_parameter(name)) for name, p in old.items())
    with torch.no_grad():
        for name in old:
            method.get_parameter(name).add_(torch.randn_like(old[name]))
    method.step(b, NOW)
    assert all(torch.equal(p, old[name]) for name, p in method.key.named_parameters())
    end_step(method)
    for name, p in method.key.named_parameters():
        torch.testing.assert_close(p, 0.9 * old[name] + 0.1 * method.get_parameter(name))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_encoder_at_the_ends_of_momentum(momentum: float) -> None:
    method = make(momentum=momentum)
    with torch.no_grad():
        method.backbone.conv.weight.add_(1.0)
    before = method.key.backbone.conv.weight.clone()
    end_step(method)
    expected = method.backbone.conv.weight if momentum == 0 else before
    assert torch.equal(method.key.backbone.conv.weight, expected)


def test_momentum_goes_from_099_to_1_by_a_cosine() -> None:
    momentum = make().config.momentum
    values = [momentum(Now(step, 10, 100)) for step in (0, 50, 100)]
    assert values == pytest.approx([0.99, 0.995, 1.0])


def test_state_dict_holds_the_momentum_encoder() -> None:
    method = make(momentum=0.5)
    with torch.no_grad():
        method.backbone.conv.weight.add_(0.1)
    end_step(method)
    other = make(momentum=0.5)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.step(batch(), NOW)["loss"], other.step(batch(), NOW)["loss"])


# -- construction ---------------------------------------------------------------------------------
BLOCK = ["Linear", "BatchNorm1d", "ReLU"]


def layers(head: nn.Sequential) -> tuple[list[str], list[tuple[int, int]]]:
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linear)
    return [type(layer).__name__ for layer in head], [(layer.in_features, layer.out_features) for layer in linear]


@pytest.mark.parametrize(("backbone", "settings"), [(ToyBackbone, {}), (ToyTokens, {"head": "resnet"})])
def test_heads_of_resnets_layer_by_layer(backbone: type[Backbone], settings: dict[str, Any]) -> None:
    method = make(backbone, **settings)
    assert layers(method.projector) == ([*BLOCK, "Linear", "BatchNorm1d"], [(12, 20), (20, 16)])
    assert layers(method.predictor) == ([*BLOCK, "Linear"], [(16, 20), (20, 16)])
    assert method.projector[1].affine
    assert not method.projector[-1].affine


@pytest.mark.parametrize(("backbone", "settings"), [(ToyTokens, {}), (ToyBackbone, {"head": "vit"})])
def test_heads_of_vits_layer_by_layer(backbone: type[Backbone], settings: dict[str, Any]) -> None:
    method = make(backbone, **settings)
    assert layers(method.projector) == ([*BLOCK, *BLOCK, "Linear", "BatchNorm1d"], [(12, 20), (20, 20), (20, 16)])
    assert layers(method.predictor) == ([*BLOCK, "Linear", "BatchNorm1d"], [(16, 20), (20, 16)])
    assert not method.projector[-1].affine
    assert not method.predictor[-1].affine


@pytest.mark.parametrize("backbone", [ToyBackbone, ToyTokens])
def test_construction_leaves_the_weights_of_the_backbone_as_they_are(backbone: type[Backbone]) -> None:
    own = backbone()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    method = akssl_core.build("method", "mocov3", own, hidden_dim=8)
    assert method.backbone is own
    assert method.encoder is own
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


# -- the patch projection -------------------------------------------------------------------------
def test_patch_projection_of_a_vit_stays_as_it_was_initialised() -> None:

    torch.manual_seed(0)
    vit = akssl_core.build("backbone", "vit_tiny", IMAGE, patch_size=4, positions="sincos")
    method = akssl_core.build("method", "mocov3", vit, hidden_dim=8, out_dim=8, momentum=0.5)
    optimizer = optimizer_of(method, "adamw")
    names = {name for group in optimizer.param_groups for name in group["names"]}
    frozen = {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    assert not names & {*frozen, "backbone.pos_embed"}
    before = {name: p.clone() for name, p in method.named_parameters()}
    for seed in range(2):
        method.step(batch(4, seed), NOW)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        end_step(method)
    for name in frozen:
        assert torch.equal(method.get_parameter(name), before[name]), name
        assert torch.equal(method.get_parameter(f"key.{name}"), before[name]), name
    assert torch.equal(vit.pos_embed, before["backbone.pos_embed"])
    assert all(not torch.equal(method.get_parameter(name), before[name]) for name in names)


@pytest.mark.parametrize(("setting", "trained"), [(None, False), (True, False), (False, True)])
def test_patch_projection_is_frozen_unless_told_otherwise(setting: bool | None, trained: bool) -> None:
    method = make(ToyTokens, freeze_patch_projection=setting)
    method.step(batch(), NOW)["loss"].backward()
    for p in method.backbone.patch_embed.parameters():
        assert p.requires_grad == trained
        assert (p.grad is not None) == trained


def test_a_backbone_without_patches_is_trained_whole() -> None:
    assert all(p.requires_grad for p in make().backbone.parameters())


def test_freezing_a_patch_projection_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="toy has no patch projection. Use a vision transformer .vit_tiny, vit_small"):
        make(ToyBackbone, freeze_patch_projection=True)


# -- recipes and a run ----------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet", "imagenet_vit"])
def test_recipes_are_valid(recipe: str) -> None:

    spec = spec_of("mocov3", recipe=recipe)
    assert spec.recipe == recipe
    assert spec.optimizer.config.lr_per == 256


def test_vit_recipe_is_the_papers() -> None:
    recipe = MoCoV3.recipes["imagenet_vit"]
    settings = dict(recipe["backbone"])
    vit = akssl_core.build("backbone", settings.pop("name"), ImageSpec(224, 3, (0.5,) * 3, (0.25,) * 3), **settings)
    assert (vit.patch_size, vit.blocks[0].attn.heads, vit.pos_embed.requires_grad) == (16, 12, False)
    assert recipe["optimizer"]["weight_decay"] == 0.1
    assert recipe["optimizer"]["exempt_1d"] is False
    assert recipe["augmentation"]["first"]["scale"] == [0.08, 1.0]
    assert [recipe["augmentation"][view]["blur"] for view in ("first", "second")] == [1.0, 0.1]
    assert [recipe["augmentation"][view]["solarize"] for view in ("first", "second")] == [0.0, 0.2]


@pytest.mark.parametrize("backbone", [{"name": "resnet_tiny", "widths": [4, 4, 8, 8]}, {"name": "vit_tiny"}])
def test_a_run_with_few_images_trains(tmp_path: Path, backbone: dict[str, Any]) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = akssl_core.run(
        method="mocov3",
        data=images,
        epochs=1,
        steps=1,
        batch_size=16,
        out=tmp_path / "run",
        report=False,
        options={"hidden_dim": 8, "out_dim": 8},
        backbone=backbone,
    )
    assert math.isfinite(result.metrics["loss"])
    assert "z_std_ratio" in result.history[0]

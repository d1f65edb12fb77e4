"""SimCLR against the formulas, layers and gradients of arXiv 2002.05709 and 2006.10029."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_simclr import SimCLR, SimCLRv2
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Facts, Now, Views
from akssl_core.testing import ToyBackbone, optimizer_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
METHODS = {"simclr": SimCLR, "simclrv2": SimCLRv2}


def make(name: str = "simclr", temperature: float = 0.5, **settings: Any) -> Any:
    torch.manual_seed(0)
    loss = {"name": "ntxent", "temperature": temperature}
    return akssl_core.build("method", name, ToyBackbone(), **{"out_dim": 16, "loss": loss, **settings})


def rows(count: int, width: int = 8, seed: int = 2) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def ntxent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    built = akssl_core.build("loss", "ntxent", temperature=temperature)
    value: Tensor = built(z1, z2)
    return value


def written_out(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Equation 1 of the paper, one anchor at a time, in float64."""
    z = F.normalize(torch.cat([z1, z2]).double(), dim=1)
    losses = []
    for i in range(len(z)):
        j = (i + len(z1)) % len(z)
        exps = torch.stack([torch.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i])
        losses.append(-torch.log(torch.exp(z[i] @ z[j] / temperature) / exps.sum()))
    return torch.stack(losses).mean()


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "temperature", "expected"), [(2, 1, 0.551445), (2, 0.5, 0.239545), (4, 0.5, 0.594438), (8, 0.2, 0.090143)]
)
def test_loss_of_orthogonal_images_with_equal_views(count: int, temperature: float, expected: float) -> None:
    basis = torch.eye(count, 8)
    loss = ntxent(basis, basis, temperature).item()
    assert loss == pytest.approx(expected, abs=1e-5)
    assert loss == pytest.approx(math.log(1 + 2 * (count - 1) * math.exp(-1 / temperature)), abs=1e-5)


@pytest.mark.parametrize(("count", "expected"), [(2, 1.098612), (4, 1.945910)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_is_that_of_chance_when_all_views_are_alike_or_all_orthogonal(
    count: int, expected: float, temperature: float
) -> None:
    alike, basis = torch.ones(count, 8), torch.eye(2 * count, 8)
    assert ntxent(alike, alike, temperature).item() == pytest.approx(expected, abs=1e-5)
    assert ntxent(basis[:count], basis[count:], temperature).item() == pytest.approx(expected, abs=1e-5)


def test_loss_of_opposite_views() -> None:
    basis = torch.eye(2, 8)
    assert ntxent(basis, -basis, 0.5).item() == pytest.approx(2.758624, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_one_image_has_no_negatives_and_no_loss(temperature: float) -> None:
    z1, z2 = rows(1).requires_grad_(), rows(1, seed=3)
    loss = ntxent(z1, z2, temperature)
    loss.backward()
    assert loss.item() == 0
    assert z1.grad is not None
    assert torch.equal(z1.grad, torch.zeros(1, 8))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_loss_and_its_gradient_are_the_paper_written_out(temperature: float) -> None:
    z1, z2 = rows(5).requires_grad_(), rows(5, seed=3).requires_grad_()
    loss, expected = ntxent(z1, z2, temperature), written_out(z1, z2, temperature)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for mine, papers in zip(torch.autograd.grad(loss, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True):
        torch.testing.assert_close(mine, papers, rtol=1e-4, atol=1e-5)
        assert (mine.abs().sum(1) > 1e-3).all(), "every row of either view"


@pytest.mark.parametrize("temperature", [0.01, 0.005])
def test_loss_and_gradient_stay_finite_at_small_temperatures(temperature: float) -> None:
    """Exponentials of cosine / temperature would underflow to a loss of infinity."""
    z1 = torch.eye(2, 8, requires_grad=True)
    z2 = -torch.eye(2, 8)
    loss = ntxent(z1, z2, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(1 / temperature + math.log(2), rel=1e-6)
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


def test_loss_ignores_lengths_common_order_order_of_views_and_rotations() -> None:
    z1, z2 = rows(6), rows(6, seed=3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(6, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    rotation = torch.linalg.qr(rows(8, seed=4)).Q
    expected = pytest.approx(ntxent(z1, z2, 0.2).item(), abs=1e-5)
    assert ntxent(z1 * lengths, z2 * 7, 0.2).item() == expected
    assert ntxent(z1[order], z2[order], 0.2).item() == expected
    assert ntxent(z2, z1, 0.2).item() == expected
    assert ntxent(z1 @ rotation, z2 @ rotation, 0.2).item() == expected
    assert ntxent(z1[order], z2, 0.2).item() != expected


def test_views_of_unequal_number_are_refused() -> None:
    with pytest.raises(RuntimeError, match="equal size"):
        ntxent(rows(4), rows(5), 0.5)


def test_loss_is_computed_in_float32_under_autocast() -> None:
    z1, z2 = rows(6), rows(6, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ntxent(z1, z2, 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(ntxent(z1, z2, 0.05).item(), abs=1e-6)


# -- the method -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_step_is_the_loss_of_both_projections_of_one_forward_pass(name: str) -> None:
    method, b = make(name), toy_batch()
    loss = method.step(b, NOW)["loss"]
    assert method.backbone.seen == [(12, 8)]
    z1, z2 = method.projector(method.backbone(torch.cat(b.views["global"]))).chunk(2)
    assert loss.item() == pytest.approx(written_out(z1, z2, 0.5).item(), abs=1e-5)


def test_batch_norms_see_both_views_at_once() -> None:
    method, b = make(), toy_batch()
    b.views["global"][1].mul_(3).add_(1)
    together = method.step(b, NOW)["loss"]
    z1, z2 = (method.projector(method.backbone(x)) for x in b.views["global"])
    assert method.loss(z1, z2).item() != pytest.approx(together.item(), abs=1e-3)


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        value: float = method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()
        return value

    noise = rows(6, 3 * 8 * 8).reshape(x1.shape)
    assert loss(x2, x1) == pytest.approx(loss(x1, x2), abs=1e-5)
    assert loss(x1 + noise, x2) != pytest.approx(loss(x1, x2), abs=1e-4)
    assert loss(x1, x2 + noise) != pytest.approx(loss(x1, x2), abs=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_gets_a_gradient_through_either_view(name: str) -> None:
    method, b = make(name), toy_batch()
    for view in (0, 1):
        method.zero_grad()
        z = list(method.projector(method.backbone(torch.cat(b.views["global"]))).chunk(2))
        z[1 - view] = z[1 - view].detach()
        method.loss(*z).backward()
        for parameter_name, p in method.named_parameters():
            if p.requires_grad:
                assert p.grad is not None, parameter_name
                assert p.grad.abs().max() > 0, parameter_name
    assert [n for n, p in method.named_parameters() if not p.requires_grad] == [
        f"projector.{len(method.projector) - 1}.bias"
    ]


def test_first_step_lowers_the_loss_of_its_batch() -> None:
    method, b = make(), toy_batch(16)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    before = method.step(b, NOW)["loss"]
    before.backward()
    optimizer.step()
    assert method.step(b, NOW)["loss"].item() < before.item() - 1e-4


def test_first_loss_is_that_of_chance() -> None:
    """About log(2N - 1) at temperature 1, here for views that have nothing to do with each other."""
    assert make(temperature=1.0).step(toy_batch(64), NOW)["loss"].item() == pytest.approx(math.log(127), abs=0.1)


def test_step_reports_the_spread_of_the_projections() -> None:
    ratio = make().step(toy_batch(64), NOW)["z_std_ratio"]
    assert ratio.shape == ()
    assert not ratio.requires_grad
    assert 0.5 < ratio.item() <= 1


# -- the heads ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "hidden"), [("simclr", 1), ("simclrv2", 2)])
def test_heads_layer_by_layer(name: str, hidden: int) -> None:
    projector = make(name).projector
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(layer).__name__ for layer in projector] == [*block * hidden, "Linear", "BatchNorm1d"]
    linear = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 12)] * hidden + [(12, 16)]
    assert all(layer.bias is None for layer in linear)
    assert projector[1].weight.requires_grad
    assert projector[1].bias.requires_grad
    assert projector[-1].weight.requires_grad
    assert not projector[-1].bias.requires_grad, "the last batch norm scales and does not shift"
    assert torch.equal(projector[-1].bias, torch.zeros(16))


def test_the_head_of_version_2_has_one_layer_more() -> None:
    size = {name: sum(p.numel() for p in make(name).projector.parameters()) for name in METHODS}
    assert size["simclrv2"] - size["simclr"] == 12 * 12 + 2 * 12


def test_width_and_depth_of_the_head_can_be_set() -> None:
    linear = [layer for layer in make(hidden_dim=20, projector_layers=4).projector if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [20, 20, 20, 16]
    assert len(make(projector_layers=1).projector) == 2


def test_head_starts_with_small_normal_weights() -> None:
    for layer in make(hidden_dim=400, out_dim=200).projector:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
            assert layer.weight.abs().max() > 0.025, "normal, not uniform"


def test_biases_and_norms_are_neither_decayed_nor_adapted_by_lars() -> None:
    groups = optimizer_of(make(), "lars").param_groups
    plain = {n for g in groups if g["weight_decay_factor"] == 0 and not g["adapt"] for n in g["names"]}
    norms = {"backbone.bn.weight", "backbone.bn.bias"}
    assert plain == norms | {"projector.1.weight", "projector.1.bias", "projector.4.weight"}
    assert {n for g in groups if g["adapt"] for n in g["names"]} == {
        "backbone.conv.weight",
        "projector.0.weight",
        "projector.3.weight",
    }


def test_constructing_a_method_leaves_the_backbone_as_it_was() -> None:
    backbone = ToyBackbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    method = akssl_core.build("method", "simclr", backbone)
    assert method.encoder is backbone
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_state_dict_holds_all_that_a_step_needs() -> None:
    method, b = make(), toy_batch()
    method.step(b, NOW)
    torch.manual_seed(1)
    other = akssl_core.build("method", "simclr", ToyBackbone(), **method.config.model_dump(mode="json"))
    assert other.step(b, NOW)["loss"].item() != method.step(b, NOW)["loss"].item()
    other.load_state_dict(method.state_dict())
    assert other.step(b, NOW)["loss"].item() == method.step(b, NOW)["loss"].item()
    assert all(torch.equal(a, b) for a, b in zip(other.buffers(), method.buffers(), strict=True))


def test_twice_the_paper_s_loss_is_that_of_the_authors_code() -> None:
    """It adds the mean over the anchors of the first view to that of the second."""
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (F.normalize(torch.randn(6, 8, generator=generator), dim=1) for _ in range(2))

    def anchors(own: Tensor, other: Tensor) -> Tensor:
        among = (own @ own.T - 1e9 * torch.eye(6)) / 0.5
        return F.cross_entropy(torch.cat([own @ other.T / 0.5, among], 1), torch.arange(6))

    loss = akssl_core.build("loss", "ntxent", temperature=0.5, scale=2.0)
    torch.testing.assert_close(loss(z1, z2), anchors(z1, z2) + anchors(z2, z1))


def test_chance_follows_the_factor_of_the_loss() -> None:
    facts = Facts(1000, 32, 32, 32, 10, {"global": 2})
    for scale in (1.0, 2.0):
        config = make(loss={"name": "ntxent", "scale": scale}).config
        assert SimCLR.curves(config, facts)["loss"].lines["chance"] == pytest.approx(scale * math.log(63))


# -- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet"])
def test_recipes_are_valid(name: str, recipe: str) -> None:

    spec = spec_of(name, recipe=recipe)
    assert spec.recipe == recipe
    assert spec.method.component is METHODS[name]
    assert recipe == "default" or spec.optimizer.config.lr_per == 256
    if recipe != "default":
        assert spec.optimizer.config.lr_inside_momentum, "the LARS of the authors"


def test_fast_differs_from_default_in_the_side_of_its_views_alone() -> None:
    fast, default = (spec_of("simclr", recipe=recipe).table() for recipe in ("fast", "default"))
    assert default["augmentation"]["size"] is None
    assert fast == {**default, "recipe": "fast", "augmentation": {**default["augmentation"], "size": 0.625}}


def test_learning_rates_of_imagenet_are_the_papers_at_its_batch() -> None:
    rates = {name: kind.recipes["imagenet"]["optimizer"]["lr"]["start"] for name, kind in METHODS.items()}
    assert rates["simclr"] * 4096 / 256 == pytest.approx(4.8)
    assert rates["simclrv2"] * 4096 / 256 == pytest.approx(0.1 * math.sqrt(4096))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_trains_and_exports_the_backbone(name: str, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"hidden_dim": 16, "out_dim": 8}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "out": tmp_path / "run", "report": False}
    result = akssl_core.run(method=name, data=images, options=options, **settings)
    assert math.isfinite(result.metrics["loss"])
    assert "z_std_ratio" in result.history[-1]
    assert result.backbone(result.preprocess(images[:2])).shape[0] == 2

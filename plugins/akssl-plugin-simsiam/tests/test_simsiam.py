"""SimSiam against the formulas, layers and gradients of arXiv 2011.10566."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_simsiam import SimSiam
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, ConfigError, Now, Views
from akssl_core.testing import ToyBackbone, spec_of, toy_batch

NOW = Now(0, 10, 100)


def make(**settings: Any) -> SimSiam:
    torch.manual_seed(0)
    small = {"out_dim": 16, "predictor_dim": 4, **settings}
    method = akssl_core.build("method", "simsiam", ToyBackbone(), **small)
    assert isinstance(method, SimSiam)
    return method


@pytest.mark.parametrize(
    ("p", "z", "expected"),
    [([1.0, 2.0], [1.0, 2.0], -1.0), ([1.0, 0.0], [0.0, 3.0], 0.0), ([1.0, -2.0], [-2.0, 4.0], 1.0)],
    ids=["equal", "orthogonal", "opposite"],
)
def test_loss_closed_forms(p: list[float], z: list[float], expected: float) -> None:
    loss = akssl_core.build("loss", "negative_cosine")
    assert loss(torch.tensor([p]), torch.tensor([z])).item() == pytest.approx(expected, abs=1e-6)


def test_loss_is_the_mean_over_rows_and_stops_the_gradient_of_targets() -> None:
    loss = akssl_core.build("loss", "negative_cosine")
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    z = torch.tensor([[2.0, 0.0], [0.0, 5.0]], requires_grad=True)
    value = loss(p, z)
    assert value.item() == pytest.approx(-0.5)
    value.backward()
    assert p.grad is not None
    assert z.grad is None


def test_step_is_the_symmetric_loss_of_the_paper() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]
    loss = method.step(b, NOW)["loss"]
    z1, z2 = (method.projector(method.backbone(x)) for x in (x1, x2))
    p1, p2 = method.predictor(z1), method.predictor(z2)
    expected = -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    assert loss(x2, x1) == pytest.approx(loss(x1, x2), abs=1e-6)
    assert loss(x1 + 1 * torch.randn_like(x1), x2) != pytest.approx(loss(x1, x2), abs=1e-4)
    assert loss(x1, x2 + 1 * torch.randn_like(x2)) != pytest.approx(loss(x1, x2), abs=1e-4)


def test_gradient_of_the_target_branch_is_exactly_zero() -> None:
    """The backbone's gradient equals that of a copy whose targets were computed without a graph."""
    method, b = make(), toy_batch()
    method.step(b, NOW)["loss"].backward()
    got = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    x1, x2 = b.views["global"]
    with torch.no_grad():
        t1, t2 = (method.projector(method.backbone(x)) for x in (x1, x2))
    p1, p2 = (method.predictor(method.projector(method.backbone(x))) for x in (x1, x2))
    loss = -0.5 * (F.cosine_similarity(p1, t2).mean() + F.cosine_similarity(p2, t1).mean())
    loss.backward()
    assert got.keys() == {name for name, _ in method.named_parameters()}, "every parameter is trained"
    for name, p in method.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-5, atol=1e-7)
        assert got[name].abs().max() > 0, name


def test_each_view_has_a_forward_pass_of_its_own() -> None:
    method = make()
    method.step(toy_batch(6), NOW)
    assert method.backbone.seen == [(6, 8), (6, 8)]


# -- more than two views (FastSiam) ---------------------------------------------------------------
def with_heads(method: SimSiam, p: list[Tensor], z: list[Tensor]) -> float:
    """The loss of a step whose heads give these predictions and projections of the views, in this order."""
    projections, predictions = iter(z), iter(p)
    method.backbone.forward = lambda x: x
    method.projector.forward = lambda x: next(projections)
    method.predictor.forward = lambda x: next(predictions)
    views = Views({"global": [torch.zeros(len(one), 3, 8, 8) for one in z]})
    return method.step(Batch(views, torch.arange(len(z[0]))), NOW)["loss"].item()


E0, E1, E2 = torch.eye(3)[:, None]


@pytest.mark.parametrize(
    ("p", "z", "expected"),
    [
        ([E0, E0, E0], [E0, E0, E1], -0.8047379),  # the mean of pairs of losses is -0.6666667
        ([E0, E0, E0], [E0, 3 * E1, E2], -0.3411115),  # of unit projections it is -0.4714045
        ([E0, E1, E2], [E0, E1, E2], 0.0),
        ([E0] * 4, [E0] * 4, -1.0),
        ([E0, E1], [E0, E0], -0.5),
    ],
    ids=["two of three agree", "unlike lengths", "orthogonal", "alike", "two views"],
)
def test_target_of_a_view_is_the_mean_of_the_others(p: list[Tensor], z: list[Tensor], expected: float) -> None:
    assert with_heads(make(), p, z) == pytest.approx(expected, abs=1e-6)


def four_views() -> Batch:
    views = toy_batch().views["global"] + toy_batch(seed=2).views["global"]
    return Batch(Views({"global": views}), torch.arange(6))


def test_order_of_four_views_does_not_matter_and_each_view_does() -> None:
    method, b = make(), four_views()
    views = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    usual = loss(*views)
    assert loss(*views[2:], *views[:2]) == pytest.approx(usual, abs=1e-6)
    for i in range(4):
        changed = [x.flip(0) if i == j else x for j, x in enumerate(views)]
        assert loss(*changed) != pytest.approx(usual, abs=1e-5)
    assert method.backbone.seen[:4] == [(6, 8)] * 4, "each view is encoded once, by itself"


def test_no_gradient_passes_through_the_mean_of_the_others() -> None:
    method, b = make(), four_views()
    method.step(b, NOW)["loss"].backward()
    got = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    with torch.no_grad():
        z = [method.projector(method.backbone(x)) for x in b.views["global"]]
    for i, x in enumerate(b.views["global"]):
        target = (z[(i + 1) % 4] + z[(i + 2) % 4] + z[(i + 3) % 4]) / 3
        (-F.cosine_similarity(method.predictor(method.projector(method.backbone(x))), target).mean() / 4).backward()
    for name, p in method.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-7)


def test_one_view_is_refused_and_four_are_trained(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "report": False}
    small = {"out_dim": 16, "predictor_dim": 4, "hidden_dim": 16}
    with pytest.raises(ConfigError, match="global"):
        akssl_core.run(
            method="simsiam", data=images, augmentation={"name": "pair", "count": 1}, out=tmp_path / "one", **settings
        )
    result = akssl_core.run(
        method="simsiam", data=images, recipe="fastsiam", options=small, image_size=16,
        backbone={"name": "resnet_tiny", "widths": [4, 4, 8, 8], "zero_init_residual": True}, out=tmp_path / "four",
        **settings,
    )  # fmt: skip
    assert -1 <= result.metrics["loss"] <= 1
    assert "count: 4" in (tmp_path / "four" / "config.yaml").read_text()


# -- heads and recipes ----------------------------------------------------------------------------
def test_heads_layer_by_layer() -> None:
    method = make()
    projector = [type(layer).__name__ for layer in method.projector]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert projector == [*block, *block, "Linear", "BatchNorm1d"]
    linear = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 12), (12, 12), (12, 16)]
    assert all(layer.bias is None for layer in linear), "the last bias of the paper is frozen before a batch norm: none"
    assert not method.projector[-1].affine
    assert [type(layer).__name__ for layer in method.predictor] == [*block, "Linear"]
    assert method.predictor[0].bias is None
    assert method.predictor[-1].bias is not None
    assert len([x for x in make(projector_layers=2).projector if isinstance(x, nn.Linear)]) == 2


def test_predictor_keeps_its_learning_rate() -> None:
    (rule,) = make().param_rules()
    assert (rule.match, rule.fixed_lr, rule.lr) == ("predictor.*", True, 1.0)
    (rule,) = make(fixed_predictor_lr=False, predictor_lr=3).param_rules()
    assert (rule.fixed_lr, rule.lr) == (False, 3.0)


def test_first_loss_is_near_zero() -> None:
    """Untrained predictions are about orthogonal to the projections (methods without negatives start at 0)."""
    method = make(out_dim=512, predictor_dim=128)
    assert abs(method.step(toy_batch(64), NOW)["loss"].item()) < 0.2


@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet", "fastsiam"])
def test_recipes_are_valid(recipe: str) -> None:

    spec = spec_of("simsiam", recipe=recipe)
    assert spec.recipe == recipe
    assert spec.optimizer.config.lr_per == 256

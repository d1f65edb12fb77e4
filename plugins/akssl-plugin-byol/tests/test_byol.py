"""BYOL against the formulas, layers, state and gradients of arXiv 2006.07733."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from akssl_plugin_byol import BYOL
from torch import Tensor
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, ConfigError, Facts, Now, Views
from akssl_core.testing import ToyBackbone, config_of, optimizer_of, spec_of, toy_batch

NOW = Now(0, 10, 100)


def make(**settings: Any) -> BYOL:
    torch.manual_seed(0)
    small = {"hidden_dim": 20, "out_dim": 16, "predictor_dim": 24, **settings}
    method = akssl_core.build("method", "byol", ToyBackbone(), **small)
    assert isinstance(method, BYOL)
    return method


def rows(count: int, size: int = 5, dim: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, dim, generator=generator) for _ in range(count)]


def step(method: BYOL, optimizer: torch.optim.Optimizer, now: Now = NOW) -> None:
    """One training step in the engine's order: the target moves after the optimizer."""
    method(toy_batch(), now)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    method.target.after_step(now)


def pairs(method: BYOL) -> list[tuple[str, Tensor, Tensor]]:
    """Name, slow and fast value of every parameter of the target."""
    target, online = method.target, {"backbone": method.backbone, "projector": method.projector}
    return [
        (f"{part}.{name}", target.get_submodule(part).get_parameter(name), parameter)
        for part, module in online.items()
        for name, parameter in module.named_parameters()
    ]


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("p", "t", "expected"),
    [([1.0, 2.0], [1.0, 2.0], 0.0), ([1.0, 0.0], [0.0, 3.0], 4.0), ([1.0, -2.0], [-2.0, 4.0], 8.0)],
    ids=["equal", "orthogonal", "opposite"],
)
def test_loss_closed_forms(p: list[float], t: list[float], expected: float) -> None:
    loss = akssl_core.build("loss", "byol")
    p1, t1 = torch.tensor([p]), torch.tensor([t])
    assert loss(p1, p1, t1, t1).item() == pytest.approx(expected, abs=1e-5)


def test_loss_sums_both_directions_and_pairs_each_prediction_with_the_other_view() -> None:
    loss = akssl_core.build("loss", "byol")
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert loss(x, y, y, x).item() == pytest.approx(0, abs=1e-6), "p1 = t2 and p2 = t1"
    assert loss(x, y, x, y).item() == pytest.approx(4, abs=1e-6), "p1 = t1 and p2 = t2"
    assert loss(x, x, y, x).item() == pytest.approx(2, abs=1e-6), "one direction is met, the other orthogonal"


def test_loss_is_the_mean_over_rows_of_squared_distances() -> None:
    loss = akssl_core.build("loss", "byol")
    p1, p2, t1, t2 = rows(4)
    unit = [F.normalize(x, dim=1) for x in (p1, p2, t1, t2)]
    expected = ((unit[0] - unit[3]).square().sum(1) + (unit[1] - unit[2]).square().sum(1)).mean()
    torch.testing.assert_close(loss(p1, p2, t1, t2), expected)
    halves = [loss(*parts) for parts in zip(*(x[:4].chunk(2) for x in (p1, p2, t1, t2)), strict=True)]
    torch.testing.assert_close(sum(halves) / 2, loss(*(x[:4] for x in (p1, p2, t1, t2))))


def test_loss_ignores_the_length_of_rows() -> None:
    loss = akssl_core.build("loss", "byol")
    p1, p2, t1, t2 = rows(4)
    scales = torch.tensor([[0.1], [2.0], [30.0], [5.0], [0.5]])
    torch.testing.assert_close(loss(p1 * scales, p2 * 3, t1 * scales, t2 / 7), loss(p1, p2, t1, t2))


def test_loss_stops_the_gradient_of_targets_alone() -> None:
    loss = akssl_core.build("loss", "byol")
    p1, p2, t1, t2 = (x.requires_grad_() for x in rows(4))
    loss(p1, p2, t1, t2).backward()
    assert t1.grad is None
    assert t2.grad is None
    assert p1.grad.abs().max() > 0
    assert p2.grad.abs().max() > 0


def test_loss_is_computed_in_float32_under_autocast() -> None:
    loss = akssl_core.build("loss", "byol")
    half = [x.bfloat16() for x in rows(4)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*(x.float() for x in half)))


# -- one step -------------------------------------------------------------------------------------
def test_step_is_the_symmetric_loss_between_online_and_target_networks() -> None:
    method, b = make(), toy_batch()
    with torch.no_grad():
        for _, slow, _ in pairs(method):  # the target differs, so that mixing the networks up shows
            slow.add_(0.3 * torch.randn_like(slow))
    x1, x2 = b.views["global"]
    loss = method.step(b, NOW)["loss"]
    p1, p2 = (method.predictor(method.projector(method.backbone(x))) for x in (x1, x2))
    t1, t2 = (method.target.projector(method.target.backbone(x)) for x in (x1, x2))
    cosines = F.cosine_similarity(p1, t2) + F.cosine_similarity(p2, t1)
    assert loss.item() == pytest.approx((4 - 2 * cosines).mean().item(), abs=1e-5)


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    assert loss(x2, x1) == pytest.approx(loss(x1, x2), abs=1e-5)
    assert loss(x1 + torch.randn_like(x1), x2) != pytest.approx(loss(x1, x2), abs=1e-4)
    assert loss(x1, x2 + torch.randn_like(x2)) != pytest.approx(loss(x1, x2), abs=1e-4)


def test_the_online_network_has_a_gradient_and_the_target_none() -> None:
    method = make()
    method.step(toy_batch(), NOW)["loss"].backward()
    names = dict(method.named_parameters())
    taken_out = {"projector.0.bias", "predictor.0.bias"}  # by the batch norm that follows
    assert {name.split(".")[0] for name in names} == {"backbone", "projector", "predictor", "target"}
    for name, parameter in names.items():
        if name.startswith("target."):
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            if name not in taken_out:
                assert parameter.grad.abs().max() > 1e-6, name


def test_each_view_has_a_forward_pass_of_its_own_through_each_network() -> None:
    method = make()
    method.step(toy_batch(6), NOW)
    assert method.backbone.seen == [(6, 8), (6, 8)]
    assert method.target.backbone.seen == [(6, 8), (6, 8)]


def test_first_loss_is_near_4() -> None:
    """Untrained predictions are about orthogonal to the targets."""
    method = make(hidden_dim=512, out_dim=256, predictor_dim=512)
    assert method.step(toy_batch(64), NOW)["loss"].item() == pytest.approx(4, abs=0.4)


# -- the target -----------------------------------------------------------------------------------
def test_target_starts_as_a_copy_of_backbone_and_projector_without_a_predictor() -> None:
    method = make()
    assert {name for name, _ in method.target.named_children()} == {"backbone", "projector"}
    for name, slow, fast in pairs(method):
        assert torch.equal(slow, fast), name
        assert slow is not fast, name


@pytest.mark.parametrize("momentum", [0.0, 0.7, 1.0])
def test_target_moves_by_the_momentum_towards_the_new_online_weights(momentum: float) -> None:
    method = make(momentum=momentum)
    before = {name: slow.clone() for name, slow, _ in pairs(method)}
    step(method, torch.optim.SGD(method.parameters(), lr=0.5))
    for name, slow, fast in pairs(method):
        assert not torch.equal(fast, before[name]), name
        torch.testing.assert_close(slow, momentum * before[name] + (1 - momentum) * fast, rtol=1e-6, atol=1e-7)
    if momentum in (0, 1):
        assert all(torch.equal(slow, fast if momentum == 0 else before[name]) for name, slow, fast in pairs(method))


def test_a_forward_pass_moves_no_parameter_of_the_target() -> None:
    method = make(momentum=0.0)
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1)
    before = {name: slow.clone() for name, slow, _ in pairs(method)}
    method(toy_batch(), NOW)
    method.backbone(toy_batch().views["global"][0])
    assert all(torch.equal(slow, before[name]) for name, slow, _ in pairs(method))


def test_target_keeps_batch_statistics_of_its_own() -> None:
    method = make(momentum=0.0)
    with torch.no_grad():
        method.backbone.bn.running_mean.fill_(50)
    step(method, torch.optim.SGD(method.parameters(), lr=0.1))
    assert method.target.backbone.bn.num_batches_tracked == 2
    assert method.target.backbone.bn.running_mean.abs().max() < 5, "neither copied nor averaged"


def test_momentum_rises_by_a_cosine_from_0_996_to_1() -> None:
    momentum = make().target.momentum
    for step_, expected in ((0, 0.996), (25, 0.996586), (50, 0.998), (75, 0.999414)):
        assert momentum(Now(step_, 10, 100)) == pytest.approx(expected, abs=1e-6)
    assert 0.99999 < momentum(Now(99, 10, 100)) < 1


def test_the_online_backbone_is_exported() -> None:
    method = make()
    assert method.encoder is method.backbone


# -- building -------------------------------------------------------------------------------------
def test_heads_layer_by_layer() -> None:
    method = make()
    for head, widths in ((method.projector, (12, 20, 16)), (method.predictor, (16, 24, 16))):
        assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        first, norm, _, last = head
        assert (first.in_features, first.out_features, last.in_features, last.out_features) == (
            *widths[:2],
            *widths[1:],
        )
        assert first.bias is not None
        assert last.bias is None
        assert norm.affine


def test_the_default_widths_and_momentum_are_the_paper_s() -> None:
    config = config_of(BYOL)
    assert (config.hidden_dim, config.out_dim, config.predictor_dim) == (4096, 256, 4096)
    assert (config.momentum.start, config.momentum.end, config.momentum.shape) == (0.996, 1.0, "cosine")


def test_building_leaves_the_backbone_as_it_was() -> None:
    backbone = ToyBackbone()
    before = copy.deepcopy(backbone.state_dict())
    method = akssl_core.build("method", "byol", backbone, hidden_dim=8, out_dim=8, predictor_dim=8)
    assert method.backbone is backbone
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_state_dict_restores_the_target() -> None:
    method = make(momentum=0.5)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    step(method, optimizer)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    other = make(momentum=0.5)
    other.load_state_dict(state)
    for trained in (method, other):
        step(trained, torch.optim.SGD(trained.parameters(), lr=0.5))
    assert any(name.startswith("target.") for name in state)
    for name, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_biases_and_norms_of_the_online_network_have_no_weight_decay_under_lars() -> None:
    method = make()
    groups = optimizer_of(method, "lars", weight_decay=1.0).param_groups
    decayed = {name for group in groups if group["weight_decay"] and group["adapt"] for name in group["names"]}
    exempt = {name for group in groups if not group["weight_decay"] and not group["adapt"] for name in group["names"]}
    heads = {f"{head}.{place}.weight" for head in ("projector", "predictor") for place in (0, 3)}
    assert decayed == {"backbone.conv.weight", *heads}
    head_norms = {f"{head}.{rest}" for head in ("projector", "predictor") for rest in ("0.bias", "1.weight", "1.bias")}
    assert exempt == {"backbone.bn.weight", "backbone.bn.bias", *head_norms}


@pytest.mark.parametrize("momentum", [1.5, -0.1, {"start": 0.9, "end": 1.01}])
def test_a_momentum_outside_0_to_1_is_refused(momentum: Any) -> None:
    with pytest.raises(ConfigError, match=r"momentum: should stay between 0 and 1"):
        make(momentum=momentum)


def test_a_target_that_never_moves_is_warned_of() -> None:
    facts = Facts(images=1000, batch_size=32, forward_size=32, image_size=8, epochs=1, views={"global": 2})
    (warning,) = BYOL.check(make(momentum=1.0).config, facts)
    assert warning.startswith("method.momentum: 1 throughout")
    assert not BYOL.check(make().config, facts)
    assert not BYOL.check(make(momentum=0.99).config, facts)


# -- recipes and a run ----------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet"])
def test_recipes_are_valid(recipe: str) -> None:
    spec = spec_of("byol", recipe=recipe)
    assert spec.recipe == recipe
    assert spec.optimizer.config.lr_per == 256
    assert recipe == "default" or spec.augmentation.name == "asymmetric"
    momentum = spec.method.config.momentum
    assert momentum.end == 1, "a constant momentum holds a long run back"
    assert momentum.start < 1


@pytest.mark.parametrize(("recipe", "blur"), [("cifar", (0.0, 0.0)), ("imagenet", (1.0, 0.1))])
def test_published_views_are_unlike_and_weakly_jittered(recipe: str, blur: tuple[float, float]) -> None:
    views = (
        spec_of("byol", recipe=recipe).augmentation.config.first,
        spec_of("byol", recipe=recipe).augmentation.config.second,
    )
    assert tuple(view.blur for view in views) == blur
    assert tuple(view.solarize for view in views) == (0.0, 0.2)
    for view in views:
        assert (view.jitter, view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.scale, view.grayscale, view.flip) == ((0.08, 1.0), 0.2, 0.5)


def test_imagenet_recipe_is_the_preset_of_1000_epochs() -> None:
    spec = spec_of("byol", recipe="imagenet")
    rates, train = spec.optimizer.config, spec.train
    assert spec.optimizer.name == "lars"
    assert (rates.lr.start, rates.lr.end, rates.lr.warmup, rates.weight_decay.start) == (0.2, 0.0, 10, 1.5e-6)
    assert (rates.eta, rates.momentum, rates.exempt_1d) == (1e-3, 0.9, True)
    assert (train.epochs, train.batch_size, train.image_size) == (1000, 4096, 224)
    assert spec.method.config.momentum.start == 0.996


def test_a_small_run_trains_and_exports(tmp_path: Any) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    result = akssl_core.run(
        method="byol",
        data=images,
        options={"hidden_dim": 16, "out_dim": 8, "predictor_dim": 16},
        epochs=1,
        batch_size=16,
        precision="fp32",
        out=tmp_path / "run",
        report=False,
    )
    assert 0 < result.metrics["loss"] < 8
    assert 0 < result.history[-1]["z_std_ratio"] < 1.5
    assert result.backbone(result.preprocess(images[:2])).shape[0] == 2

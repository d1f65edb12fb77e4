"""Barlow Twins against the formulas, layers, gradients and parameter groups of arXiv 2103.03230."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_barlowtwins import standardized
from torch import Tensor, nn

import akssl_core
from akssl_core import Batch, Facts, Now, Views, dist
from akssl_core.testing import ToyBackbone, config_of, optimizer_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
LAMBDA = 0.0051


def make(**settings: Any) -> Any:
    torch.manual_seed(0)
    return akssl_core.build("method", "barlowtwins", ToyBackbone(), **{"hidden_dim": 20, "out_dim": 16, **settings})


def rows(size: int = 10, dim: int = 5, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(size, dim, generator=generator) * 3 + 1
    return z1, z1 + 3 * torch.randn(size, dim, generator=generator)


def by_definition(z1: Tensor, z2: Tensor) -> Tensor:
    """Equation 1 with torch's batch norm, term by term."""
    norm = nn.BatchNorm1d(z1.shape[1], affine=False)
    c = norm(z1).T @ norm(z2) / len(z1)
    terms = [(c[i, j] - 1) ** 2 if i == j else LAMBDA * c[i, j] ** 2 for i in range(len(c)) for j in range(len(c))]
    return torch.stack(terms).sum()


# -- the loss -------------------------------------------------------------------------------------
A, B = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("z1", "z2", "expected", "tolerance"),
    [
        # an unbiased variance gives 0.125 here, an off-diagonal target of -1 gives 0.0102
        ((A, B), (A, B), 0.0, 1e-6),
        ((A, B), (-A, -B), 8.0, 4e-4),  # epsilon: 2 (1 + 1 / 1.00001)^2
        ((A, B), (B, A), 2 + 2 * LAMBDA, 1e-5),
        ((A, A), (A, A), 2 * LAMBDA, 1e-5),
    ],
    ids=["equal", "opposite", "exchanged", "redundant"],
)
def test_loss_closed_forms(z1: Any, z2: Any, expected: float, tolerance: float) -> None:
    loss = akssl_core.build("loss", "barlowtwins")
    assert loss(torch.stack(z1, 1), torch.stack(z2, 1)).item() == pytest.approx(expected, abs=tolerance)


def test_loss_and_gradients_follow_the_definition() -> None:
    loss = akssl_core.build("loss", "barlowtwins")
    z1, z2 = (z.requires_grad_() for z in rows())
    value = loss(z1, z2)
    got = torch.autograd.grad(value, (z1, z2))
    expected = by_definition(z1, z2)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    for grad, wanted in zip(got, torch.autograd.grad(expected, (z1, z2)), strict=True):
        assert grad.abs().max() > 0.01
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-7)


def test_lambda_weighs_the_off_diagonal_and_scale_the_whole() -> None:
    z = torch.stack((A, A), 1)
    assert akssl_core.build("loss", "barlowtwins", lambda_=0.5)(z, z).item() == pytest.approx(1, abs=1e-4)
    assert akssl_core.build("loss", "barlowtwins", lambda_=0.5, scale=0.1)(z, z).item() == pytest.approx(0.1, abs=1e-5)
    assert akssl_core.build("loss", "barlowtwins", lambda_=0.0)(z, -z).item() == pytest.approx(8, abs=4e-4)


def test_loss_ignores_scale_and_shift_of_each_feature() -> None:
    """A normalisation of rows, or statistics over both views together, would break this."""
    loss = akssl_core.build("loss", "barlowtwins")
    z1, z2 = rows()
    scale, shift = torch.tensor([0.5, 2.0, 10.0, 1.0, 3.0]), torch.arange(5.0)
    torch.testing.assert_close(loss(z1 * scale + shift, z2 * 4 - shift), loss(z1, z2), rtol=1e-4, atol=1e-5)
    assert loss(-z1, z2).item() > loss(z1, z2).item() + 1, "the scale must be positive"


def test_loss_ignores_the_order_of_images_and_of_views_but_not_their_pairing() -> None:
    loss = akssl_core.build("loss", "barlowtwins")
    z1, z2 = rows()
    order = torch.randperm(len(z1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(z1[order], z2[order]), loss(z1, z2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss(z2, z1), loss(z1, z2), rtol=1e-5, atol=1e-6)
    assert loss(z1[order], z2).item() > loss(z1, z2).item() + 1


def test_a_constant_feature_has_a_finite_loss_and_gradient() -> None:
    loss = akssl_core.build("loss", "barlowtwins")
    z1, z2 = rows()
    z1[:, 0] = 0.25
    z1.requires_grad_()
    value = loss(z1, z2)
    value.backward()
    assert value.isfinite()
    assert z1.grad.isfinite().all()


def test_loss_of_unrelated_views_is_about_d_plus_sampling_noise() -> None:
    """Every entry of the correlation matrix of independent rows has variance 1 / N."""
    loss = akssl_core.build("loss", "barlowtwins")
    size, dim = 64, 256
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(size, dim, generator=generator) for _ in range(2))
    expected = dim * (1 + 1 / size) + LAMBDA * dim * (dim - 1) / size
    assert loss(z1, z2).item() == pytest.approx(expected, rel=0.05)


def test_loss_is_computed_in_float32_under_autocast() -> None:
    loss = akssl_core.build("loss", "barlowtwins")
    half = [z.bfloat16() for z in rows()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*(z.float() for z in half)))


# -- two processes --------------------------------------------------------------------------------
def shared_projection(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """The loss and the averaged gradient of a shared projection."""
    torch.manual_seed(0)
    head = dist.wrap(nn.Linear(5, 4))
    loss = akssl_core.build("loss", "barlowtwins")(*head(torch.stack((z1, z2))))
    loss.backward()
    weight = next(head.parameters())
    assert weight.grad is not None
    return {"loss": loss.detach(), "grad": weight.grad}


def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    alone = shared_projection(*rows())
    for i in range(2):
        result = torch.load(tmp_path / f"{i}.pt")
        torch.testing.assert_close(result["loss"], alone["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["grad"], alone["grad"], rtol=1e-4, atol=1e-7)


# -- one step -------------------------------------------------------------------------------------
def test_step_is_the_loss_of_both_views_projections() -> None:
    method, b = make(), toy_batch()
    z1, z2 = (method.projector(method.backbone(x)) for x in b.views["global"])
    expected = by_definition(z1, z2).item()
    assert method.step(b, NOW)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    assert loss(x2, x1) == pytest.approx(loss(x1, x2), rel=1e-5)
    assert loss(x1 + torch.randn_like(x1), x2) != pytest.approx(loss(x1, x2), abs=1e-3)
    assert loss(x1, x2 + torch.randn_like(x2)) != pytest.approx(loss(x1, x2), abs=1e-3)


@pytest.mark.parametrize("detached", [None, 0, 1], ids=["both views", "second view alone", "first view alone"])
def test_backbone_and_projector_learn_through_each_view(detached: int | None) -> None:
    method, b = make(), toy_batch()
    z = [method.projector(method.backbone(x)) for x in b.views["global"]]
    if detached is None:
        method.step(b, NOW)["loss"].backward()
    else:
        z[detached] = z[detached].detach()
        method.loss(*z).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_training_on_one_batch_lowers_the_loss() -> None:
    method, b = make(), toy_batch(16)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.02)
    before = method.step(b, NOW)["loss"]
    before.backward()
    optimizer.step()
    assert method.step(b, NOW)["loss"].item() < before.item() - 0.1


def test_each_view_has_a_forward_pass_of_its_own() -> None:
    method = make()
    method.step(toy_batch(6), NOW)
    assert method.backbone.seen == [(6, 8), (6, 8)]


# -- building -------------------------------------------------------------------------------------
def test_projector_layer_by_layer() -> None:
    block = ["Linear", "BatchNorm1d", "ReLU"]
    projector = make().projector
    assert [type(layer).__name__ for layer in projector] == [*block, *block, "Linear"]
    linear = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 20), (20, 20), (20, 16)]
    assert all(layer.bias is None for layer in linear)
    assert [type(layer).__name__ for layer in make(projector_layers=2).projector] == [*block, "Linear"]


def test_the_default_widths_and_weights_are_the_paper_s() -> None:
    config = config_of(type(make()))
    assert (config.hidden_dim, config.out_dim, config.projector_layers) == (8192, 8192, 3)
    assert (config.loss.config.lambda_, config.loss.config.scale) == (0.0051, 1.0)
    assert config.bias_lr == pytest.approx(0.0048 / 0.2 / 16)


def test_building_leaves_the_backbone_as_it_was() -> None:
    backbone = ToyBackbone()
    before = copy.deepcopy(backbone.state_dict())
    method = akssl_core.build("method", "barlowtwins", backbone, hidden_dim=8, out_dim=8)
    assert method.backbone is backbone
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_state_dict_restores_the_method() -> None:
    method, other = make(), make(projector_layers=3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.step(toy_batch(), NOW)["loss"], method.step(toy_batch(), NOW)["loss"])


@pytest.mark.parametrize("world", [1, 2, 4, 16])
def test_the_authors_gradient_is_that_of_the_loss_over_their_processes(world: int) -> None:
    """Each process sums the others' shares of the correlation out of autograd's sight, and gradients are averaged.

    The trust ratio cancels that for weights alone, so biases and norms take the authors' steps at a 16th of their rate.
    """
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (standardized(torch.randn(32, 6, generator=generator)).requires_grad_() for _ in range(2))
    shares = [a.T @ b / len(z1) for a, b in zip(z1.chunk(world), z2.chunk(world), strict=True)]

    def loss(correlation: Tensor) -> Tensor:
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + 0.0051 * off_diagonal

    whole = torch.autograd.grad(loss(torch.stack(shares).sum(0)), z1, retain_graph=True)[0]
    seen = [loss(share + sum(other.detach() for other in shares if other is not share)) for share in shares]
    (averaged,) = torch.autograd.grad(torch.stack(seen).mean(), z1)
    torch.testing.assert_close(averaged, whole / world)
    assert spec_of("barlowtwins", recipe="imagenet").method.config.bias_lr == pytest.approx(0.0048 / 0.2 / 16)


@pytest.mark.parametrize(("exempt", "decay"), [(True, 0.0), (False, 1e-6)])
@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_biases_and_norms_learn_slowly_and_are_exempt_where_the_optimizer_says_so(
    optimizer: str, exempt: bool, decay: float
) -> None:
    """Appendix A of the paper: 0.2 and 0.0048, without decay and adaptation; lightly's benchmark decays all."""
    method = make(bias_lr=0.024)
    built = optimizer_of(method, optimizer, lr={"start": 0.2}, weight_decay=1e-6, exempt_1d=exempt)
    weights, others = sorted(built.param_groups, key=lambda g: -g["lr"])
    assert set(weights["names"]) == {"backbone.conv.weight", *(f"projector.{i}.weight" for i in (0, 3, 6))}
    norms = {f"{norm}.{part}" for norm in ("backbone.bn", "projector.1", "projector.4") for part in ("weight", "bias")}
    assert set(others["names"]) == norms
    assert (weights["lr"], weights["weight_decay"], weights["adapt"]) == (0.2, 1e-6, True)
    assert (others["lr"], others["weight_decay"], others["adapt"]) == (pytest.approx(0.0048), decay, not exempt)


def test_rules_hold_for_names_with_brackets() -> None:
    method = make(bias_lr=0.5)
    method.backbone.add_module("block[0]", nn.BatchNorm1d(3))
    slow = next(g for g in optimizer_of(method, "lars").param_groups if g["lr_factor"] == 0.5)
    assert {"backbone.block[0].weight", "backbone.block[0].bias"} <= set(slow["names"])


def facts(forward_size: int) -> Facts:
    return Facts(10_000, forward_size, forward_size, 32, 10, {"global": 2})


@pytest.mark.parametrize(("out_dim", "images", "warned"), [(8192, 41, True), (8192, 42, False), (8193, 2048, False)])
def test_check_warns_where_sampling_noise_outweighs_the_diagonal(out_dim: int, images: int, warned: bool) -> None:
    """0.0051 x 8191 = 41.8."""
    method = make(hidden_dim=2, out_dim=out_dim)
    warnings = type(method).check(method.config, facts(images))
    assert bool(warnings) == warned
    if warned:
        assert "method.out_dim: 8192" in warnings[0]
        assert "at least 42" in warnings[0]
        widest = int(warnings[0].rsplit(" ", 1)[1].rstrip("."))
        assert not type(method).check(make(hidden_dim=2, out_dim=widest).config, facts(images))


@pytest.mark.parametrize(("images", "chosen"), [(16, 2048), (41, 4096), (42, None), (2048, None)])
def test_features_are_chosen_by_the_images_of_a_forward_pass(images: int, chosen: int | None) -> None:
    method = make(hidden_dim=2, out_dim=8192)
    choices = type(method).choose(method.config, facts(images))
    assert {name: choice.value for name, choice in choices.items()} == ({"out_dim": chosen} if chosen else {})
    if chosen:
        assert not type(method).check(make(hidden_dim=2, out_dim=chosen).config, facts(images))


def test_check_says_nothing_where_the_off_diagonal_has_no_weight() -> None:
    method = make(loss={"name": "barlowtwins", "lambda_": 0.0})
    assert not type(method).check(method.config, facts(2))


# -- recipes and a run ----------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet"])
def test_recipes_are_valid(recipe: str) -> None:
    spec = spec_of("barlowtwins", recipe=recipe)
    assert spec.recipe == recipe
    assert recipe == "default" or spec.optimizer.config.lr_per == 256
    assert recipe == "default" or spec.augmentation.name == "asymmetric"


@pytest.mark.parametrize(("recipe", "blur"), [("cifar", (0.0, 0.0)), ("imagenet", (1.0, 0.1))])
def test_published_views_are_unlike_and_weakly_jittered(recipe: str, blur: tuple[float, float]) -> None:
    views = (
        spec_of("barlowtwins", recipe=recipe).augmentation.config.first,
        spec_of("barlowtwins", recipe=recipe).augmentation.config.second,
    )
    assert tuple(view.blur for view in views) == blur
    assert tuple(view.solarize for view in views) == (0.0, 0.2)
    for view in views:
        assert (view.jitter, view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.scale, view.grayscale, view.flip) == ((0.08, 1.0), 0.2, 0.5)


@pytest.mark.parametrize("recipe", ["cifar", "imagenet"])
def test_published_projectors_are_as_wide_inside_as_outside(recipe: str) -> None:
    config = spec_of("barlowtwins", recipe=recipe).method.config
    assert config.hidden_dim == config.out_dim


def test_imagenet_recipe_is_the_paper_s() -> None:
    spec = spec_of("barlowtwins", recipe="imagenet")
    rates, train = spec.optimizer.config, spec.train
    assert spec.optimizer.name == "lars"
    assert (rates.lr.start, rates.lr.warmup, rates.weight_decay.start) == (0.2, 10, 1e-6)
    assert rates.lr.end == pytest.approx(0.001 * rates.lr.start)
    assert (rates.eta, rates.momentum) == (1e-3, 0.9)
    assert (train.epochs, train.batch_size, train.image_size) == (1000, 2048, 224)


def test_a_small_run_trains_and_exports(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    result = akssl_core.run(
        method="barlowtwins",
        data=images,
        options={"hidden_dim": 16, "out_dim": 16},
        epochs=1,
        batch_size=16,
        precision="fp32",
        out=tmp_path / "run",
        report=False,
    )
    assert 0 < result.metrics["loss"] < 32
    assert 0 < result.history[-1]["z_std_ratio"] < 1.5
    assert result.backbone(result.preprocess(images[:2])).shape[0] == 2


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    mine = (z.chunk(2)[dist.rank()] for z in rows())
    torch.save(shared_projection(*mine), target / f"{dist.rank()}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)

"""VICReg against the formulas, layers and gradients of arXiv 2105.04906 and the authors' code."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_vicreg import VICReg, redundancy
from torch import Tensor, nn

import akssl_core
from akssl_core import Batch, ConfigError, Facts, Now, Views, dist
from akssl_core.testing import ToyBackbone, config_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
A, B = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
Z = torch.stack((A, B), 1)


def make(**settings: Any) -> VICReg:
    torch.manual_seed(0)
    method = akssl_core.build("method", "vicreg", ToyBackbone(), **{"hidden_dim": 20, "out_dim": 16, **settings})
    assert isinstance(method, VICReg)
    return method


def vicreg(z1: Tensor, z2: Tensor, **weights: float) -> Tensor:
    value: Tensor = akssl_core.build("loss", "vicreg", **weights)(z1, z2)
    return value


def rows(size: int = 10, dim: int = 5, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(size, dim, generator=generator) * 0.6 + 1
    return z1, z1 + 0.5 * torch.randn(size, dim, generator=generator)


def by_definition(z1: Tensor, z2: Tensor) -> Tensor:
    """Equation 6 with the authors' reductions, term by term, in float64."""
    z1, z2 = z1.double(), z2.double()
    spread, shared = [], []
    for z in (z1, z2):
        covariance = torch.cov(z.T)
        spread += [torch.relu(1 - torch.sqrt(covariance[i, i] + 1e-4)) for i in range(len(covariance))]
        shared += [covariance[i, j] ** 2 for i in range(len(covariance)) for j in range(len(covariance)) if i != j]
    return 25 * ((z1 - z2) ** 2).mean() + 25 * torch.stack(spread).mean() + torch.stack(shared).sum() / z1.shape[1]


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("z1", "z2", "expected"),
    [
        (torch.ones(4, 2), torch.ones(4, 2), 24.75),  # without the half of the variance 49.5
        (Z, Z, 0.0),
        (torch.stack((A, A), 1), torch.stack((A, A), 1), 32 / 9),  # divided by N, not N - 1: 2
        (0.5 * Z, 0.5 * Z, 10.5640784),  # without the half 21.1281567, biased variance 12.4975002
        (Z, torch.stack((B, A), 1), 50.0),  # summed over features 100
        (Z, -Z, 100.0),
        (torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 8.0),
    ],
    ids=["collapsed", "ideal", "redundant", "narrow", "exchanged", "opposite", "two images"],
)
def test_loss_closed_forms(z1: Tensor, z2: Tensor, expected: float) -> None:
    assert vicreg(z1, z2).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("size", "dim"), [(10, 5), (5, 10), (7, 7)], ids=["tall", "wide", "square"])
def test_loss_and_gradients_follow_the_definition(size: int, dim: int) -> None:
    """Also where the products of rows are fewer than those of features."""
    z1, z2 = (z.requires_grad_() for z in rows(size, dim))
    value, expected = vicreg(z1, z2), by_definition(z1, z2)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, wanted in zip(torch.autograd.grad(value, (z1, z2)), torch.autograd.grad(expected, (z1, z2)), strict=True):
        assert mine.abs().max() > 0.1
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_wide_projections_need_no_matrix_of_all_features() -> None:
    """Of 8192 features that matrix would be 67 million numbers, four images have 16 products."""
    z = torch.randn(4, 8192, generator=torch.Generator().manual_seed(0))
    covariance = torch.cov(z[:, :64].T)
    expected = (covariance.square().sum() - covariance.diagonal().square().sum()) / 64
    assert redundancy(z[:, :64]).item() == pytest.approx(expected.item(), rel=1e-4)
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: largest.append(t.numel()) or t, lambda t: t):
        redundancy(z.requires_grad_())
    assert max(largest) <= z.numel()


def test_weights_weigh_their_terms() -> None:
    z1, z2 = rows()
    method_parts = akssl_core.build("loss", "vicreg")
    total = method_parts(z1, z2).item()
    parts = {name: value.item() for name, value in method_parts.parts.items()}
    assert total == pytest.approx(25 * parts["invariance"] + 25 * parts["variance"] + parts["covariance"], rel=1e-6)
    for name, value in parts.items():
        alone = dict.fromkeys(("invariance_weight", "variance_weight", "covariance_weight"), 0.0)
        assert vicreg(z1, z2, **{**alone, f"{name}_weight": 2.0}).item() == pytest.approx(2 * value, rel=1e-6)


def test_spread_and_covariance_ignore_a_shift_and_the_distance_does_not() -> None:
    z1, z2 = rows()
    shift = torch.arange(5.0)
    assert vicreg(z1 + shift, z2, invariance_weight=0).item() == pytest.approx(
        vicreg(z1, z2, invariance_weight=0).item(), rel=1e-4
    )
    assert vicreg(z1 + shift, z2).item() > vicreg(z1, z2).item() + 1


def test_loss_ignores_order_of_images_and_views_and_a_common_sign_but_not_the_pairing() -> None:
    z1, z2 = rows()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    expected = pytest.approx(vicreg(z1, z2).item(), rel=1e-5)
    assert vicreg(z1[order], z2[order]).item() == expected
    assert vicreg(z2, z1).item() == expected
    assert vicreg(-z1, -z2).item() == expected
    assert vicreg(z1[order], z2).item() > vicreg(z1, z2).item() + 1


def test_at_an_exact_collapse_spread_and_covariance_have_no_slope() -> None:
    """A saddle: no gradient, and none that is not finite. Rows that differ a little are driven apart."""
    z = torch.ones(4, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(vicreg(z, z.detach()), z)
    assert torch.equal(slope, torch.zeros(4, 2))
    near = (1 + 0.01 * Z).requires_grad_()
    (slope,) = torch.autograd.grad(vicreg(near, near.detach()), near)
    assert ((-slope * Z) > 0.01).all(), "a step against the gradient spreads them"


def test_one_feature_has_no_covariance() -> None:
    assert redundancy(torch.randn(8, 1, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(
        0, abs=1e-6
    )


def test_covariance_of_unrelated_features_is_that_of_sampling() -> None:
    """2 (D - 1) / (N - 1) for both views: 16.1 at N 256 and D 2048, here for a smaller D."""
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(256, 512, generator=generator) for _ in range(2))
    expected = 2 * 511 / 255
    assert vicreg(z1, z2, invariance_weight=0, variance_weight=0).item() == pytest.approx(expected, rel=0.02)
    curves = VICReg.curves(config_of(VICReg, out_dim=512), facts(256))
    assert curves["covariance"].lines["unrelated features"] == pytest.approx(expected)


def test_loss_is_computed_in_float32_under_autocast() -> None:
    half = [z.bfloat16() for z in rows()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = vicreg(*half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, vicreg(*(z.float() for z in half)))


# -- two processes --------------------------------------------------------------------------------
def shared_projection(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """The mean loss and the averaged gradient of a shared projection."""
    torch.manual_seed(0)
    head = dist.wrap(nn.Linear(5, 4))
    loss = vicreg(*head(torch.stack((z1, z2))))
    loss.backward()
    weight = next(head.parameters())
    assert weight.grad is not None
    return {"loss": dist.mean(loss.detach()), "grad": weight.grad}


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
        torch.testing.assert_close(result["grad"], alone["grad"], rtol=1e-4, atol=1e-6)
        assert result["collapse"].item() == pytest.approx(12.375, abs=1e-4), "of one process's rows alone it is 24.75"


# -- one step -------------------------------------------------------------------------------------
def test_step_is_the_loss_of_both_views_projections_and_logs_its_terms() -> None:
    method, b = make(), toy_batch()
    terms = method.step(b, NOW)
    z1, z2 = (method.projector(method.backbone(x)) for x in b.views["global"])
    assert terms["loss"].item() == pytest.approx(by_definition(z1, z2).item(), rel=1e-5)
    parts = [terms[name] for name in ("invariance", "variance", "covariance")]
    assert not any(part.requires_grad for part in parts)
    assert 25 * parts[0] + 25 * parts[1] + parts[2] == pytest.approx(terms["loss"].item(), rel=1e-6)


def test_another_loss_takes_the_place_of_vicreg_s() -> None:
    method = make(loss="barlowtwins")
    assert method.step(toy_batch(), NOW).keys() == {"loss", "z_std_ratio"}
    assert not VICReg.landmarks(method.config, facts(64))
    assert not VICReg.curves(method.config, facts(64))


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    assert loss(x2, x1) == pytest.approx(loss(x1, x2), rel=1e-5)
    assert loss(x1 + torch.randn_like(x1), x2) != pytest.approx(loss(x1, x2), abs=1e-3)
    assert loss(x1, x2 + torch.randn_like(x2)) != pytest.approx(loss(x1, x2), abs=1e-3)


@pytest.mark.parametrize("detached", [0, 1], ids=["second view alone", "first view alone"])
def test_backbone_and_projector_learn_through_each_view(detached: int) -> None:
    method, b = make(), toy_batch()
    z = [method.projector(method.backbone(x)) for x in b.views["global"]]
    z[detached] = z[detached].detach()
    method.loss(*z).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_each_view_has_a_forward_pass_of_its_own() -> None:
    method = make()
    method.step(toy_batch(6), NOW)
    assert method.backbone.seen == [(6, 8), (6, 8)]


def test_first_loss_is_that_of_a_default_expander() -> None:
    """Deviations of 0.34 to 0.41, so that V is about 0.6; the distance of unrelated views is at most 0.23."""
    terms = make(hidden_dim=256, out_dim=256).step(toy_batch(64), NOW)
    assert 13 < terms["loss"].item() < 23
    assert 0.55 < terms["variance"].item() < 0.75


# -- building -------------------------------------------------------------------------------------
def test_expander_layer_by_layer() -> None:
    block = ["Linear", "BatchNorm1d", "ReLU"]
    projector = make().projector
    assert [type(layer).__name__ for layer in projector] == [*block, *block, "Linear"], "nothing behind the last layer"
    linear = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 20), (20, 20), (20, 16)]
    assert all(layer.bias is None for layer in linear)


def test_the_default_widths_and_weights_are_the_paper_s() -> None:
    config = config_of(VICReg)
    assert (config.hidden_dim, config.out_dim, config.projector_layers) == (8192, 8192, 3)
    weights = config.loss.config
    assert (weights.invariance_weight, weights.variance_weight, weights.covariance_weight) == (25.0, 25.0, 1.0)


def facts(forward_size: int) -> Facts:
    return Facts(10_000, forward_size, forward_size, 32, 10, {"global": 2})


def test_one_image_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="1 image has no variance"):
        VICReg.check(config_of(VICReg), facts(1))
    assert not VICReg.check(config_of(VICReg), facts(2))


def test_landmark_tells_a_collapse_from_features_that_lack_half_of_their_spread() -> None:
    """The default recipe learns with a variance of 0.54 to its end: 64 images cannot spread 256 features."""
    (collapsed,) = VICReg.landmarks(config_of(VICReg), facts(64))
    loss = akssl_core.build("loss", "vicreg")
    loss(torch.ones(4, 2), torch.ones(4, 2))
    assert all(low <= loss.parts[name] <= high for name, (low, high) in collapsed.where.items())
    low, _ = collapsed.where["variance"]
    assert low > 0.9


# -- recipes and a run ----------------------------------------------------------------------------
def test_solo_learn_s_sum_of_spreads_is_a_weight_of_50() -> None:
    """Its variance term is that of both views together, times 25."""
    z1, z2 = rows()
    spreads = sum((1 - (z.var(0) + 1e-4).sqrt()).relu().mean() for z in (z1, z2))
    weight = spec_of("vicreg", recipe="cifar").method.config.loss.config.variance_weight
    got = vicreg(z1, z2, invariance_weight=0, covariance_weight=0, variance_weight=weight)
    torch.testing.assert_close(got, 25 * spreads)


def test_imagenet_recipe_is_the_authors() -> None:
    spec = spec_of("vicreg", recipe="imagenet")
    rates, train = spec.optimizer.config, spec.train
    assert (spec.optimizer.name, rates.lr.start, rates.lr.warmup, rates.lr_per) == ("lars", 0.2, 10, 256)
    assert rates.lr.end == pytest.approx(0.001 * rates.lr.start)
    assert (train.epochs, train.batch_size, train.image_size) == (1000, 2048, 224)
    views = spec.augmentation.config
    assert [(view.blur, view.solarize) for view in (views.first, views.second)] == [(1.0, 0.0), (0.1, 0.2)]


def test_a_small_run_trains_and_exports(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {"hidden_dim": 16, "out_dim": 16}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "report": False}
    result = akssl_core.run(method="vicreg", data=images, options=options, out=tmp_path / "run", **settings)
    assert 0 < result.metrics["loss"] < 30
    assert {"invariance", "variance", "covariance"} <= result.history[-1].keys()
    assert math.isfinite(result.history[-1]["covariance"])
    assert result.backbone(result.preprocess(images[:2])).shape[0] == 2


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    mine = (z.chunk(2)[dist.rank()] for z in rows())
    opposite = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) * (1 - 2 * dist.rank())  # rows alike in each process
    found = shared_projection(*mine) | {"collapse": vicreg(opposite, opposite)}
    torch.save(found, target / f"{dist.rank()}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(akssl_core.ConfigError, match="projector_layers: should be less than or equal to 256"):
        config_of(VICReg, projector_layers=10**12)

"""LeJEPA against the formulas, layers and draws of arXiv 2511.08544."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_lejepa import FLOOR, ZERO, LeJEPA, not_gaussian
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, ConfigError, Facts, Now, Views, dist
from akssl_core.testing import ToyBackbone, config_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
ONE = torch.ones(1, 1)
WIDE = torch.tensor([[1.0], [-1.0]])


def make(**settings: Any) -> LeJEPA:
    torch.manual_seed(0)
    small = {"hidden_dim": 20, "out_dim": 6, "directions": 32, **settings}
    method = akssl_core.build("method", "lejepa", ToyBackbone(), **small)
    assert isinstance(method, LeJEPA)
    return method


def lejepa(views: list[Tensor], directions: Tensor, global_views: int, weight: float = 0.05) -> Tensor:
    value: Tensor = akssl_core.build("loss", "lejepa", lambda_=weight)(views, directions, global_views)
    return value


def statistic(*rows: float) -> float:
    """The test statistic of one view of single features."""
    return not_gaussian(torch.tensor(rows)[None, :, None], ONE).item()


def unit(shape: tuple[int, int], seed: int = 3) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=0)


def rows(count: int, *shape: int, seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.7 * torch.randn(shape, generator=generator) for _ in range(count)]


def by_definition(z: Tensor, directions: Tensor) -> Tensor:
    """Equation of SIGReg on 33 points from -3 to 3, the mean over views and directions, in float64."""
    t = torch.linspace(-3, 3, 33).double()
    of_normal = (-(t**2) / 2).exp()
    values = []
    for view in z.double():
        for direction in directions.double().T:
            y = view @ direction
            empirical = torch.exp(1j * t[:, None] * y[None, :]).mean(1)
            values.append(len(y) * torch.trapezoid((empirical - of_normal).abs() ** 2 * of_normal, t))
    return torch.stack(values).mean()


# -- the test of Epps and Pulley ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ((0.0,) * 3, 3 * 0.4020476),
        ((1.0, -1.0), 0.2056592),
        ((2.0, 2.0), 5.2857048),
        ((0.0, 1.0, 2.0, 3.0), 2.9453447),
    ],
    ids=["zeros", "two", "alike", "a ramp"],
)
def test_statistic_closed_forms(y: tuple[float, ...], expected: float) -> None:
    assert statistic(*y) == pytest.approx(expected, abs=1e-5)


def test_statistic_is_taken_along_each_direction_and_of_each_view() -> None:
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert not_gaussian(z, torch.eye(2)).mean().item() == pytest.approx(0.5048772, abs=1e-5)
    views = torch.stack([WIDE, WIDE])
    assert not_gaussian(views, ONE).mean().item() == pytest.approx(0.2056592, abs=1e-5), "pooled over views 0.4113185"
    apart = torch.tensor([[[1.0], [1.0]], [[-1.0], [-1.0]]])
    assert not_gaussian(apart, ONE).mean().item() == pytest.approx(2.3720, abs=1e-4), "views must not cancel: 0.4113"


def test_statistic_of_gaussian_rows_has_its_expectation() -> None:
    y = torch.randn(2000, 16, 1, generator=torch.Generator().manual_seed(0))
    assert not_gaussian(y, ONE).mean().item() == pytest.approx(FLOOR, rel=0.05)


@pytest.mark.parametrize(("deviation", "expected"), [(0.1, 0.3869), (0.5, 0.1512), (2.0, 0.2361)])
def test_statistic_per_row_of_other_widths(deviation: float, expected: float) -> None:
    y = deviation * torch.randn(1, 200_000, 1, generator=torch.Generator().manual_seed(0))
    assert not_gaussian(y, ONE).item() / 200_000 == pytest.approx(expected, abs=2e-3)


def test_statistic_ignores_order_and_sign_and_not_scale() -> None:
    z, directions = torch.stack(rows(2, 9, 4)), unit((4, 7))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    expected = not_gaussian(z, directions)
    torch.testing.assert_close(not_gaussian(z[:, order], directions), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(not_gaussian(-z, directions), expected, rtol=1e-4, atol=1e-5)
    assert (not_gaussian(2 * z, directions) - expected).abs().max() > 0.1


def test_rows_at_one_point_are_pulled_to_zero_and_rows_at_zero_stay() -> None:
    y = torch.full((1, 4, 1), 0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(not_gaussian(y, ONE).sum(), y)
    torch.testing.assert_close(slope, torch.full((1, 4, 1), 0.8323), rtol=0, atol=1e-4)
    zero = torch.zeros(1, 4, 1, requires_grad=True)
    (slope,) = torch.autograd.grad(not_gaussian(zero, ONE).sum(), zero)
    assert torch.equal(slope, torch.zeros(1, 4, 1))


def test_the_pull_on_one_row_is_bounded_however_far_it_is() -> None:
    y = torch.tensor([0.1, -0.3, 0.2, 1e4])[None, :, None].requires_grad_()
    (slope,) = torch.autograd.grad(not_gaussian(y, ONE).sum(), y)
    assert slope.isfinite().all()
    assert slope.abs().max() < 3


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("global_views", "expected", "prediction"), [(2, 0.0710369, 0.0625), (1, 0.1304119, 0.125)])
def test_loss_closed_forms(global_views: int, expected: float, prediction: float) -> None:
    """The mean of the global views is the target; the sum of both terms (not their share) would be 0.1366619."""
    loss = akssl_core.build("loss", "lejepa", lambda_=0.05)
    assert loss([WIDE, 0.5 * WIDE], ONE, global_views).item() == pytest.approx(expected, abs=1e-5)
    assert loss.parts["prediction"].item() == pytest.approx(prediction, abs=1e-6)
    assert loss.parts["sigreg"].item() == pytest.approx(0.2332372, abs=1e-5)


def test_loss_and_gradients_follow_the_definition() -> None:
    views = [z.requires_grad_() for z in rows(3, 7, 4)]
    directions = unit((4, 5))
    value = lejepa(views, directions, 2, 0.3)
    z = torch.stack(views)
    target = (z[0] + z[1]) / 2
    prediction = torch.stack([(target - one).square().mean() for one in z]).mean()
    expected = 0.7 * prediction + 0.3 * by_definition(z, directions)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, wanted in zip(torch.autograd.grad(value, views), torch.autograd.grad(expected, views), strict=True):
        assert mine.abs().max() > 1e-3, "every view, and through the mean too"
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


def test_prediction_is_0_where_all_views_agree_and_sigreg_has_its_share() -> None:
    z = rows(1, 8, 4)[0]
    loss = akssl_core.build("loss", "lejepa", lambda_=0.25)
    value = loss([z, z, z], unit((4, 5)), 2)
    assert loss.parts["prediction"].item() == pytest.approx(0, abs=1e-7)
    assert value.item() == pytest.approx(0.25 * loss.parts["sigreg"].item(), rel=1e-6)


def test_length_of_a_direction_does_not_count() -> None:
    views, directions = rows(2, 8, 4), unit((4, 5))
    lengths = torch.tensor([0.1, 2.0, 30.0, 1.0, 0.5])
    assert lejepa(views, directions * lengths, 2).item() == pytest.approx(lejepa(views, directions, 2).item(), rel=1e-5)


def test_loss_is_computed_in_float32_under_autocast() -> None:
    views, directions = [z.bfloat16() for z in rows(2, 8, 4)], unit((4, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = lejepa(views, directions, 2)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, lejepa([z.float() for z in views], directions, 2))


# -- two processes --------------------------------------------------------------------------------
def shared_projection(views: list[Tensor]) -> dict[str, Tensor]:
    """The mean loss and the averaged gradient of a shared projection."""
    torch.manual_seed(0)
    head = dist.wrap(nn.Linear(4, 3))
    loss = lejepa(list(head(torch.stack(views))), unit((3, 5)), 2, 0.5)
    loss.backward()
    weight = next(head.parameters())
    assert weight.grad is not None
    return {"loss": dist.mean(loss.detach()), "grad": weight.grad}


def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    """A sum across processes that autograd does not see would divide SIGReg's gradient by their number."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    alone = shared_projection(rows(3, 8, 4))
    for i in range(2):
        result = torch.load(tmp_path / f"{i}.pt")
        torch.testing.assert_close(result["loss"], alone["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["grad"], alone["grad"], rtol=1e-4, atol=1e-6)


# -- one step -------------------------------------------------------------------------------------
def test_step_is_the_loss_of_all_views_projections_and_logs_its_terms() -> None:
    method, b = make(), toy_batch(local=3)
    terms = method.step(b, NOW)
    assert method.backbone.seen == [(12, 8), (18, 4)], "one forward pass for each size of view"
    large, small = (torch.cat(b.views[name]) for name in ("global", "local"))
    z = method.projector(torch.cat([method.backbone(large), method.backbone(small)])).chunk(5)
    directions = b.shared_draws.normal("directions", 6 * 32).view(6, 32)
    expected = lejepa(list(z), directions, 2)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx(
        0.95 * terms["prediction"].item() + 0.05 * terms["sigreg"].item(), rel=1e-5
    )


def test_directions_are_drawn_anew_each_step_and_alike_in_every_process() -> None:
    method, b = make(loss={"name": "lejepa", "lambda_": 1.0}), toy_batch()

    def sigreg(batch: Batch) -> float:
        return method.step(batch, NOW)["sigreg"].item()

    first = sigreg(b)
    assert sigreg(b) == first, "they follow from seed and step, not from a generator"
    assert sigreg(replace(b, index=b.index + 100)) == first, "whatever the images of a process"
    assert sigreg(replace(b, step=1)) != first
    assert sigreg(replace(b, seed=1)) != first


def test_directions_point_everywhere() -> None:
    drawn = F.normalize(toy_batch().shared_draws.normal("directions", 6 * 4096).view(6, 4096), dim=0)
    torch.testing.assert_close(drawn.mean(1), torch.zeros(6), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn @ drawn.T / 4096, torch.eye(6) / 6, rtol=0, atol=0.02)


@pytest.mark.parametrize("count", [2, 4])
def test_views_of_one_size_are_all_global(count: int) -> None:
    method, b = make(), toy_batch(local=count - 2, local_size=8)
    views = b.views["global"] + b.views.get("local", [])
    method.step(Batch(Views({"global": views}), b.index), NOW)
    assert method.backbone.seen == [(6 * count, 8)]


def test_order_of_the_global_views_does_not_matter_and_each_view_does() -> None:
    method, b = make(), toy_batch(local=1)
    (x1, x2), (x3,) = b.views["global"], b.views["local"]

    def loss(first: Tensor, second: Tensor, local: Tensor) -> float:
        return method.step(Batch(Views({"global": [first, second], "local": [local]}), b.index), NOW)["loss"].item()

    usual = loss(x1, x2, x3)
    assert loss(x2, x1, x3) == pytest.approx(usual, rel=1e-5)
    for changed in ((x1 + 1, x2, x3), (x1, x2 * 2, x3), (x1, x2, x3.flip(0))):
        assert loss(*changed) != pytest.approx(usual, abs=1e-5)


def test_every_parameter_learns() -> None:
    method = make()
    method.step(toy_batch(local=2), NOW)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_projector_layer_by_layer() -> None:
    block = ["Linear", "BatchNorm1d", "ReLU"]
    projector = make().projector
    assert [type(layer).__name__ for layer in projector] == [*block, *block, "Linear"]
    linear = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 20), (20, 20), (20, 6)]
    assert [layer.bias is not None for layer in linear] == [False, False, True]


def test_another_loss_has_no_landmarks_of_this_one() -> None:
    config = config_of(LeJEPA, loss="barlowtwins")
    assert not LeJEPA.landmarks(config, facts())
    assert not LeJEPA.curves(config, facts())


# -- settings and a run ---------------------------------------------------------------------------
def facts(**views: int) -> Facts:
    return Facts(10_000, 64, 64, 32, 10, views or {"global": 4})


def test_more_views_than_it_takes_are_refused_with_the_most_that_it_does() -> None:
    with pytest.raises(ConfigError, match=r"takes 1 to 16 'global' views; pair offers 17 .*groups\.global\.count=16$"):
        akssl_core.explain("lejepa", data="shapes", augmentation={"name": "pair", "count": 17})


def test_one_view_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"compares views, and there is 1\. Use 2 or more.* augmentation\.count of"):
        LeJEPA.check(config_of(LeJEPA), Facts(100, 10, 10, 32, 1, {"global": 1}))
    assert not LeJEPA.check(config_of(LeJEPA), Facts(100, 10, 10, 32, 1, {"global": 1, "local": 1}))


@pytest.mark.parametrize(
    ("views", "weight", "told"), [(8, 0.05, ""), (8, 0.5, "0.05"), (4, 0.02, ""), (2, 0.1, "0.01")]
)
def test_a_weight_far_from_the_best_for_the_views_is_told(views: int, weight: float, told: str) -> None:
    config = config_of(LeJEPA, loss={"name": "lejepa", "lambda_": weight})
    warnings = LeJEPA.check(config, Facts(100, 10, 10, 32, 1, {"global": views}))
    assert bool(warnings) == bool(told)
    assert all(f"the paper's best is {told}. More" in text for text in warnings)


def test_landmarks_hold_where_all_projections_are_0() -> None:
    loss = akssl_core.build("loss", "lejepa")
    loss([torch.zeros(64, 2)] * 2, torch.eye(2), 2)
    assert loss.parts["sigreg"].item() == pytest.approx(64 * ZERO, rel=1e-5)
    for landmark in LeJEPA.landmarks(config_of(LeJEPA), facts()):
        assert all(low <= loss.parts[name] <= high for name, (low, high) in landmark.where.items())


def test_published_views() -> None:
    assert spec_of("lejepa", recipe="cifar").augmentation.config.count == 4
    crops = spec_of("lejepa", recipe="imagenet").augmentation.config
    assert (crops.first, crops.local_count) == (crops.second, 6)
    assert crops.local.scale == (0.05, 0.3)


def test_a_small_run_trains_and_exports(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {"hidden_dim": 16, "out_dim": 8, "directions": 16}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "report": False}
    result = akssl_core.run(method="lejepa", data=images, options=options, out=tmp_path / "run", **settings)
    assert math.isfinite(result.metrics["loss"])
    assert {"prediction", "sigreg"} <= result.history[-1].keys()
    assert result.backbone(result.preprocess(images[:2])).shape[0] == 2


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    mine = [z.chunk(2)[dist.rank()] for z in rows(3, 8, 4)]
    torch.save(shared_projection(mine), target / f"{dist.rank()}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(akssl_core.ConfigError, match="projector_layers: should be less than or equal to 256"):
        config_of(LeJEPA, projector_layers=10**12)

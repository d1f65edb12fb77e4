"""NNCLR against the formulas, layers and queue of arXiv 2104.14548."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_nnclr import NNCLR, nearest
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Facts, Now, Views, dist
from akssl_core.nn import Queue
from akssl_core.testing import ToyBackbone, config_of, spec_of, toy_batch

NOW = Now(0, 10, 100)


def make(batch_norm: bool = True, **settings: Any) -> NNCLR:
    torch.manual_seed(0)
    small = {"hidden_dim": 20, "out_dim": 8, "predictor_dim": 10, "queue_size": 16, **settings}
    method = akssl_core.build("method", "nnclr", ToyBackbone(batch_norm=batch_norm), **small)
    assert isinstance(method, NNCLR)
    return method


def nnclr(neighbours: Tensor, predictions: Tensor, temperature: float = 0.1) -> Tensor:
    value: Tensor = akssl_core.build("loss", "nnclr", temperature=temperature)(neighbours, predictions)
    return value


def rows(count: int, width: int = 8, seed: int = 2) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def written_out(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Equation 3 of the paper, one neighbour at a time, in float64."""
    t, p = F.normalize(neighbours.double(), dim=1), F.normalize(predictions.double(), dim=1)
    losses = []
    for i in range(len(t)):
        exps = torch.stack([torch.exp(t[i] @ other / temperature) for other in p])
        losses.append(-torch.log(exps[i] / exps.sum()))
    return torch.stack(losses).mean()


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 1.3619e-4), (0.2, 0.0200123), (1.0, 0.7436684)])
def test_loss_of_neighbours_that_meet_orthogonal_predictions(temperature: float, expected: float) -> None:
    """Over all N predictions; over 2N - 1 views the first would be 2.7236e-4."""
    basis = torch.eye(4)
    loss = nnclr(basis, basis, temperature).item()
    assert loss == pytest.approx(expected, abs=1e-7 if expected < 1e-3 else 1e-6)
    assert loss == pytest.approx(math.log(1 + 3 * math.exp(-1 / temperature)), rel=1e-3)


def test_softmax_runs_over_predictions_for_each_neighbour() -> None:
    """Two images share a neighbour: the transposed softmax would give 0.6931472."""
    e = torch.eye(2)
    assert nnclr(e[[0, 0]], e, 1.0).item() == pytest.approx(0.8132617, abs=1e-6)


@pytest.mark.parametrize("count", [2, 5])
def test_predictions_that_are_all_alike_cost_log_n(count: int) -> None:
    assert nnclr(rows(count), torch.ones(count, 8)).item() == pytest.approx(math.log(count), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_are_equation_3(temperature: float) -> None:
    t, p = rows(6).requires_grad_(), rows(6, seed=3).requires_grad_()
    value, expected = nnclr(t, p, temperature), written_out(t.detach(), p, temperature)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert t.grad is None, "neighbours are constants"
    assert p.grad is not None
    torch.testing.assert_close(p.grad, torch.autograd.grad(expected, p)[0].float(), rtol=1e-4, atol=1e-6)


def test_loss_ignores_lengths_and_a_common_order() -> None:
    t, p = rows(6), rows(6, seed=3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    expected = pytest.approx(nnclr(t, p).item(), rel=1e-5)
    assert nnclr(3 * t, p * torch.arange(1.0, 7)[:, None]).item() == expected
    assert nnclr(t[order], p[order]).item() == expected
    assert nnclr(t[order], p).item() != expected


# -- neighbours -----------------------------------------------------------------------------------
def test_neighbour_is_the_row_of_the_largest_cosine() -> None:
    e = torch.eye(3)
    queue = torch.stack([0.1 * e[0] + math.sqrt(0.99) * e[1], 0.9 * e[0] + math.sqrt(0.19) * e[2]])
    found, cosine, distinct = nearest(torch.tensor([[5.0, 0.0, 0.0], [0.1, 0.0, 0.0]]), queue)
    assert torch.equal(found, queue[[1, 1]])
    assert cosine.item() == pytest.approx(0.9)
    assert distinct.item() == 0.5, "one row for two images"


def test_order_of_the_queue_and_length_of_a_view_do_not_matter() -> None:
    queue, z = F.normalize(rows(32), dim=1), rows(6, seed=3)
    expected, cosine, _ = nearest(z, queue)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for found, same, _ in (nearest(z, queue[order]), nearest(7 * z, queue)):
        assert torch.equal(found, expected)
        torch.testing.assert_close(same, cosine)


def test_neighbours_are_looked_for_in_float32() -> None:
    """In bf16 these two rows have the same cosine."""
    queue = F.normalize(torch.tensor([[1.0, 0.02, 0.0], [1.0, 0.0, 0.01]]), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _, _ = nearest(torch.tensor([[1.0, 0.0, 0.01]]), queue)
    assert torch.equal(found[0], queue[1])


# -- one step -------------------------------------------------------------------------------------
def test_neighbour_of_one_view_meets_the_prediction_of_the_other() -> None:
    """With z1 = p1 = (e0, e1) and z2 = p2 = (e2, e3) each prediction is orthogonal to the neighbour it meets: log 2."""
    method = make(out_dim=4, queue_size=4, loss={"name": "nnclr", "temperature": 0.1})
    e = torch.eye(4)
    method.queue.rows.copy_(e)
    method.backbone.forward, method.projector, method.predictor = (lambda x: x), nn.Identity(), nn.Identity()
    terms = method.step(Batch(Views({"global": [e[:2], e[2:]]}), torch.arange(2)), NOW)
    assert terms["loss"].item() == pytest.approx(math.log(2), abs=1e-6), "the same view would give 4.5e-5"
    assert terms["neighbour_cosine"].item() == 1
    assert terms["distinct_neighbours"].item() == 1


def test_step_is_the_mean_of_both_directions() -> None:
    method, b = make(), toy_batch()
    loss = method.step(b, NOW)["loss"].item()
    z = [method.projector(method.backbone(x)) for x in b.views["global"]]
    (t1, _, _), (t2, _, _) = (nearest(one, method.queue.rows) for one in z)
    p1, p2 = (method.predictor(one) for one in z)
    expected = (written_out(t1, p2, 0.1) + written_out(t2, p1, 0.1)) / 2
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert method.backbone.seen[:2] == [(6, 8), (6, 8)], "a forward pass for each view"


def test_queue_is_searched_before_the_batch_enters_and_takes_the_first_view() -> None:
    method, b = make(queue_size=6), toy_batch()
    before = method.queue.rows.clone()
    method.step(b, NOW)
    assert torch.equal(method.queue.rows, before), "within a step nothing moves"
    method.queue.after_step(NOW)
    first = F.normalize(method.projector(method.backbone(b.views["global"][0])), dim=1)
    torch.testing.assert_close(method.queue.rows, first.detach(), rtol=1e-4, atol=1e-6)
    assert method.step(b, NOW)["neighbour_cosine"].item() == pytest.approx(1, abs=1e-4), "now each finds itself"


def test_evaluation_does_not_fill_the_queue() -> None:
    method = make().eval()
    before = method.queue.rows.clone()
    method.step(toy_batch(), NOW)
    method.queue.after_step(NOW)
    assert torch.equal(method.queue.rows, before)


def test_gradient_reaches_everything_that_is_trained_through_predictions_alone() -> None:
    method, b = make(), toy_batch()
    method.step(b, NOW)["loss"].backward()
    got = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    assert got.keys() == {name for name, _ in method.named_parameters()}
    assert all(grad.abs().max() > 0 for grad in got.values())
    method.zero_grad()
    with torch.no_grad():
        z = [method.projector(method.backbone(x)) for x in b.views["global"]]
        (t1, _, _), (t2, _, _) = (nearest(one, method.queue.rows) for one in z)
    p1, p2 = (method.predictor(method.projector(method.backbone(x))) for x in b.views["global"])
    ((method.loss(t1, p2) + method.loss(t2, p1)) / 2).backward()
    for name, p in method.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-6)


def test_swapping_the_views_changes_nothing_and_changing_either_does() -> None:
    method, b = make(), toy_batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    noise = torch.randn(x1.shape, generator=torch.Generator().manual_seed(5))
    assert loss(x2, x1) == pytest.approx(loss(x1, x2), rel=1e-5)
    assert loss(x1 + noise, x2) != pytest.approx(loss(x1, x2), abs=1e-4)
    assert loss(x1, x2 + noise) != pytest.approx(loss(x1, x2), abs=1e-4)


def test_first_loss_is_about_log_n() -> None:
    """log N + 1 / (2 D t^2) for unrelated unit vectors."""
    loss = {"name": "nnclr", "temperature": 1.0}
    method = make(out_dim=64, predictor_dim=64, queue_size=128, loss=loss)
    assert method.step(toy_batch(64), NOW)["loss"].item() == pytest.approx(math.log(64) + 1 / 128, abs=0.1)


# -- the heads and the state ----------------------------------------------------------------------
def test_heads_layer_by_layer() -> None:
    method, block = make(), ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(layer).__name__ for layer in method.projector] == [*block, *block, "Linear", "BatchNorm1d"]
    assert [type(layer).__name__ for layer in method.predictor] == [*block, "Linear"]
    linear = [layer for head in (method.projector, method.predictor) for layer in head if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(12, 20), (20, 20), (20, 8), (8, 10), (10, 8)]
    assert [layer.bias is not None for layer in linear] == [False, False, False, False, True]
    assert method.projector[-1].affine


def test_the_default_widths_and_the_queue_are_the_paper_s() -> None:
    config = config_of(NNCLR)
    assert (config.hidden_dim, config.out_dim, config.predictor_dim, config.queue_size) == (2048, 256, 4096, 98304)
    assert config.loss.config.temperature == 0.1


def test_state_dict_holds_the_queue() -> None:
    method, b = make(), toy_batch()
    method.step(b, NOW)
    method.queue.after_step(NOW)
    torch.manual_seed(5)
    other = make()
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.queue.rows, method.queue.rows)
    assert torch.equal(other.step(b, NOW)["loss"], method.step(b, NOW)["loss"])


@pytest.mark.parametrize(("images", "chosen"), [(64, 32), (65, 64), (5000, 4096), (50_000, 32768), (1_281_167, None)])
def test_a_queue_is_shorter_than_the_data(images: int, chosen: int | None) -> None:
    facts = Facts(images, 32, 32, 32, 10, {"global": 2})
    choices = NNCLR.choose(config_of(NNCLR), facts)
    assert {name: choice.value for name, choice in choices.items()} == ({"queue_size": chosen} if chosen else {})
    assert bool(NNCLR.check(config_of(NNCLR), facts)) == (images <= 98304)
    assert not NNCLR.check(config_of(NNCLR, queue_size=chosen or 98304), facts)


def test_published_queue_is_longer_than_cifar_and_the_recipe_s_is_not() -> None:
    assert NNCLR.published["cifar"].values["method"]["queue_size"] > 50_000
    assert spec_of("nnclr", recipe="cifar").method.config.queue_size < 50_000


def test_a_small_run_trains_and_exports(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {"hidden_dim": 16, "out_dim": 8, "predictor_dim": 8}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "report": False}
    result = akssl_core.run(method="nnclr", data=images, options=options, out=tmp_path / "run", **settings)
    assert math.isfinite(result.metrics["loss"])
    assert 0 < result.history[-1]["distinct_neighbours"] <= 1
    assert "queue_size: 32" in (tmp_path / "run" / "config.yaml").read_text(), "fewer than images"
    assert result.backbone(result.preprocess(images[:2])).shape[0] == 2


# -- two processes --------------------------------------------------------------------------------
def results(rank: int, world: int) -> dict[str, Tensor]:
    """Loss, gradients and queue of a rank's share of 8 images; no batch norm, so that no statistics differ."""
    method = make(batch_norm=False).eval()
    method.queue.train()
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(8, 3, 4, 4, generator=generator).chunk(world)[rank] for _ in range(2)]
    model = dist.wrap(method)
    value = model(Batch(Views({"global": views}), torch.arange(8).chunk(world)[rank]), NOW)["loss"]
    value.backward()
    assert isinstance(method.queue, Queue)
    method.queue.after_step(NOW)
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": dist.mean(value.detach()), "queue": method.queue.rows, **grads}


def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    alone = results(0, 1)
    for i in range(2):
        result = torch.load(tmp_path / f"{i}.pt")
        assert result.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    torch.save(results(dist.rank(), 2), target / f"{dist.rank()}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(akssl_core.ConfigError, match="projector_layers: should be less than or equal to 256"):
        config_of(NNCLR, projector_layers=10**12)

"""MoCo v2 against the formulas, layers and state of arXiv 2003.04297 and 1911.05722."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from akssl_plugin_moco import MoCoV2
from akssl_plugin_moco.v2 import in_groups, shuffled
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Draws, Now, Views
from akssl_core.nn import StepState
from akssl_core.testing import ToyBackbone, optimizer_of, toy_batch

NOW = Now(0, 10, 100)


def make(**settings: Any) -> MoCoV2:
    torch.manual_seed(0)
    small = {"out_dim": 16, "queue_size": 24, "bn_splits": 1, **settings}
    method = akssl_core.build("method", "mocov2", ToyBackbone(), **small)
    assert isinstance(method, MoCoV2)
    return method


def batch(size: int = 8, seed: int = 1) -> Batch:
    return toy_batch(size, seed=seed)


def end_step(method: MoCoV2, now: Now = NOW) -> None:
    """What the engine does after the optimizer's step."""
    for module in method.modules():
        if isinstance(module, StepState):
            module.after_step(now)


def query(method: MoCoV2, x: Tensor) -> Tensor:
    return F.normalize(method.projector(method.backbone(x)), dim=1)


@torch.no_grad()
def key(method: MoCoV2, x: Tensor) -> Tensor:
    return F.normalize(method.key.projector(method.key.backbone(x)), dim=1)


# -- a step ---------------------------------------------------------------------------------------
def test_step_contrasts_the_first_view_with_keys_of_the_second() -> None:
    method, b = make(), batch()
    x1, x2 = b.views["global"]
    expected = method.loss(query(method, x1), key(method, x2), method.queue.rows)
    torch.testing.assert_close(method.step(b, NOW)["loss"], expected)


def test_symmetric_step_adds_both_directions_over_the_same_queue() -> None:
    method, b = make(symmetric=True), batch()
    x1, x2 = b.views["global"]
    one = method.loss(query(method, x1), key(method, x2), method.queue.rows)
    other = method.loss(query(method, x2), key(method, x1), method.queue.rows)
    torch.testing.assert_close(method.step(b, NOW)["loss"], one + other)


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_view_matters_and_only_the_symmetric_loss_may_swap_them(symmetric: bool) -> None:
    method, b = make(symmetric=symmetric), batch()
    x1, x2 = b.views["global"]

    def loss(*views: Tensor) -> float:
        return method.step(Batch(Views({"global": list(views)}), b.index), NOW)["loss"].item()

    assert (loss(x2, x1) == pytest.approx(loss(x1, x2), abs=1e-5)) == symmetric
    assert loss(x1 + torch.randn_like(x1), x2) != pytest.approx(loss(x1, x2), abs=1e-4)
    assert loss(x1, x2 + torch.randn_like(x2)) != pytest.approx(loss(x1, x2), abs=1e-4)


def test_gradient_reaches_the_query_encoder_alone() -> None:
    method = make(bn_splits=2)
    method.step(batch(), NOW)["loss"].backward()
    for name, p in method.named_parameters():
        if name.startswith("key."):
            assert p.grad is None, name
            assert not p.requires_grad, name
        else:
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name


def test_optimizer_trains_the_query_encoder_with_one_weight_decay() -> None:
    """The official code excludes neither biases nor batch norms."""

    method = make()
    (group,) = optimizer_of(method).param_groups
    assert set(group["names"]) == {name for name, _ in method.named_parameters() if not name.startswith("key.")}


def test_one_gradient_step_lowers_the_loss() -> None:
    method, b = make(), batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    first = method.step(b, NOW)["loss"]
    first.backward()
    optimizer.step()
    assert method.step(b, NOW)["loss"] < first


# -- the slow encoder -----------------------------------------------------------------------------
def test_key_encoder_starts_as_a_copy_and_moves_only_after_the_step() -> None:
    method, b = make(momentum=0.9), batch()
    fast = {"backbone": method.backbone, "projector": method.projector}
    slow = {name: method.key.get_submodule(name) for name in fast}
    for name, module in fast.items():
        for p, copy in zip(module.parameters(), slow[name].parameters(), strict=True):
            assert torch.equal(p, copy)
            assert p.data_ptr() != copy.data_ptr()
    with torch.no_grad():
        for p in (*method.backbone.parameters(), *method.projector.parameters()):
            p.add_(torch.randn_like(p))
    old = {name: p.clone() for name, p in method.key.named_parameters()}
    method.step(b, NOW)
    assert all(torch.equal(p, old[name]) for name, p in method.key.named_parameters())
    end_step(method)
    for name, p in method.key.named_parameters():
        new = method.get_parameter(name)
        torch.testing.assert_close(p, 0.9 * old[name] + 0.1 * new)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_key_encoder_at_the_ends_of_momentum(momentum: float) -> None:
    method = make(momentum=momentum)
    with torch.no_grad():
        method.backbone.conv.weight.add_(1.0)
    before = method.key.backbone.conv.weight.clone()
    end_step(method)
    expected = method.backbone.conv.weight if momentum == 0 else before
    assert torch.equal(method.key.backbone.conv.weight, expected)


def test_key_encoder_gathers_statistics_of_its_own() -> None:
    method = make()
    method.train()
    method.step(batch(), NOW)
    assert method.key.backbone.bn.num_batches_tracked == 1
    assert not torch.equal(method.key.backbone.bn.running_mean, method.backbone.bn.running_mean)


# -- the queue ------------------------------------------------------------------------------------
def test_queue_takes_the_keys_after_the_step_the_oldest_leave_first() -> None:
    method = make()
    keys = []
    start = method.queue.rows.clone()
    for seed in range(4):
        b = batch(8, seed)
        keys.append(key(method, b.views["global"][1]))
        before = method.queue.rows.clone()
        method.step(b, NOW)
        assert torch.equal(method.queue.rows, before), "keys of a step are no negatives of that step"
        end_step(method)
        torch.testing.assert_close(method.queue.rows, torch.cat([start, *keys])[-24:])
    assert method.queue.filled == 24


def test_symmetric_queue_takes_both_directions_together() -> None:
    method, b = make(symmetric=True), batch()
    x1, x2 = b.views["global"]
    expected = torch.cat([method.queue.rows[16:], key(method, x2), key(method, x1)])
    method.step(b, NOW)
    end_step(method)
    torch.testing.assert_close(method.queue.rows, expected)


def test_queue_has_unit_rows_from_the_start_and_under_autocast() -> None:
    method = make()
    torch.testing.assert_close(method.queue.rows.norm(dim=1), torch.ones(24))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(batch(24), NOW)["loss"]
    end_step(method)
    assert method.queue.rows.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(method.queue.rows.norm(dim=1), torch.ones(24))


def test_state_dict_holds_key_encoder_and_queue() -> None:
    method = make(momentum=0.5)
    method.step(batch(), NOW)
    end_step(method)
    with torch.no_grad():
        method.backbone.conv.weight.add_(0.1)
    end_step(method)
    other = make(momentum=0.5)
    other.load_state_dict(method.state_dict())
    for seed in (5, 6):
        losses = [m.step(batch(8, seed), NOW)["loss"] for m in (method, other)]
        assert torch.equal(*losses)
        end_step(method)
        end_step(other)
        assert torch.equal(method.queue.rows, other.queue.rows)


# -- batch norms over parts of the batch ----------------------------------------------------------
def draws(step: int = 0, size: int = 12) -> Draws:
    return Draws.of(0, step, torch.arange(size))


def test_queries_have_statistics_per_group_of_the_batch() -> None:
    method, plain = make(bn_splits=4), make()
    x = batch(12).views["global"][0]
    got = method._queries(x)
    assert method.backbone.seen == [(3, 8)] * 4
    torch.testing.assert_close(got, torch.cat([plain.projector(plain.backbone(part)) for part in x.split(3)]))
    assert torch.equal(method.backbone.bn.running_mean, plain.backbone.bn.running_mean)
    assert not torch.allclose(got, make()._queries(x), atol=1e-3)


def test_keys_are_those_of_groups_of_the_shuffled_batch() -> None:
    method, plain = make(bn_splits=4), make()
    x = batch(12).views["global"][1]
    got = method._keys(x, draws())
    assert method.key.backbone.seen == [(3, 8)] * 4
    order = draws().seeds("shuffle").argsort()
    expected = torch.empty_like(got)
    expected[order] = torch.cat([key(plain, x[part]) for part in order.split(3)])
    torch.testing.assert_close(got, expected)
    unshuffled = torch.cat([key(plain, part) for part in x.split(3)])
    assert not torch.allclose(got, unshuffled, atol=1e-3), "other images share the statistics"


def test_every_image_gets_its_own_key_back() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    x = batch(12).views["global"][0]
    torch.testing.assert_close(shuffled(encoder, x, draws().seeds("shuffle")), encoder(x))
    torch.testing.assert_close(in_groups(encoder, x, 3), encoder(x))


def test_shuffling_follows_from_step_images_and_view_alone() -> None:
    b = batch(12)

    def norms(b: Batch, seed: int = 0) -> Tensor:
        """Running statistics of the key encoder after a step: they depend on the order in which groups come."""
        method = make(bn_splits=4, symmetric=True)
        torch.manual_seed(seed)
        method.step(b, NOW)
        mean: Tensor = method.key.backbone.bn.running_mean
        return mean

    first = norms(b)
    assert torch.equal(norms(b, seed=1), first), "torch's generator has no part in it"
    for other in (replace(b, step=1), replace(b, seed=1), replace(b, index=b.index + 100)):
        assert not torch.equal(norms(other), first)
    assert not torch.equal(*(draws().view(v).seeds("shuffle").argsort() for v in (0, 1))), "each direction has its own"


@pytest.mark.parametrize("splits", [1, 4])
def test_a_step_draws_nothing_from_torchs_generator(splits: int) -> None:
    method = make(bn_splits=splits)
    state = torch.get_rng_state()
    method.step(batch(12), NOW)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_group_is_a_plain_forward_pass_and_shares_its_statistics() -> None:
    method, plain = make(), make()
    x = batch(12).views["global"][0]
    assert torch.equal(F.normalize(method._queries(x), dim=1), query(plain, x))
    assert torch.equal(method._keys(x, draws()), key(plain, x))
    assert method.shared_batch_norm, "with several processes the engine makes it one group of all their images"
    assert not make(bn_splits=2).shared_batch_norm


# -- construction ---------------------------------------------------------------------------------
def test_head_layer_by_layer() -> None:
    projector = make().projector
    assert [type(layer).__name__ for layer in projector] == ["Linear", "ReLU", "Linear"], "no batch norm in the head"
    shapes = [(layer.in_features, layer.out_features) for layer in projector if isinstance(layer, nn.Linear)]
    assert shapes == [(12, 12), (12, 16)]
    assert all(layer.bias is not None for layer in projector if isinstance(layer, nn.Linear))
    assert make(hidden_dim=7).projector[0].out_features == 7


def test_a_batch_norm_behind_the_head_sees_groups_of_the_batch_too() -> None:
    method = make(projection_batch_norm=True, bn_splits=4)
    assert [type(layer).__name__ for layer in method.projector] == ["Linear", "ReLU", "Linear", "BatchNorm1d"]
    assert not method.projector[-1].affine
    parts = method._queries(batch(12).views["global"][0]).split(3)
    for part in parts:
        torch.testing.assert_close(part.mean(0), torch.zeros(16), atol=1e-5, rtol=0)


def test_construction_leaves_the_backbone_as_it_is() -> None:
    backbone = ToyBackbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    method = akssl_core.build("method", "mocov2", backbone, queue_size=8)
    assert method.backbone is backbone
    assert method.encoder is backbone, "the query encoder is exported"
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())

"""SwAV against the formulas, layers and gradients of arXiv 2006.09882."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Backbone, Batch, Features, ImageSpec, Now, Schema, Views
from akssl_core.nn import sinkhorn
from akssl_core.testing import drop_frozen, optimizer_of

NOW = Now(0, 10, 100)


def plain_sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """The assignment as the paper writes it: exponentials, then rows and columns by turns, in double precision."""
    q = (scores.double() / epsilon).exp().T
    q /= q.sum()
    clusters, samples = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * clusters
        q /= q.sum(0, keepdim=True) * samples
    return (q * samples).T.float()


def cross_entropy(code: Tensor, scores: Tensor, temperature: float = 0.1) -> Tensor:
    return -(code * (scores / temperature).softmax(1).log()).sum(1).mean()


def scores_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- assignment ---------------------------------------------------------------------------------------
def test_sinkhorn_equals_the_exponential_form() -> None:
    for shape in ((40, 7), (6, 20)):
        scores = scores_of(*shape)
        torch.testing.assert_close(sinkhorn(scores, 0.05), plain_sinkhorn(scores), rtol=1e-4, atol=1e-6)


def test_sinkhorn_closed_forms() -> None:
    assert sinkhorn(torch.eye(2), 0.05)[0, 0].item() == pytest.approx(1 / (1 + math.exp(-20)), abs=1e-6)
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for epsilon in (0.01, 0.05, 1.0):
        torch.testing.assert_close(sinkhorn(same, epsilon), torch.full((2, 2), 0.5))
    torch.testing.assert_close(sinkhorn(torch.full((6, 4), 0.3), 0.05), torch.full((6, 4), 0.25))


def test_sinkhorn_rows_sum_to_one_and_a_constant_changes_nothing() -> None:
    scores = scores_of(12, 5)
    codes = sinkhorn(scores, 0.05)
    torch.testing.assert_close(codes.sum(1), torch.ones(12))
    torch.testing.assert_close(codes, sinkhorn(scores + 0.7, 0.05), rtol=1e-4, atol=1e-6)


# -- loss ---------------------------------------------------------------------------------------------
def test_loss_of_matching_identity_scores() -> None:
    loss = akssl_core.build("loss", "swav")
    scores = torch.eye(2)
    codes = sinkhorn(scores, 0.05)
    assert loss([scores, scores], [codes, codes]).item() == pytest.approx(4.542e-5, abs=3e-7)


def test_uniform_predictions_cost_log_k_whatever_the_codes() -> None:
    loss = akssl_core.build("loss", "swav", temperature=0.3)
    flat = torch.full((4, 7), 0.2)
    for seed in range(3):
        codes = [scores_of(4, 7, seed=2 * seed + i).softmax(1) for i in range(2)]
        assert loss([flat] * 3, codes).item() == pytest.approx(math.log(7), abs=1e-5)


def test_loss_is_at_least_the_entropy_of_the_codes() -> None:
    loss = akssl_core.build("loss", "swav")
    for seed in range(5):
        codes = [sinkhorn(scores_of(6, 4, seed=seed + i), 0.05) for i in range(2)]
        entropy = sum(torch.special.entr(code).sum(1).mean() for code in codes) / 2
        assert loss([scores_of(6, 4, seed=9), scores_of(6, 4, seed=8)], codes) >= entropy > 0


def test_loss_is_the_mean_over_both_codes_and_all_other_views() -> None:
    scores = [scores_of(6, 4, seed=i) for i in range(5)]
    codes = [scores_of(6, 4, seed=10 + i).softmax(1) for i in range(2)]
    expected = torch.zeros(())
    for s in range(2):
        expected += sum(cross_entropy(codes[s], scores[v], 0.2) for v in range(5) if v != s) / 4 / 2
    loss = akssl_core.build("loss", "swav", temperature=0.2)
    torch.testing.assert_close(loss(scores, codes), expected, rtol=1e-5, atol=1e-6)


def test_loss_never_sends_a_gradient_into_codes() -> None:
    scores = [scores_of(6, 4, seed=i).requires_grad_() for i in range(3)]
    codes = [scores_of(6, 4, seed=5 + i).softmax(1).requires_grad_() for i in range(2)]
    akssl_core.build("loss", "swav")(scores, codes).backward()
    assert all(s.grad is not None and s.grad.abs().max() > 0 for s in scores)
    assert all(code.grad is None for code in codes)


# -- step ---------------------------------------------------------------------------------------------
def test_step_is_the_swapped_prediction_of_the_paper(make, batch) -> None:
    method, b = make(), batch()
    got = method.step(b, NOW)["loss"]
    features = torch.cat([method.backbone(view) for view in b.views.all()])
    z = F.normalize(method.projector(features), dim=1).chunk(5)
    scores = [v @ method.prototypes.weight.T for v in z]
    expected = torch.zeros(())
    for s in range(2):
        code = plain_sinkhorn(scores[s].detach())
        expected += sum(cross_entropy(code, scores[v]) for v in range(5) if v != s) / 4 / 2
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("local", [0, 3])
def test_one_backbone_pass_per_group_and_one_of_the_projector_in_the_order_of_views(make, batch, local) -> None:
    method, b = make(), batch(size=6, local=local)
    inputs: list[Tensor] = []
    method.projector.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    method.step(b, NOW)
    assert method.backbone.seen == [(12, 8), (18, 5)][: 2 if local else 1]
    (rows,) = inputs
    torch.testing.assert_close(rows, torch.cat([method.backbone(view) for view in b.views.all()]))


def test_global_views_come_first_whatever_the_order_of_groups(make, batch) -> None:
    method, b = make(), batch()
    turned = Batch(Views(reversed(b.views.items())), b.index)
    torch.testing.assert_close(method.step(turned, NOW)["loss"], method.step(b, NOW)["loss"])


def test_each_code_depends_on_its_own_view_alone_and_every_view_predicts(make, batch) -> None:
    method = make().eval()  # in training the batch norm of the head sees all views together
    method.step(batch(), NOW)
    codes, scores = method.loss.codes, method.loss.scores
    for changed in range(5):
        b = batch()
        b.views.all()[changed].add_(torch.randn(6, 3, 1, 1))
        method.step(b, NOW)
        for i in range(2):
            assert torch.equal(method.loss.codes[i], codes[i]) == (i != changed), (changed, i)
        for v in range(5):
            assert torch.equal(method.loss.scores[v], scores[v]) == (v != changed), (changed, v)


def test_swapping_the_global_views_changes_nothing(make, batch) -> None:
    method, b = make(), batch()
    swapped = Batch(Views({"global": b.views["global"][::-1], "local": b.views["local"]}), b.index)
    torch.testing.assert_close(method.step(swapped, NOW)["loss"], method.step(b, NOW)["loss"])


def test_gradients_reach_every_parameter_through_the_predictions_alone(make, batch) -> None:
    method, b = make(), batch()
    method.step(b, NOW)["loss"].backward()
    got = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    codes = [code.clone() for code in method.loss.codes]
    assert all(not code.requires_grad for code in method.loss.codes)
    method.zero_grad()
    scores = [method.prototypes(z) for z in method.project(b.views)]
    sum(cross_entropy(codes[s], scores[v]) / 8 for s in range(2) for v in range(5) if v != s).backward()
    assert got.keys() == {name for name, _ in method.named_parameters()}
    for name, p in method.named_parameters():
        rounding = name == "projector.0.bias"  # a batch norm follows it, so its gradient is zero but for rounding
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-5 if rounding else 1e-6)
        assert rounding or got[name].abs().max() > 1e-6, name


def test_one_optimizer_step_lowers_the_loss_of_its_batch(make, batch) -> None:
    method, b = make(), batch(size=16)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    before = method.step(b, NOW)["loss"]
    before.backward()
    optimizer.step()
    method.prototypes.after_step(NOW)
    assert method.step(b, NOW)["loss"] < before


def test_first_loss_is_near_log_k(make, batch) -> None:
    method, b = make(prototypes=300, out_dim=128, hidden_dim=64), batch(size=64)
    assert method.step(b, NOW)["loss"].item() == pytest.approx(math.log(300), abs=0.5)


def test_terms_of_a_step(make, batch) -> None:
    method = make()
    terms = method.step(batch(), NOW)
    entropy = torch.special.entr(torch.cat(method.loss.codes)).sum(1).mean()
    torch.testing.assert_close(terms["code_entropy"], entropy)
    assert 0 <= terms["code_entropy"] <= terms["loss"]
    assert 0 < terms["z_std_ratio"] < 1.1
    nn.init.zeros_(method.projector[-1].weight)  # all projections alike
    assert method.step(batch(), NOW)["z_std_ratio"] == pytest.approx(0, abs=1e-5)


class Pixels(Backbone):
    """Features without a layer, so that reduced precision cannot touch them."""

    name = "pixels"
    embed_dim = 16

    def __init__(self) -> None:
        super().__init__(Schema(), ImageSpec(8, 3, (0.5,) * 3, (0.25,) * 3))

    def features(self, images: Tensor) -> Features:
        return Features(images.flatten(1)[:, :16])


def test_scores_and_codes_are_float32_under_autocast(make, batch) -> None:
    method = make(Pixels(), prototypes=40)
    method.projector = nn.Identity()
    expected = method.step(batch(), NOW)["loss"]
    codes = method.loss.codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = method.step(batch(), NOW)["loss"]
    assert all(s.dtype == torch.float32 for s in method.loss.scores)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(method.loss.codes, codes)


# -- parts --------------------------------------------------------------------------------------------
def test_heads_layer_by_layer(make) -> None:
    method = make()
    assert [type(layer).__name__ for layer in method.projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    linear = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 20), (20, 16)]
    assert all(layer.bias is not None for layer in linear)
    assert [(name, tuple(p.shape)) for name, p in method.prototypes.named_parameters()] == [("weight", (5, 16))]


def test_projections_may_have_a_batch_norm_without_scale_and_shift(make) -> None:
    projector = make(projection_batch_norm=True).projector
    assert [type(layer).__name__ for layer in projector][3:] == ["Linear", "BatchNorm1d"]
    assert not projector[-1].affine


def test_construction_leaves_the_backbone_as_it_is(make) -> None:
    torch.manual_seed(3)
    backbone = akssl_core.build("backbone", "resnet_tiny", ImageSpec(16, 3, (0.5,) * 3, (0.25,) * 3))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    method = make(backbone)
    assert method.backbone is backbone
    assert method.encoder is backbone
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in backbone.parameters())


def test_prototypes_have_unit_length_from_the_start_and_after_each_step(make) -> None:
    method = make()
    weight = method.prototypes.weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        weight.mul_(3.0).add_(0.1)
    direction = F.normalize(weight.detach().clone(), dim=1)
    method.prototypes.after_step(NOW)
    torch.testing.assert_close(weight.detach(), direction)


def test_prototypes_stay_frozen_for_their_epochs_and_then_learn(make, batch) -> None:
    method = make(freeze_prototypes_epochs=2)
    optimizer = optimizer_of(method, lr=0.5, weight_decay=0.1, momentum=0.9)
    start = method.prototypes.weight.detach().clone()
    conv = method.backbone.conv.weight.detach().clone()
    for step, frozen in ((0, True), (19, True), (20, False)):
        now = Now(step, 10, 100)
        method.step(batch(), now)["loss"].backward()
        drop_frozen(optimizer, now)
        optimizer.step()
        optimizer.zero_grad()
        method.prototypes.after_step(now)
        assert torch.allclose(method.prototypes.weight, start, atol=1e-6) == frozen, step
        assert not torch.equal(method.backbone.conv.weight, conv)
    (group,) = [g for g in optimizer.param_groups if g["frozen_epochs"]]
    assert (group["names"], group["frozen_epochs"]) == (["prototypes.weight"], 2.0)

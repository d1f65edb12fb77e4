from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from akssl_core.nn import (
    EMA,
    Center,
    Frozen,
    Prototypes,
    Queue,
    mlp,
    patch_std,
    sincos,
    sinkhorn,
    state_digest,
    std_ratio,
    take,
)
from akssl_core.schedule import Now, Schedule, cosine
from akssl_core.testing.ranks import on_ranks

NOW = Now(0, 10, 100)


def constant(value: float) -> Schedule:
    return Schedule(start=value)


# -- EMA ------------------------------------------------------------------------------------------
def pair(momentum: Schedule) -> tuple[nn.Module, EMA]:
    fast = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    slow = EMA(momentum, net=fast)
    for parameter in fast.parameters():
        parameter.data += 1
    return fast, slow


def test_ema_starts_as_a_copy_without_gradients():
    fast = nn.Linear(3, 4)
    slow = EMA(constant(0.9), net=fast)
    assert torch.equal(slow.net.weight, fast.weight)
    assert slow.net.weight is not fast.weight
    assert fast.weight.requires_grad
    assert not any(p.requires_grad for p in slow.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_ema_moves_by_its_momentum(momentum):
    fast, slow = pair(constant(momentum))
    before = [p.clone() for p in slow.parameters()]
    slow.after_step(NOW)
    for old, new, target in zip(before, slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * target)
    if momentum in (0.0, 1.0):
        expected = before if momentum else list(fast.parameters())
        assert all(torch.equal(new, want) for new, want in zip(slow.parameters(), expected, strict=True))


def test_ema_follows_the_schedule():
    fast, slow = pair(cosine(0.5, 1.0))
    before = slow.net[0].weight.clone()
    slow.after_step(Now(50, 10, 100))  # half-way: m = 1 - 0.5 * 0.5
    torch.testing.assert_close(slow.net[0].weight, 0.75 * before + 0.25 * fast[0].weight)


def test_ema_does_not_register_the_tracked_modules():
    fast, slow = pair(constant(0.9))
    assert set(slow.state_dict()) == {f"net.{key}" for key in fast.state_dict()}
    whole = nn.ModuleDict({"fast": fast, "slow": slow})
    assert len(list(whole.parameters())) == 2 * len(list(fast.parameters()))


def test_ema_does_not_average_buffers_and_keeps_its_own_statistics():
    fast, slow = pair(constant(0.0))
    fast(torch.randn(16, 3) + 5)
    slow.after_step(NOW)
    assert torch.equal(slow.net[1].running_mean, torch.zeros(4))
    slow.net(torch.randn(16, 3))
    assert not torch.equal(slow.net[1].running_mean, torch.zeros(4))
    slow.eval()
    before = slow.net[1].running_mean.clone()
    slow.net(torch.randn(16, 3))
    assert torch.equal(slow.net[1].running_mean, before)


def test_ema_has_no_dropout_in_training_mode():
    _, slow = pair(constant(0.9))
    slow.train()
    x = torch.randn(16, 3)
    assert torch.equal(slow.net(x), slow.net(x))


def test_ema_in_a_copied_method_follows_the_copy():
    fast, slow = pair(constant(0.0))
    twin = copy.deepcopy(nn.ModuleDict({"fast": fast, "slow": slow}))
    twin["fast"][0].weight.data.fill_(7)
    twin["slow"].after_step(NOW)
    assert torch.equal(twin["slow"].net[0].weight, torch.full((4, 3), 7.0))


# -- Queue ----------------------------------------------------------------------------------------
def keys(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, 2)


def test_queue_starts_with_seeded_unit_rows():
    torch.manual_seed(3)
    first = Queue(6, 4)
    torch.manual_seed(3)
    assert torch.equal(first.rows, Queue(6, 4).rows)
    torch.testing.assert_close(first.rows.norm(dim=1), torch.ones(6))
    assert first.filled == 0


def test_queue_writes_after_the_step_newest_last():
    queue = Queue(5, 2)
    old = queue.rows.clone()
    queue.push(keys(1, 2))
    queue.push(keys(3))
    assert torch.equal(queue.rows, old)
    queue.after_step(NOW)
    assert torch.equal(queue.rows, torch.cat([old[3:], keys(1, 2, 3)]))
    assert queue.filled == 3
    queue.after_step(NOW)
    assert queue.filled == 3
    queue.push(keys(4, 5, 6))
    queue.after_step(NOW)
    assert torch.equal(queue.rows, keys(2, 3, 4, 5, 6))
    assert queue.filled == 5


def test_a_queue_knows_whether_it_is_full_without_asking_again():
    queue = Queue(5, 2)
    assert not queue.full
    empty = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.filled = queue.filled.to("meta")  # a device that cannot be asked
    for added, full in ((3, False), (2, True), (4, True)):
        queue.push(keys(*range(added)))
        queue.after_step(NOW)
        assert queue.full is full
    other = Queue(5, 2)
    other.push(keys(*range(5)))
    other.after_step(NOW)
    assert other.full
    other.load_state_dict(empty)
    assert not other.full


def test_queue_keeps_the_newest_of_more_keys_than_it_holds():
    queue = Queue(3, 2)
    queue.push(keys(1, 2, 3, 4, 5))
    queue.after_step(NOW)
    assert torch.equal(queue.rows, keys(3, 4, 5))
    assert queue.filled == 3


def test_queue_detaches_and_ignores_keys_in_evaluation_mode():
    queue = Queue(3, 2)
    queue.push(keys(1).clone().requires_grad_())
    queue.after_step(NOW)
    assert not queue.rows.requires_grad
    queue.eval()
    queue.push(keys(9))
    queue.after_step(NOW)
    assert torch.equal(queue.rows[-1:], keys(1))


def test_queue_stores_float32():
    queue = Queue(3, 2)
    queue.push(keys(1).bfloat16())
    queue.after_step(NOW)
    assert queue.rows.dtype == torch.float32


# -- Center ---------------------------------------------------------------------------------------
def test_center_moves_to_the_mean_of_all_pushes_of_a_step():
    center = Center(2, momentum=0.9)
    center.push(keys(1, 2))  # mean of the three rows: 3
    center.push(keys(6))
    assert torch.equal(center.value, torch.zeros(2))
    center.after_step(NOW)
    torch.testing.assert_close(center.value, torch.full((2,), 0.1 * 3))
    center.after_step(NOW)
    torch.testing.assert_close(center.value, torch.full((2,), 0.3))
    center.push(keys(1))
    center.after_step(NOW)
    torch.testing.assert_close(center.value, torch.full((2,), 0.9 * 0.3 + 0.1))


def test_center_stays_in_evaluation_mode():
    center = Center(2).eval()
    center.push(keys(5))
    center.after_step(NOW)
    assert torch.equal(center.value, torch.zeros(2))


# -- Prototypes -----------------------------------------------------------------------------------
def test_prototypes_give_cosines_and_are_unit_after_each_step():
    prototypes = Prototypes(4, 7)
    rows = F.normalize(torch.randn(5, 4), dim=1)
    assert set(prototypes.state_dict()) == {"weight"}
    torch.testing.assert_close(prototypes(rows), F.cosine_similarity(rows[:, None], prototypes.weight[None], dim=2))
    with torch.no_grad():
        prototypes.weight.mul_(3)
    prototypes(rows)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.full((7,), 3.0))
    prototypes.after_step(NOW)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(7))
    assert prototypes.weight.requires_grad


@pytest.mark.parametrize("block", [Queue(3, 2), Center(2), Prototypes(2, 3)], ids=lambda b: type(b).__name__)
def test_state_survives_a_round_trip(block):
    if not isinstance(block, Prototypes):
        block.push(keys(1, 2))
    block.after_step(NOW)
    other = type(block)(2, 3) if isinstance(block, Prototypes) else copy.deepcopy(block)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(block.state_dict())
    for name, tensor in block.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


# -- sinkhorn -------------------------------------------------------------------------------------
def test_sinkhorn_of_identity_scores():
    codes = sinkhorn(torch.eye(2), 0.05)
    torch.testing.assert_close(codes.diag(), torch.full((2,), 1 / (1 + math.exp(-20))), atol=1e-9, rtol=0)


@pytest.mark.parametrize("epsilon", [0.01, 0.05, 1.0])
def test_sinkhorn_splits_equal_samples_evenly(epsilon):
    torch.testing.assert_close(sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), epsilon), torch.full((2, 2), 0.5))


def test_sinkhorn_of_equal_scores_is_uniform():
    torch.testing.assert_close(sinkhorn(torch.full((6, 4), 0.3), 0.05), torch.full((6, 4), 0.25))


def test_sinkhorn_equals_the_plain_recursion():
    scores = torch.rand(8, 5, dtype=torch.float64) * 2 - 1
    q = (scores / 0.05).exp().T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / 5
        q = q / q.sum(0, keepdim=True) / 8
    torch.testing.assert_close(sinkhorn(scores.float(), 0.05), (q * 8).T.float(), atol=1e-5, rtol=1e-4)


def test_sinkhorn_rows_sum_to_one_and_ignore_a_constant():
    scores = torch.randn(16, 6)
    codes = sinkhorn(scores, 0.1)
    torch.testing.assert_close(codes.sum(1), torch.ones(16))
    torch.testing.assert_close(sinkhorn(scores + 3, 0.1), codes, atol=1e-5, rtol=1e-4)
    assert not sinkhorn(scores.requires_grad_(), 0.1).requires_grad


@pytest.mark.parametrize(("tau", "diagonal"), [(1.0, 0.731059), (0.1, 0.999955)])
def test_sinkhorn_of_two_rows_at_a_temperature(tau, diagonal):
    torch.testing.assert_close(sinkhorn(torch.eye(2), tau).diag(), torch.full((2,), diagonal), atol=1e-6, rtol=0)


def test_sinkhorn_of_uneven_rows():
    expected = torch.tensor([[0.622358, 0.377642], [0.377439, 0.622561]])
    torch.testing.assert_close(sinkhorn(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), 0.5), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cuts", [(5, 8), (0, 8), (8, 8), (1, 2)], ids=str)
def test_sinkhorn_over_ranks_is_that_over_all_their_rows(cuts):
    """Also where ranks have unlike many rows, or none."""
    scores = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    parts = (scores[: cuts[0]], scores[cuts[0] : cuts[1]], scores[cuts[1] :])
    found = on_ranks(3, lambda rank: sinkhorn(parts[rank.rank], 0.1, all_ranks=True))
    torch.testing.assert_close(torch.cat(found), sinkhorn(scores, 0.1), atol=1e-6, rtol=1e-4)
    assert torch.equal(sinkhorn(scores, 0.1, all_ranks=True), sinkhorn(scores, 0.1))


def test_sinkhorn_without_a_row_anywhere_is_empty():
    assert sinkhorn(torch.zeros(0, 3), 0.1, all_ranks=True).shape == (0, 3)


def test_sinkhorn_survives_half_precision_scores():
    codes = sinkhorn(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float16), 0.01)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()


# -- heads and tokens -----------------------------------------------------------------------------
def described(head: nn.Sequential) -> list[str]:
    names = []
    for layer in head:
        name = type(layer).__name__
        if isinstance(layer, nn.Linear):
            name = f"{layer.in_features}-{layer.out_features}{'' if layer.bias is None else '+b'}"
        names.append(name)
    return names


HEADS = {
    "simclr": (mlp(8, 8, 4, bias=False, last_bias=False, last_batch_norm="scale"), "8-8 BN ReLU 8-4 BN"),
    "mocov2": (mlp(8, 8, 4, batch_norm=False), "8-8+b ReLU 8-4+b"),
    "mocov3": (mlp(8, 16, 4, bias=False, last_bias=False, last_batch_norm="plain"), "8-16 BN ReLU 16-4 BN"),
    "byol": (mlp(8, 16, 4, last_bias=False), "8-16+b BN ReLU 16-4"),
    "simsiam": (mlp(8, 2, 8, bias=False), "8-2 BN ReLU 2-8+b"),
    "barlow": (mlp(8, 6, 6, 6, bias=False, last_bias=False), "8-6 BN ReLU 6-6 BN ReLU 6-6"),
    "swav": (mlp(8, 8, 4), "8-8+b BN ReLU 8-4+b"),
    "dino": (mlp(8, 6, 6, 4, batch_norm=False, activation=nn.GELU), "8-6+b GELU 6-6+b GELU 6-4+b"),
}


@pytest.mark.parametrize(("head", "layers"), HEADS.values(), ids=HEADS)
def test_mlp_builds_the_published_heads(head, layers):
    assert described(head) == layers.replace("BN", "BatchNorm1d").split()
    assert head(torch.randn(6, 8)).ndim == 2


@pytest.mark.parametrize(("kind", "trained"), [("affine", {"weight", "bias"}), ("scale", {"weight"}), ("plain", set())])
def test_mlp_last_batch_norm_trains_what_it_says(kind, trained):
    last = mlp(8, 8, 4, last_batch_norm=kind)[-1]
    assert {name for name, p in last.named_parameters() if p.requires_grad} == trained


def test_a_frozen_network_is_read_and_nothing_else():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    holder = nn.Module()
    holder.teacher = Frozen(network, {"source": "somewhere"})
    assert [*holder.parameters()] == []
    assert {name: tensor.dtype for name, tensor in holder.state_dict().items()} == {"teacher.sha256": torch.uint8}
    assert bytes(holder.teacher.sha256.tolist()).hex() == holder.teacher.about["sha256"]
    assert holder.teacher.about["sha256"] == state_digest(network.state_dict())
    before = copy.deepcopy(network.state_dict())
    out = holder.train().teacher(torch.randn(6, 4, requires_grad=True))
    assert not out.requires_grad
    assert not any(part.training for part in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    holder.to(torch.float64)
    assert network[0].weight.dtype == torch.float64, "it moves with the method"
    assert holder.teacher.sha256.dtype == torch.uint8


def test_a_digest_tells_every_bit_and_no_order():
    one, other = {"a": torch.zeros(2), "b": torch.ones(2)}, {"b": torch.ones(2), "a": torch.zeros(2)}
    assert state_digest(one) == state_digest(other)
    assert state_digest(one) != state_digest({**one, "a": torch.tensor([0.0, 1e-45])})
    assert state_digest(one) != state_digest({**one, "a": torch.zeros(1, 2)})


def test_take_picks_tokens_of_each_image():
    x = torch.arange(24.0).reshape(2, 4, 3)
    picked = take(x, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(picked, torch.stack([x[0, [3, 0]], x[1, [1, 1]]]))


def test_sincos_of_a_grid():
    positions = sincos((2, 3), 8)
    assert positions.shape == (6, 8)
    x, y = 2.0, 1.0  # the last place; frequencies are 1 and 1 / 100
    expected = [f(v * w) for v in (x, y) for f in (math.sin, math.cos) for w in (1, 0.01)]
    torch.testing.assert_close(positions[5], torch.tensor(expected))
    assert len(positions.unique(dim=0)) == 6


def test_std_ratio_is_one_for_isotropic_rows_and_zero_when_collapsed():
    generator = torch.Generator().manual_seed(0)
    assert std_ratio(torch.randn(4096, 64, generator=generator)).item() == pytest.approx(1, abs=0.02)
    assert std_ratio(torch.ones(16, 64)).item() == pytest.approx(0, abs=1e-5)
    assert not std_ratio(torch.randn(4, 8, requires_grad=True)).requires_grad


def test_patch_std_is_the_spread_within_images():
    h = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0))
    assert patch_std(h[:, :1].expand(-1, 64, -1)).item() == pytest.approx(0, abs=1e-5)
    assert patch_std(h).item() == pytest.approx(torch.stack([std_ratio(one) for one in h]).mean().item(), abs=1e-5)

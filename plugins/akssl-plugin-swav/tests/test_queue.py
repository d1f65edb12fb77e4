"""The queue: when it fills, when it is used, and whose codes come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from akssl_core import Now
from akssl_core.nn import sinkhorn


def after_step(method, now: Now) -> None:
    """What the engine does with slow state."""
    for module in method.modules():
        if module is not method and hasattr(module, "after_step"):
            module.after_step(now)


def fill(method, rows: Tensor) -> None:
    """Both queues full of the same rows."""
    for queue in method.queues:
        queue.rows.copy_(rows)
        queue.filled.fill_(len(rows))


def test_no_queue_leaves_no_state(make, batch) -> None:
    method = make(queue_size=0)
    assert not [name for name in method.state_dict() if "queue" in name]
    assert method.step(batch(), Now(99, 10, 100))["loss"].isfinite()


def test_codes_are_of_the_current_samples(make) -> None:
    """Queue rows all prefer prototype 0 and current rows prototype 1: the codes that come back prefer 1."""
    method = make(queue_size=6, prototypes=2, queue_from_epoch=0)
    zero, one = method.prototypes.weight.detach()
    fill(method, zero.expand(6, -1))
    codes = method.codes(0, one.expand(6, -1), Now(0, 10, 100))
    assert codes.shape == (6, 2)
    assert (codes[:, 1] > 0.99).all()


def test_a_full_queue_joins_the_assignment_with_scores_of_the_current_prototypes(make) -> None:
    method = make(queue_size=8, queue_from_epoch=0)
    rows = F.normalize(torch.randn(8, 16), dim=1)
    z = F.normalize(torch.randn(4, 16), dim=1)
    fill(method, rows)
    with torch.no_grad():
        method.prototypes.weight.copy_(F.normalize(torch.randn(5, 16), dim=1))
    codes = method.codes(1, z, Now(0, 10, 100))
    scores = torch.cat([z, rows]) @ method.prototypes.weight.T.detach()
    torch.testing.assert_close(codes, sinkhorn(scores, 0.05)[:4])
    assert not torch.allclose(codes, sinkhorn(scores[:4], 0.05), atol=1e-3)


def test_each_view_has_the_queue_of_its_own(make) -> None:
    method = make(queue_size=8, queue_from_epoch=0)
    z = F.normalize(torch.randn(4, 16), dim=1)
    fill(method, F.normalize(torch.randn(8, 16), dim=1))
    before = method.codes(0, z, Now(0, 10, 100))
    method.queues[1].rows.copy_(method.prototypes.weight.detach()[0])
    assert torch.equal(method.codes(0, z, Now(0, 10, 100)), before)
    assert not torch.allclose(method.codes(1, z, Now(0, 10, 100)), before, atol=1e-3)


def test_queue_fills_from_its_epoch_on_and_is_used_once_full(make, batch, monkeypatch) -> None:
    method = make(queue_size=12, queue_from_epoch=0.5)
    sizes: list[int] = []

    def counting(scores: Tensor, *args: float) -> Tensor:
        sizes.append(len(scores))
        return sinkhorn(scores, *args)

    monkeypatch.setattr("akssl_plugin_swav.sinkhorn", counting)
    drawn = method.queues[0].rows.clone()
    filled = []
    for step in range(9):
        now = Now(step, 10, 100)
        method.step(batch(size=6, seed=step), now)
        after_step(method, now)
        filled.append([int(queue.filled) for queue in method.queues])
        if now.epoch < 0.5:
            assert torch.equal(method.queues[0].rows, drawn)
    assert filled == [[0, 0]] * 5 + [[6, 6]] + [[12, 12]] * 3
    assert sizes == [6, 6] * 7 + [18, 18] * 2


def test_queue_holds_the_projections_of_its_view_only_after_the_step_and_without_gradient(make, batch) -> None:
    method = make(queue_size=6, queue_from_epoch=0)
    now, b = Now(0, 10, 100), batch(size=6)
    z = method.project(b.views)
    drawn = [queue.rows.clone() for queue in method.queues]
    method.step(b, now)
    assert all(torch.equal(queue.rows, old) for queue, old in zip(method.queues, drawn, strict=True))
    after_step(method, now)
    for view, queue in enumerate(method.queues):
        torch.testing.assert_close(queue.rows, z[view].detach())
        torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(6))
        assert not queue.rows.requires_grad


def test_micro_batches_of_one_step_all_enter_the_queue(make, batch) -> None:
    method = make(queue_size=8, queue_from_epoch=0)
    now = Now(0, 10, 100)
    z = [method.project(batch(size=4, seed=seed).views)[0] for seed in (1, 2)]
    for seed in (1, 2):
        method.step(batch(size=4, seed=seed), now)
    after_step(method, now)
    torch.testing.assert_close(method.queues[0].rows, torch.cat(z).detach())
    assert int(method.queues[0].filled) == 8


def test_evaluation_neither_uses_nor_fills_the_queue(make, batch) -> None:
    method = make(queue_size=6, queue_from_epoch=0)
    fill(method, F.normalize(torch.randn(6, 16), dim=1))
    rows = method.queues[0].rows.clone()
    now = Now(50, 10, 100)
    method.eval()
    method.step(batch(), now)
    for scores, codes in zip(method.loss.scores, method.loss.codes, strict=False):
        torch.testing.assert_close(codes, sinkhorn(scores, 0.05))
    after_step(method, now)
    assert torch.equal(method.queues[0].rows, rows)


def test_state_dict_brings_back_queue_and_prototypes(make, batch) -> None:
    now = Now(20, 10, 100)
    old = make(queue_size=12, queue_from_epoch=1)
    for seed in range(2):
        old.step(batch(size=6, seed=seed), now)
        after_step(old, now)
    state = {name: value.clone() for name, value in old.state_dict().items()}
    assert {f"queues.{i}.{part}" for i in range(2) for part in ("rows", "filled")} < state.keys()
    new = make(queue_size=12, queue_from_epoch=1)
    new.backbone.conv.reset_parameters()
    new.prototypes.weight.data.neg_()
    new.load_state_dict(state)
    for _ in range(2):
        a, b = (method.step(batch(size=6, seed=7), now) for method in (old, new))
        assert a["loss"].item() == b["loss"].item()
        for method in (old, new):
            after_step(method, now)
    assert torch.equal(new.queues[1].rows, old.queues[1].rows)


@pytest.mark.parametrize("size", [4, 6, 300])
def test_queue_and_batch_may_have_any_sizes(make, batch, size) -> None:
    method = make(queue_size=size, queue_from_epoch=0)
    for step in range(3):
        now = Now(step, 10, 100)
        assert method.step(batch(size=5, seed=step), now)["loss"].isfinite()
        after_step(method, now)
    assert int(method.queues[0].filled) == min(size, 15)

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from akssl_core.config.schema import Schema
from akssl_core.loss import Loss


class Probe(Loss):
    """Remembers how it was called."""

    name = "probe"

    def forward(self, a: Tensor, views: list[Tensor], *, index: Tensor, scale: float) -> Tensor:
        """A sum of products."""
        self.seen = (a, views, index, scale)
        return (a @ views[0].T).sum() * scale


@pytest.fixture
def loss():
    return Probe(Schema())


def test_loss_runs_in_float32_under_autocast(loss):
    a = torch.randn(4, 3).bfloat16().requires_grad_()
    views = [torch.randn(4, 3).bfloat16(), torch.randn(2, 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(a, views, index=torch.arange(4), scale=2.0)
        assert (a @ views[0].T).dtype == torch.bfloat16
    assert value.dtype == torch.float32
    seen, seen_views, index, scale = loss.seen
    assert {t.dtype for t in (seen, *seen_views)} == {torch.float32}
    assert index.dtype == torch.int64
    assert scale == 2.0
    torch.testing.assert_close(value, (a.float() @ views[0].float().T).sum() * 2)


def test_loss_finds_tensors_in_keywords_and_lists(loss):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(views=[torch.ones(1, 2)], a=torch.ones(1, 2).half(), index=torch.arange(1), scale=1.0)
    assert value == 2.0
    assert value.dtype == torch.float32


def test_loss_passes_gradients_back_in_the_type_of_the_input(loss):
    a = torch.randn(4, 3).bfloat16().requires_grad_()
    loss(a, [torch.ones(4, 3)], index=torch.arange(4), scale=1.0).backward()
    assert a.grad.dtype == torch.bfloat16
    assert torch.equal(a.grad, torch.full((4, 3), 4.0).bfloat16())


def test_loss_is_abstract():
    with pytest.raises(TypeError, match="forward"):
        Loss(Schema())
    assert Loss.kind == "loss"

"""MoCo v2's loss against equation 1 of arXiv 1911.05722."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import akssl_core


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Row by row, as the equation is written."""
    rows = []
    for own, query_row in zip(k, q, strict=True):
        scores = torch.stack([query_row @ own, *(query_row @ other for other in negatives)]) / temperature
        rows.append(-scores.log_softmax(0)[0])
    return torch.stack(rows).mean()


@pytest.mark.parametrize(("count", "expected"), [(4, 0.026595), (8, 0.052501)])
def test_loss_of_a_query_that_equals_its_key(count: int, expected: float) -> None:
    rows = torch.eye(count + 1)
    loss = akssl_core.build("loss", "infonce_queue", temperature=0.2)
    assert loss(rows[:1], rows[:1], rows[1:]).item() == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(math.log(1 + count * math.exp(-1 / 0.2)), abs=1e-5)


@pytest.mark.parametrize("count", [4, 9])
def test_loss_of_a_query_that_is_orthogonal_to_everything(count: int) -> None:
    rows = torch.eye(count + 2)
    loss = akssl_core.build("loss", "infonce_queue")
    assert loss(rows[:1], rows[1:2], rows[2:]).item() == pytest.approx(math.log(1 + count), abs=1e-5)


def test_loss_is_the_papers_over_rows_of_any_length() -> None:
    torch.manual_seed(0)
    q, k, negatives = torch.randn(5, 6), torch.randn(5, 6), torch.randn(7, 6)
    loss = akssl_core.build("loss", "infonce_queue", temperature=0.3)
    unit = [F.normalize(x, dim=1) for x in (q, k, negatives)]
    torch.testing.assert_close(loss(q, k, negatives), info_nce(*unit, 0.3))
    torch.testing.assert_close(loss(3 * q, 0.1 * k, 7 * negatives), loss(q, k, negatives))


def test_keys_of_the_same_batch_are_no_negatives() -> None:
    torch.manual_seed(0)
    q, k, negatives = torch.randn(4, 6), torch.randn(4, 6), torch.randn(7, 6)
    loss = akssl_core.build("loss", "infonce_queue")
    alone = [loss(q[i : i + 1], k[i : i + 1], negatives) for i in range(4)]
    torch.testing.assert_close(loss(q, k, negatives), torch.stack(alone).mean())


def test_gradient_of_the_loss_reaches_queries_alone() -> None:
    torch.manual_seed(0)
    q, k, negatives = (torch.randn(n, 6, requires_grad=True) for n in (4, 4, 7))
    akssl_core.build("loss", "infonce_queue")(q, k, negatives).backward()
    assert q.grad is not None
    assert k.grad is None
    assert negatives.grad is None


@pytest.mark.parametrize("opposite", [False, True], ids=["right", "wrong"])
def test_loss_is_finite_at_a_low_temperature(opposite: bool) -> None:
    q = torch.eye(6)[:2]
    loss = akssl_core.build("loss", "infonce_queue", temperature=0.01)
    value = loss(q, -q if opposite else q, torch.eye(6)[:2])
    assert value.item() == pytest.approx(200.0 if opposite else math.log(2), abs=1e-3)


def test_default_temperature_is_that_of_version_2() -> None:
    assert akssl_core.build("loss", "infonce_queue").config.temperature == 0.2


def test_loss_of_random_directions_is_about_log_of_the_queue() -> None:
    torch.manual_seed(0)
    loss = akssl_core.build("loss", "infonce_queue", temperature=0.2)
    value = loss(torch.randn(64, 128), torch.randn(64, 128), torch.randn(4096, 128))
    assert value.item() == pytest.approx(math.log(4097), abs=0.25)

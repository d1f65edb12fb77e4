"""DINO's loss against the formulas of arXiv 2104.14294."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import akssl_core
from akssl_core import ConfigError, Now
from akssl_core.nn import Center

NOW = Now(0, 10, 100)


def loss(
    student: list[Tensor], teacher: list[Tensor], center: Tensor | None = None, temperature: float = 0.04
) -> float:
    center = torch.zeros(student[0].shape[1]) if center is None else center
    return akssl_core.build("loss", "dino")(student, teacher, center, temperature).item()


def logits(views: int, rows: int = 3, outputs: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(views, rows, outputs, generator=generator) * 0.1)


@pytest.mark.parametrize("temperature", [0.01, 0.04, 5.0])
def test_loss_of_equal_logits_is_log_k(temperature: float) -> None:
    same = [torch.full((3, 4), 7.0)] * 2
    assert loss(same, same, temperature=temperature) == pytest.approx(math.log(4), abs=1e-5)


def test_loss_of_agreeing_one_hot_logits() -> None:
    one_hot = [torch.eye(4)[:1]] * 2
    assert loss(one_hot, one_hot) == pytest.approx(1.361907e-4, abs=1e-6)


@pytest.mark.parametrize("views", [2, 3, 6])
def test_loss_is_the_mean_cross_entropy_over_pairs_of_unlike_views(views: int) -> None:
    student, teacher, center = logits(views), logits(2, seed=1), torch.randn(5)
    terms = [
        F.cross_entropy(student[v] / 0.1, F.softmax((teacher[u] - center) / 0.07, 1))
        for u in range(2)
        for v in range(views)
        if u != v
    ]
    assert len(terms) == 2 * (views - 1)
    assert loss(student, teacher, center, 0.07) == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)


@pytest.mark.parametrize(("view", "terms"), [(0, 1), (1, 1), (2, 2), (4, 2)], ids=["first", "second", "local", "last"])
def test_a_global_view_is_in_one_term_and_a_local_view_in_two_of_2_v_minus_2(view: int, terms: int) -> None:
    """All predictions are uniform (cross-entropy log K) but one, which is sure of an output no target has."""
    student = [torch.zeros(1, 4) for _ in range(5)]
    student[view] = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    teacher = [torch.tensor([[0.0, 4.0, 0.0, 0.0]])] * 2
    wrong = 20 + math.log(1 + 3 * math.exp(-20))
    expected = ((8 - terms) * math.log(4) + terms * wrong) / 8
    assert loss(student, teacher) == pytest.approx(expected, rel=1e-6)


def test_no_view_is_compared_with_itself() -> None:
    """The second prediction is uniform, so the first target, which only it is compared with, does not matter."""
    student = [logits(1)[0], torch.zeros(3, 5)]
    first, second = logits(2, seed=1)
    assert loss(student, [first, second]) == pytest.approx(loss(student, [-first, second]), abs=1e-6)
    assert loss(student, [first, second]) != pytest.approx(loss(student, [first, -second]), abs=1e-3)


def test_a_constant_on_all_logits_of_a_row_changes_nothing() -> None:
    student, teacher = logits(3), logits(2, seed=1)
    moved = [x + torch.tensor([[1.0], [-2.0], [0.5]]) for x in student]
    assert loss(moved, teacher) == pytest.approx(loss(student, teacher), abs=1e-5)
    moved = [x + torch.tensor([[1.0], [-2.0], [0.5]]) for x in teacher]
    assert loss(student, moved) == pytest.approx(loss(student, teacher), abs=1e-5)


def test_the_centre_absorbs_a_vector_on_all_targets() -> None:
    student, teacher, bias = logits(2), logits(2, seed=1), torch.tensor([3.0, 0.0, 0.0, -1.0, 0.0])
    moved = [x + bias for x in teacher]
    assert loss(student, moved, bias) == pytest.approx(loss(student, teacher), abs=1e-4)
    plain, shifted = Center(5), Center(5)
    for _ in range(200):
        for center, rows in ((plain, teacher), (shifted, moved)):
            center.push(torch.cat(rows))
            center.after_step(NOW)
    torch.testing.assert_close(shifted.value, plain.value + bias, rtol=0, atol=1e-5)
    assert loss(student, moved, shifted.value) == pytest.approx(loss(student, teacher, plain.value), abs=1e-4)


def test_one_update_of_the_centre_takes_a_tenth_of_the_mean() -> None:
    center, mean = Center(3, momentum=0.9), torch.tensor([1.0, -2.0, 4.0])
    center.push(mean + torch.tensor([[1.0], [-1.0]]))
    assert torch.equal(center.value, torch.zeros(3)), "it moves after the step"
    center.after_step(NOW)
    torch.testing.assert_close(center.value, 0.1 * mean)


def test_only_the_student_receives_a_gradient() -> None:
    student = [x.requires_grad_() for x in logits(3)]
    teacher = [x.requires_grad_() for x in logits(2, seed=1)]
    center = torch.zeros(5, requires_grad=True)
    akssl_core.build("loss", "dino")(student, teacher, center, 0.04).backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in student)
    assert [x.grad for x in (*teacher, center)] == [None] * 3


def test_loss_is_computed_in_float32_under_autocast() -> None:
    student, teacher = ([x.bfloat16() for x in logits(n)] for n in (3, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = akssl_core.build("loss", "dino")(student, teacher, torch.zeros(5), 0.04)
    assert value.dtype == torch.float32
    exact = loss([x.float() for x in student], [x.float() for x in teacher])
    assert value.item() == pytest.approx(exact, abs=1e-6)


def test_student_temperature_is_a_setting_of_the_loss() -> None:
    student, teacher, center = logits(2), logits(2, seed=1), torch.zeros(5)
    colder = akssl_core.build("loss", "dino", student_temperature=0.05)(student, teacher, center, 0.04)
    halved = akssl_core.build("loss", "dino")([2 * x for x in student], teacher, center, 0.04)
    torch.testing.assert_close(colder, halved)
    with pytest.raises(ConfigError, match="student_temperature"):
        akssl_core.build("loss", "dino", student_temperature=0)

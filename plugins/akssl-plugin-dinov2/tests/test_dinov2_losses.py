"""DINOv2's losses against the formulas of arXiv 2304.07193 and 2508.10104."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import akssl_core
from akssl_core import ConfigError


def value(name: str, *args: Any, **settings: Any) -> float:
    found: Tensor = akssl_core.build("loss", name, **settings)(*args)
    return found.item()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- images ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("local", [8, 0])
def test_even_outputs_cost_log_k_with_and_without_local_crops(local: int) -> None:
    even = torch.zeros(3, 4)
    assert value("dinov2", [even] * (2 + local), [even.softmax(1)] * 2) == pytest.approx(1.386294, abs=1e-6)


@pytest.mark.parametrize(("tau", "met", "missed"), [(0.04, 1.361909e-4, 10.000136), (0.07, 1.549367e-4, 10.000130)])
def test_a_sure_student_under_a_sharp_teacher(tau: float, met: float, missed: float) -> None:
    one = torch.eye(4)[:1].expand(2, -1)
    targets = [(one / tau).softmax(1)] * 2
    assert value("dinov2", [one, one], targets) == pytest.approx(met, abs=1e-7)
    assert value("dinov2", [one.roll(1, 1)] * 2, targets) == pytest.approx(missed, abs=1e-5)


def test_each_crop_meets_the_other_crops_target() -> None:
    """The first target is for the second crop: what the first crop says meets the second target alone."""
    first, second = normal(3, 5), normal(3, 5, seed=1)
    targets = [normal(3, 5, seed=2).softmax(1), normal(3, 5, seed=3).softmax(1)]
    crossed = [F.cross_entropy(s / 0.1, t).item() for s, t in ((first, targets[1]), (second, targets[0]))]
    assert value("dinov2", [first, second], targets) == pytest.approx(sum(crossed) / 2, rel=1e-5)


# -- patches --------------------------------------------------------------------------------------
def test_patches_are_a_mean_in_each_crop_and_then_over_all_crops() -> None:
    """Costs 1 and 3 in one crop, 5 in another, none in two more: 1.75, where a mean over patches would be 3."""
    sure = torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64)
    student = (0.1 * torch.stack([sure, (1 - sure.exp()).log()], 1)).float()
    targets, weights = torch.tensor([[1.0, 0.0]]).expand(3, -1), torch.tensor([0.5, 0.5, 1.0])
    assert value("dinov2_patches", student, targets, weights, 4) == pytest.approx(1.75, abs=1e-5)


def test_even_patches_cost_log_k_times_the_share_of_crops_with_a_mask() -> None:
    even = torch.zeros(2, 4)
    assert value("dinov2_patches", even, even.softmax(1), torch.ones(2), 4) == pytest.approx(0.693147, abs=1e-6)


def test_no_hidden_patch_costs_nothing_and_has_a_gradient() -> None:
    student = torch.zeros(0, 4, requires_grad=True)
    loss = akssl_core.build("loss", "dinov2_patches")(student, torch.zeros(0, 4), torch.zeros(0), 4)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


@pytest.mark.parametrize("name", ["dinov2", "dinov2_patches"])
def test_a_constant_on_a_row_changes_nothing_and_targets_get_no_gradient(name: str) -> None:
    def call(student: Tensor, targets: Tensor) -> Tensor:
        rows = ([student, student], [targets, targets]) if name == "dinov2" else (student, targets, torch.ones(3), 2)
        loss: Tensor = akssl_core.build("loss", name)(*rows)
        return loss

    student, targets = normal(3, 5).requires_grad_(), normal(3, 5, seed=1).softmax(1).requires_grad_()
    loss = call(student, targets)
    assert call(student + torch.tensor([[1.0], [-2.0], [0.5]]), targets).item() == pytest.approx(loss.item(), abs=1e-5)
    loss.backward()
    assert targets.grad is None
    assert student.grad is not None


# -- KoLeo ----------------------------------------------------------------------------------------
def circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.eye(2), -0.346574),
        (torch.eye(4), -0.346574),
        (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), -0.693147),
        (circle(0, 120, 240), -0.549306),
        (circle(0, 60, 120, 180, 240, 300), 0.0),
        (torch.ones(2, 2), 17.5393),
        (torch.ones(2, 4), 17.3221),
        (torch.ones(3, 192), 15.7222),
        (torch.ones(3, 256), 15.5875),
    ],
    ids=["two", "four", "opposite", "120", "60", "same 2", "same 4", "same 192", "same 256"],
)
def test_koleo_of_known_rows(rows: Tensor, expected: float) -> None:
    assert value("koleo", rows) == pytest.approx(expected, abs=1e-5 if expected < 1 else 1e-4)


def test_koleo_does_not_see_lengths() -> None:
    rows = normal(16, 8)
    lengths = torch.rand(16, 1, generator=torch.Generator().manual_seed(1)) * 10 + 0.1
    assert value("koleo", rows * lengths) == pytest.approx(value("koleo", rows), abs=1e-5)


@pytest.mark.parametrize(("count", "width", "expected"), [(128, 192, -0.245), (256, 384, -0.271)])
def test_koleo_of_gaussian_rows(count: int, width: int, expected: float) -> None:
    assert value("koleo", normal(count, width)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("count", "floor"), [(64, -0.354448), (128, -0.350495)])
def test_koleo_has_its_floor_at_a_simplex(count: int, floor: float) -> None:
    simplex = torch.eye(count) - 1 / count
    assert value("koleo", simplex) == pytest.approx(floor, abs=1e-5)
    assert value("koleo", normal(count, 256)) > floor


def test_koleo_pushes_both_of_a_pair_apart_along_the_circle() -> None:
    """Half the cotangent of half the angle: 0.915244 for one radian."""
    theta = 1.0
    rows = circle(0, theta * 180 / math.pi).requires_grad_()
    akssl_core.build("loss", "koleo")(rows).backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad.norm(dim=1), torch.full((2,), 0.5 / math.tan(theta / 2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((rows.grad * rows).sum(1), torch.zeros(2), rtol=0, atol=1e-6)
    moved = F.normalize(rows - 0.1 * rows.grad, dim=1)
    assert (moved[0] @ moved[1]).item() < math.cos(theta)


def test_koleo_looks_for_neighbours_within_groups() -> None:
    rows = normal(8, 4)
    halves = [value("koleo", half) for half in rows.split(4)]
    assert value("koleo", rows, group=4) == pytest.approx(sum(halves) / 2, abs=1e-5)
    assert value("koleo", rows, group=8) == pytest.approx(value("koleo", rows), abs=1e-6)
    assert value("koleo", rows[:5], group=4) == pytest.approx(halves[0], abs=1e-5), "one image alone has no neighbour"
    assert value("koleo", rows[:1]) == 0
    with pytest.raises(ConfigError, match="group"):
        akssl_core.build("loss", "koleo", group=1)


def test_koleo_is_computed_in_float32_under_autocast() -> None:
    rows = F.normalize(normal(8, 4) * 0.01 + 1, dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = akssl_core.build("loss", "koleo")(rows)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(value("koleo", rows), abs=1e-6)


# -- Gram -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("patches", [2, 4, 16])
def test_gram_of_orthogonal_patches_beside_equal_ones(patches: int) -> None:
    expected = 1 - 1 / patches
    assert value("gram", torch.eye(patches)[None], torch.ones(1, patches, 3)) == pytest.approx(expected, abs=1e-6)


def test_gram_of_opposite_patches_beside_equal_ones() -> None:
    x = normal(1, 1, 6)
    assert value("gram", torch.cat([x, -x], 1), torch.cat([x, x], 1)) == pytest.approx(2.0, abs=1e-6)


def test_gram_sees_neither_lengths_nor_rotations_nor_the_order_of_patches() -> None:
    x, y = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    turn = torch.linalg.qr(normal(4, 4, seed=2)).Q
    loss = value("gram", x, y)
    assert loss > 0.01
    assert value("gram", x, x) == 0
    assert value("gram", (3 * x) @ turn, 0.1 * y) == pytest.approx(loss, rel=1e-4)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert value("gram", x[:, order], y[:, order]) == pytest.approx(loss, rel=1e-5)


def test_gram_has_a_gradient_for_the_student_alone() -> None:
    x, y = normal(2, 3, 4).requires_grad_(), normal(2, 3, 4, seed=1).requires_grad_()
    akssl_core.build("loss", "gram")(x, y).backward()
    assert x.grad is not None
    assert y.grad is None

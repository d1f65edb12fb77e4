from __future__ import annotations

import pytest
import torch

from akssl_core import Batch, Views
from akssl_core.draws import Draws, fold

COUNT = 100_000


def draws(count: int = COUNT, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws.of(seed, epoch, torch.arange(count))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


# -- uniformity: bounds are about four standard errors of 1e5 draws -------------------------------
def test_numbers_are_uniform_over_images():
    numbers = draws().uniform("crop", 1)[:, 0]
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert float(numbers.mean()) == pytest.approx(1 / 2, abs=0.0037)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.001)


def test_numbers_are_uniform_within_one_image():
    numbers = draws(1).uniform("crop", COUNT)[0]
    assert float(numbers.mean()) == pytest.approx(1 / 2, abs=0.0037)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.001)


def test_every_hundredth_is_equally_likely():
    counts = torch.histc(draws().uniform("jitter", 1), bins=100, min=0, max=1)
    chi_square = float(((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum())
    assert 50 < chi_square < 160  # 99 degrees of freedom: mean 99, standard deviation 14


def test_neighbours_are_uncorrelated():
    numbers = draws().uniform("crop", 2)
    first, second = numbers.unbind(1)
    limit = 4 / COUNT**0.5
    assert abs(correlation(first, second)) < limit
    assert abs(correlation(first[:-1], first[1:])) < limit
    assert abs(correlation(first, draws().uniform("blur", 1)[:, 0])) < limit
    assert abs(correlation(first, draws().view(0).uniform("crop", 1)[:, 0])) < limit
    assert abs(correlation(draws().view(0).uniform("crop", 1)[:, 0], draws().view(1).uniform("crop", 1)[:, 0])) < limit
    assert abs(correlation(first, draws(seed=1).uniform("crop", 1)[:, 0])) < limit
    assert abs(correlation(first, draws(epoch=1).uniform("crop", 1)[:, 0])) < limit


# -- a draw is a function of (seed, epoch, index, view, operation, number) ------------------------
def test_an_image_draws_the_same_in_any_batch():
    index = torch.tensor([7, 3, 11, 0, 100_000])
    whole = Draws.of(5, 2, index).view(1).uniform("crop", 4)
    backwards = Draws.of(5, 2, index.flip(0)).view(1).uniform("crop", 4)
    assert torch.equal(whole, backwards.flip(0))
    for row, i in zip(whole, index, strict=True):
        assert torch.equal(row, Draws.of(5, 2, i[None]).view(1).uniform("crop", 4)[0])


def test_more_numbers_leave_the_first_ones_alone():
    assert torch.equal(draws(9).uniform("crop", 3), draws(9).uniform("crop", 7)[:, :3])


@pytest.mark.parametrize(
    "other",
    [
        draws(64, seed=1).uniform("crop", 8),
        draws(64, epoch=1).uniform("crop", 8),
        draws(64, seed=1, epoch=-1).uniform("crop", 8),
        draws(64).view(0).uniform("crop", 8),
        draws(64).view(1).uniform("crop", 8),
        draws(64).uniform("blur", 8),
        Draws.of(0, 0, torch.arange(64) + 64).uniform("crop", 8),
    ],
    ids=["seed", "epoch", "both", "view 0", "view 1", "operation", "index"],
)
def test_anything_else_draws_other_numbers(other):
    assert not torch.isin(draws(64).uniform("crop", 8), other).any()


def test_seeds_are_distinct_and_valid():
    seeds = draws().seeds("per_image")
    assert seeds.min() >= 0
    assert len(seeds.unique()) == COUNT
    assert not torch.isin(seeds, draws().view(1).seeds("per_image")).any()
    torch.Generator().manual_seed(int(seeds.max()))


def test_fold_depends_on_order_and_every_part():
    assert len({fold(0, 1), fold(1, 0), fold(0), fold(0, 0), fold(0, 1, 0), fold(-1, 1)}) == 6


# -- inside a step --------------------------------------------------------------------------------
def test_normal_numbers_are_normal():
    numbers = Draws.of_step(0, 0, torch.arange(COUNT)).normal("noise", 2)
    assert float(numbers.mean()) == pytest.approx(0, abs=4 * (2 * COUNT) ** -0.5)
    assert float(numbers.var()) == pytest.approx(1, abs=4 * COUNT**-0.5)
    assert float((numbers.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.004)
    assert float((numbers.abs() > 3).float().mean()) == pytest.approx(0.0027, abs=0.0005)
    assert abs(correlation(*numbers.unbind(1))) < 4 * COUNT**-0.5
    assert bool(numbers.isfinite().all())


def test_a_step_draws_by_seed_step_image_and_name_alone():
    whole = Batch(Views(), torch.arange(6), seed=3, step=5)
    numbers = whole.draws.uniform("mask", 4)
    parts = [whole.part(0, 2).draws.uniform("mask", 4), whole.part(2, 6).draws.uniform("mask", 4)]
    assert torch.equal(torch.cat(parts), numbers)
    assert torch.equal(whole.part(4, 6).shared_draws.uniform("m", 9), whole.part(0, 1).shared_draws.uniform("m", 9))
    others = [
        Batch(Views(), torch.arange(6), seed=4, step=5).draws.uniform("mask", 4),
        Batch(Views(), torch.arange(6), seed=3, step=6).draws.uniform("mask", 4),
        Draws.of(3, 5, torch.arange(6)).uniform("mask", 4),
        whole.draws.uniform("other", 4),
        whole.shared_draws.uniform("mask", 4).expand(6, 4),
    ]
    assert not any((numbers == other).any() for other in others)

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from akssl_core import Now, Schedule
from akssl_core.metrics.health import (
    TooFewSamples,
    alignment,
    alpha_req,
    lidar,
    of_features,
    of_views,
    told_apart,
    uniformity,
)
from akssl_core.nn import EMA, entropy


def white(count, dim, seed=0):
    """Rows (count, dim) whose mean is exactly 0 and whose covariance is exactly the identity."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(rows - rows.mean(0))
    return basis * math.sqrt(count)


# -- alpha-ReQ ------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_alpha_req_is_the_exponent_of_a_power_law(alpha):
    ranks = torch.arange(1, 33, dtype=torch.float64)
    features = white(400, 32) * ranks ** (-alpha / 2)
    assert alpha_req(features) == pytest.approx(alpha, abs=1e-9)
    assert alpha_req(7 * features + 3) == pytest.approx(alpha, abs=1e-9), "neither scale nor mean count"


def test_alpha_req_leaves_the_leading_directions_out():
    scale = torch.arange(1, 33, dtype=torch.float64) ** -0.5
    scale[0] *= 100
    assert alpha_req(white(400, 32) * scale) == pytest.approx(1.0, abs=1e-9)


def test_alpha_req_of_more_features_than_images_uses_the_ranks_that_are_known():
    values = torch.arange(1, 101, dtype=torch.float64) ** -1.0
    features = torch.zeros(120, 300, dtype=torch.float64)
    features[:, :100] = white(120, 100) * values.sqrt()
    assert alpha_req(features) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("count", "dim"), [(95, 64), (400, 11)])
def test_alpha_req_says_when_it_cannot_be_known(count, dim):
    with pytest.raises(TooFewSamples, match=f"takes 96 images and 12 features; these are {count} and {dim}"):
        alpha_req(torch.randn(count, dim))


def test_alpha_req_says_when_features_are_flat():
    with pytest.raises(TooFewSamples, match="directions in use"):
        alpha_req(torch.randn(200, 4) @ torch.randn(4, 64))


def test_features_that_are_not_finite_have_numbers_that_are_none():
    features = white(200, 64)
    features[3, 5] = math.inf
    numbers, missing = of_features(features)
    assert set(numbers) == {"alpha_req", "uniformity"}
    assert all(math.isnan(number) for number in numbers.values())
    assert not missing


# -- LiDAR ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [1, 5, 16])
def test_lidar_counts_the_directions_that_tell_images_apart(rank):
    means = white(200, 16)
    means[:, rank:] = 0
    noise = white(400, 16, seed=1).reshape(200, 2, 16)
    views = means[:, None] + 0.05 * (noise - noise.mean(1, keepdim=True))
    assert lidar(views) == pytest.approx(rank, rel=0.05)


def test_lidar_discounts_directions_in_which_views_differ():
    """Two directions spread the images alike; in one of them the views differ ten times as much."""
    means = white(200, 2)
    offsets = torch.tensor([[0.1, 1.0]], dtype=torch.float64) * white(200, 2, seed=1).sign()
    views = torch.stack([means + offsets, means - offsets], 1)
    ratio = (1 / (0.01 + 1e-4 / 2)) / (1 / (1 + 1e-4 / 2))
    share = torch.tensor([ratio, 1.0]) / (1 + ratio)
    assert lidar(views) == pytest.approx(float(torch.special.entr(share).sum().exp()), rel=0.02)


@pytest.mark.parametrize("shape", [(500, 1, 8), (8, 9, 8), (15, 2, 8)])
def test_lidar_says_when_it_cannot_be_known(shape):
    with pytest.raises(TooFewSamples, match=f"these are {shape[1]} of {shape[0]}"):
        lidar(torch.randn(shape))


# -- alignment and uniformity ---------------------------------------------------------------------
@pytest.mark.parametrize(("second", "expected"), [(1.0, 0.0), (-1.0, 4.0), (0.0, 2.0)])
def test_alignment_of_views_that_agree_are_opposite_and_are_unrelated(second, expected):
    x = torch.eye(64)[:32]
    other = second * x if second else torch.eye(64)[32:]
    assert alignment(torch.stack([x, 3 * other], 1)) == pytest.approx(expected, abs=1e-6)


def test_alignment_averages_over_all_pairs_of_views():
    x = torch.eye(64)[:32]
    assert alignment(torch.stack([x, x, -x], 1)) == pytest.approx((0 + 4 + 4) / 3, abs=1e-6)


def test_uniformity_of_known_sets():
    assert uniformity(torch.ones(40, 8)) == pytest.approx(0.0, abs=1e-9)
    assert uniformity(5 * torch.eye(64)) == pytest.approx(-4.0, abs=1e-9), "all pairs at a squared distance of 2"
    pair = torch.tensor([[1.0, 0.0]] * 20 + [[-1.0, 0.0]] * 20)
    expected = math.log((2 * 190 + 400 * math.exp(-8)) / 780)
    assert uniformity(pair) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("function", [alignment, uniformity])
def test_means_over_few_images_are_not_given(function):
    few = torch.randn(31, 2, 8) if function is alignment else torch.randn(31, 8)
    with pytest.raises(TooFewSamples, match="takes"):
        function(few)


def test_what_cannot_be_known_is_listed_with_its_reason():
    health = of_features(torch.randn(40, 64))
    assert set(health.numbers) == {"uniformity"}
    assert "takes 96 images" in health.missing["alpha_req"]
    assert set(of_views(torch.randn(64, 2, 8)).numbers) == {"lidar", "alignment"}


# -- entropy and the distance of a moving average ---------------------------------------------------
def test_entropy_is_log_k_where_even_and_zero_where_certain():
    assert float(entropy(torch.full((5, 16), 1 / 16))) == pytest.approx(math.log(16))
    assert float(entropy(torch.eye(4))) == 0.0
    assert float(entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))) == pytest.approx(math.log(2) / 2)


def test_distance_of_a_moving_average():
    fast = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        fast.weight.copy_(torch.tensor([[1.0, 0.0]]))
    slow = EMA(Schedule(start=0.75), layer=fast)
    assert float(slow.distance()) == 0.0
    with torch.no_grad():
        fast.weight.copy_(torch.tensor([[0.0, 2.0]]))
    assert float(slow.distance()) == pytest.approx(math.sqrt(5) / 2)
    slow.after_step(Now(0, 1, 1))
    assert float(slow.distance()) == pytest.approx(0.75 * math.sqrt(5) / 2)


# -- told apart -----------------------------------------------------------------------------------
def test_images_that_are_told_apart_have_1_and_those_that_are_alike_the_least():
    rows = torch.eye(40)
    assert told_apart(torch.stack([rows, rows], 1)) == 1
    alike = torch.ones(40, 2, 8)  # the worst rank of all: 40
    assert told_apart(alike) == pytest.approx(1 - 40 * math.log(40) / math.lgamma(41))
    nearly = torch.stack([rows, rows + 0.9 * rows.roll(1, 0)], 1)
    assert told_apart(nearly) == 1
    second = torch.stack([rows, rows + 1.1 * rows.roll(1, 0)], 1)  # the view before is nearer: rank 2
    assert told_apart(second) == pytest.approx(1 - 40 * math.log(2) / math.lgamma(41))


def test_chance_tells_nothing_apart_and_length_has_no_say():
    draw = torch.Generator().manual_seed(0)
    views = torch.randn(2000, 2, 16, generator=draw)
    assert abs(told_apart(views)) < 0.01
    images = torch.randn(300, 1, 16, generator=draw)
    values = [told_apart(images + share * torch.randn(300, 2, 16, generator=draw)) for share in (0.1, 0.5, 1.0)]
    assert values == sorted(values, reverse=True)
    assert told_apart(views * torch.rand(2000, 2, 1, generator=draw)) == pytest.approx(told_apart(views), abs=1e-5)


@pytest.mark.parametrize("shape", [(31, 2, 8), (40, 1, 8)])
def test_telling_apart_takes_enough_views(shape):
    with pytest.raises(TooFewSamples, match="takes 2 views of 32"):
        told_apart(torch.zeros(shape))

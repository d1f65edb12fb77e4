"""What the numbers of an evaluation mean: shares of the labels, intervals, the answer, and the probe by SGD."""

from __future__ import annotations

import math

import pytest
import torch

import akssl_core
from akssl_core.evaluation.result import Comparison, Score, sentence
from akssl_core.evaluation.split import stratified
from akssl_core.metrics.interval import interval, student
from akssl_core.metrics.linear import linear_guesses, linear_guesses_sgd


# -- labels ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_label_fractions_are_stratified_and_nested(seed):
    labels = torch.tensor([0] * 50 + [3] * 30 + [9] * 20 + [11] * 2)[torch.randperm(102)]
    part, more = stratified(labels, 0.1, seed), stratified(labels, 0.5, seed)
    assert {k: int((labels[part] == k).sum()) for k in (0, 3, 9, 11)} == {0: 5, 3: 3, 9: 2, 11: 1}
    assert {k: int((labels[more] == k).sum()) for k in (0, 3, 9, 11)} == {0: 25, 3: 15, 9: 10, 11: 1}
    assert set(part.tolist()) <= set(more.tolist())
    assert torch.equal(part, part.unique())
    assert torch.equal(stratified(labels, 1.0, seed), torch.arange(102))
    assert not torch.equal(part, stratified(labels, 0.1, seed + 1))


# -- intervals and the answer ---------------------------------------------------------------------
def test_an_interval_is_what_a_hand_computes():
    values = 100 * torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.float64)
    # Draws 50, 25, 75: s = 25. Images 100, 66.7, 33.3, 0 and the added -100, 200: mean 50, v = sum of squares / 5.
    of_draws = 4.3027 * 25 / math.sqrt(3)
    of_images = 1.959964 * math.sqrt((2 * 150**2 + 2 * 50**2 + 2 * (50 / 3) ** 2) / 5 / 6)
    half = math.hypot(of_draws, of_images)
    found = interval(values, least=-100, most=200)
    assert (found.mean, found.low, found.high) == pytest.approx((50, max(50 - half, -100), min(50 + half, 200)))
    assert found.low > -100, "the hand has computed it"
    cut = interval(values, least=0, most=100)
    assert (cut.mean, cut.low, cut.high) == (50, 0, 100)
    one = interval(values[:1], least=0, most=100)
    assert one.high - one.mean == pytest.approx(1.959964 * math.sqrt(6 * 50**2 / 5 / 6))
    right = interval(torch.full((1, 98), 100.0, dtype=torch.float64), least=0, most=100)
    assert right.high == 100
    assert 97 < right.low < 99, "all right is not certain to stay so"


def test_students_quantiles():
    assert [student(n) for n in (1, 4, 30)] == [12.7062, 2.7764, 2.0423]
    assert student(40) == pytest.approx(2.0211, abs=1e-4)
    assert student(120) == pytest.approx(1.9799, abs=1e-4)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        values = 100 * (torch.rand(1, 200, generator=generator, dtype=torch.float64) < 0.8).double()
        found = interval(values, least=0, most=100)
        hits += found.low <= 80 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(
    ("random", "pixels", "word"),
    [
        ((1.0, 3.0), (0.5, 2.0), "YES WITH"),
        ((1.0, 3.0), (-0.5, 2.0), "PARTLY (BETTER THAN UNTRAINED, NOT SURELY BETTER THAN RAW PIXELS)"),
        ((1.0, 3.0), (-2.5, -0.5), "PARTLY (BETTER THAN UNTRAINED, WORSE THAN RAW PIXELS)"),
        ((-1.0, 3.0), (0.5, 2.0), "CANNOT BE TOLD"),
        ((-3.0, -1.0), (0.5, 2.0), "NO WITH"),
    ],
)
def test_the_answer_follows_from_the_intervals(random, pixels, word):
    scores = [Score("trained", 0.1, 9, 20, 61.25, 60.0, 62.5, (61.25,))]
    comparisons = [Comparison("random init", 0.1, 20, 2.0, *random), Comparison("raw pixels", 0.1, 20, 1.0, *pixels)]
    text = sentence(scores, comparisons, 20)
    assert text.upper().startswith(f"DID IT HELP? {word}")
    assert "10 % of the labels" in text
    assert f"61.2 % is 2.0 points above random init [{random[0]:+.1f}, {random[1]:+.1f}]" in text
    assert text.count("?") == 1


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.00007, 0.0149, "Yes with 100 % of the labels: 6.8 % is 0.0075 points above random init [+0.0001, +0.0149]"),
        (-0.02, 0.04, "Cannot be told with 100 % of the labels: 6.8 % is 0.01 points above random init [-0.02, +0.04]"),
        (-2e-4, 1e-5, "Cannot be told with 100 % of the labels: 6.8 % is 0.00 points below random init [-0.00, +0.00]"),
        (0.0, 0.2, "Cannot be told with 100 % of the labels: 6.8 % is 0.1 points above random init [+0.0, +0.2]"),
    ],
)
def test_an_answer_never_hangs_on_a_bound_that_is_shown_as_zero(low, high, said):
    scores = [Score("trained", 1.0, 9, None, 6.85, 6.8, 6.9, (6.85,))]
    found = sentence(scores, [Comparison("random init", 1.0, None, (low + high) / 2, low, high)], None)
    assert found == f"Did it help? {said}."


def test_comparisons_are_paired(finished):
    """The same weights as the run's own differ by nothing at all, whatever each one's interval."""
    found = akssl_core.evaluate(finished, labels=0.3, seeds=4, weights=finished / "backbone.safetensors")
    same = next(one for one in found.comparisons if one.against == "given weights")
    assert same.difference == 0
    score = next(one for one in found.scores if one.system == "trained" and one.k == found.k)
    assert len(set(score.draws)) > 1


# -- the probe by SGD -----------------------------------------------------------------------------
def test_sgd_and_lbfgs_agree_where_classes_are_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 4 + 2
    centres = 3 * torch.randn(8, 16, generator=generator)
    features = 5 + centres[labels] + torch.randn(600, 16, generator=generator)
    features[:, 3] = 7.0  # constant channels count for nothing
    bank, queries = (features[:400], labels[:400]), (features[400:], labels[400:])
    exact, *_ = linear_guesses(*bank, queries[0])
    found, rate, validation = linear_guesses_sgd(*bank, queries[0])
    assert (found == queries[1]).double().mean() > 0.95
    assert (found == exact).double().mean() > 0.97
    assert validation > 90
    assert rate in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    shuffled, *_ = linear_guesses_sgd(bank[0], bank[1][torch.randperm(400, generator=generator)], queries[0])
    assert (shuffled == queries[1]).double().mean() < 0.5


def test_many_numbers_are_left_to_sgd(finished, monkeypatch):
    sizes = []

    def watched(bank, *rest, **more):
        sizes.append(bank.numel())
        return linear_guesses_sgd(bank, *rest, **more)

    monkeypatch.setattr("akssl_core.evaluation.protocols.linear_guesses_sgd", watched)
    monkeypatch.setattr("akssl_core.evaluation.protocols.LARGE", 60 * 8)
    akssl_core.evaluate(finished, "linear")
    assert sizes == [60 * 3 * 12 * 12], "raw pixels alone are more than allowed"


def test_the_solver_is_taken(finished):
    for solver in ("lbfgs", "sgd"):
        assert 0 <= akssl_core.evaluate(finished, "linear", solver=solver).accuracy <= 100

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from akssl_core.errors import DataError
from akssl_core.metrics.linear import linear_guesses

LINEAR = import_module("akssl_core.metrics.linear")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DIM = 8
MIXING = drawn(DIM, DIM, seed=100) * torch.logspace(0, -1, DIM)
CENTRES = drawn(4, DIM, seed=101)


def clusters(count, *, seed, distance=0.2):
    """Features of classes around fixed centres, with a covariance that is the same for all and far from round."""
    labels = torch.arange(count) % len(CENTRES)
    return drawn(count, DIM, seed=seed) @ MIXING + distance * CENTRES[labels], labels


class Score(NamedTuple):
    accuracy: float
    l2: float
    validation_accuracy: float


def linear_probe(bank, bank_labels, queries, query_labels, **more):
    """The accuracy on the queries, in percent, the penalty and the accuracy that it was chosen by."""
    guesses, *chosen = linear_guesses(bank, bank_labels, queries, **more)
    return Score(100 * (guesses == query_labels).double().mean().item(), *chosen)


@pytest.fixture
def hard():
    """Bank and queries of four classes that overlap."""
    return (*clusters(300, seed=1), *clusters(200, seed=2))


# -- accuracy -------------------------------------------------------------------------------------
def test_separable_classes_are_all_right():
    assert linear_probe(*clusters(80, seed=1, distance=20), *clusters(60, seed=2, distance=20)).accuracy == 100.0


def test_overlapping_classes_reach_the_accuracy_of_the_best_rule():
    """For Gaussians of one covariance the best rule is linear, and known."""
    bank, bank_labels = clusters(4000, seed=1)
    queries, query_labels = clusters(2000, seed=2)
    whitened = torch.linalg.solve(MIXING, torch.cat([queries, 0.2 * CENTRES]), left=False)
    best = torch.cdist(whitened[:-4], whitened[-4:]).argmin(1)
    expected = 100 * (best == query_labels).float().mean().item()
    assert 80 < expected < 90
    assert linear_probe(bank, bank_labels, queries, query_labels).accuracy == pytest.approx(expected, abs=1.5)


def test_random_labels_give_chance():
    bank_labels, query_labels = torch.arange(1000) % 5, torch.arange(2000) % 5
    found = linear_probe(drawn(1000, 10), bank_labels, drawn(2000, 10, seed=1), query_labels)
    assert found.accuracy == pytest.approx(20, abs=3.5)


def test_collapsed_features_give_the_share_of_the_most_frequent_class():
    """Rounding errors of equal features are not blown up to features of their own."""
    bank_labels, query_labels = torch.tensor([0] * 60 + [1] * 40), torch.arange(100) % 2
    rounding = 1e-8 * (bank_labels * 2 - 1)[:, None]
    found = linear_probe((0.37 + rounding.double()).expand(100, 6), bank_labels, torch.ones(100, 6), query_labels)
    assert found == Score(50.0, LINEAR.PENALTIES[0], 60.0)


def test_the_bias_is_free_of_the_penalty(monkeypatch):
    """Weights that are held at zero leave the share of each class."""
    monkeypatch.setattr(LINEAR, "PENALTIES", (1e9,))
    labels = torch.tensor([3] * 90 + [7] * 10)
    assert linear_probe(drawn(100, 4), labels, drawn(50, 4, seed=1), torch.full((50,), 3)).accuracy == 100.0


def test_labels_may_be_any_numbers(hard):
    bank, bank_labels, queries, query_labels = hard
    names = torch.tensor([10**9, 5, 17, 0])
    assert linear_probe(bank, names[bank_labels], queries, names[query_labels]) == linear_probe(*hard)


def test_a_label_that_the_bank_does_not_have_is_wrong(hard):
    bank, bank_labels, queries, query_labels = hard
    rare = query_labels.clone()
    rare[:50] = 9
    kept = linear_probe(bank, bank_labels, queries[50:], query_labels[50:]).accuracy
    assert linear_probe(bank, bank_labels, queries, rare).accuracy == pytest.approx(kept * 150 / 200)


# -- standardisation ------------------------------------------------------------------------------
def test_scale_and_offset_of_a_channel_change_nothing(hard):
    bank, bank_labels, queries, query_labels = hard
    scale, shift = torch.logspace(-6, 6, 8, dtype=torch.float64), torch.linspace(-9, 9, 8, dtype=torch.float64)
    moved = [(rows + shift) * scale for rows in (bank, queries)]
    assert linear_probe(moved[0], bank_labels, moved[1], query_labels) == linear_probe(*hard)


def test_channels_are_standardised_with_the_bank_alone(hard):
    bank, _, queries, _ = hard
    first, second = LINEAR._standardised(bank, queries)
    mean, std = bank.double().mean(0), bank.double().std(0, correction=0)
    torch.testing.assert_close(first, F.pad((bank - mean) / std, (0, 1), value=1.0))
    torch.testing.assert_close(second, F.pad((queries - mean) / std, (0, 1), value=1.0))


@pytest.mark.parametrize("value", [0.0, 0.37, -1e6])
def test_a_channel_that_is_constant_in_the_bank_has_no_say(hard, value):
    bank, bank_labels, queries, query_labels = hard
    bank = torch.cat([bank, torch.full((300, 1), value)], dim=1)
    queries = torch.cat([queries, 1e6 * drawn(200, 1, seed=3)], dim=1)
    assert linear_probe(bank, bank_labels, queries, query_labels) == linear_probe(*hard)


# -- the fit --------------------------------------------------------------------------------------
def loss_of(rows, targets, weights, l2):
    """The loss as the docstring states it, for autograd to differentiate; the last column is the bias."""
    penalty = l2 / 2 * weights[:, :-1].square().sum()
    return F.cross_entropy(rows[:, :-1] @ weights[:, :-1].T + weights[:, -1], targets) + penalty


def gradient_of(rows, targets, weights, l2):
    weights = weights.detach().requires_grad_()
    loss = loss_of(rows, targets, weights, l2)
    return loss.item(), torch.autograd.grad(loss, weights)[0]


def test_loss_and_gradient_are_those_of_autograd(hard):
    rows, _ = LINEAR._standardised(hard[0], hard[2])
    problem = LINEAR._Problem.of(rows, hard[1], 4)
    weights = drawn(4, 9).double()
    loss, gradient = problem.loss_and_gradient(weights, problem.penalty(0.3))
    expected, slope = gradient_of(rows, hard[1], weights, 0.3)
    assert loss == pytest.approx(expected)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("l2", LINEAR.PENALTIES)
def test_the_gradient_vanishes_at_the_solution(hard, l2):
    rows, _ = LINEAR._standardised(hard[0], hard[2])
    problem = LINEAR._Problem.of(rows, hard[1], 4)
    weights = problem.solve(l2, torch.zeros(4, 9, dtype=torch.float64), LINEAR.FINAL)
    _, gradient = gradient_of(rows, hard[1], weights, l2)
    assert gradient.norm() < 1e-4
    assert weights.norm() > 0.1


def test_the_solution_does_not_depend_on_where_the_search_starts(hard):
    """The penalised loss has a single minimum."""
    rows, _ = LINEAR._standardised(hard[0], hard[2])
    problem = LINEAR._Problem.of(rows, hard[1], 4)
    found = [problem.solve(0.01, 3 * drawn(4, 9, seed=seed).double(), 1e-9) for seed in range(2)]
    torch.testing.assert_close(found[0][:, :-1], found[1][:, :-1], rtol=0, atol=1e-4)
    biases = [weights[:, -1] - weights[:, -1].mean() for weights in found]  # a common offset is free
    torch.testing.assert_close(biases[0], biases[1], rtol=0, atol=1e-4)


def test_correlated_channels_need_few_evaluations_of_the_loss(monkeypatch):
    """Plain L-BFGS needs 80 here, where channels share directions whose sizes differ by a factor of 100."""
    hidden = drawn(500, 16)
    labels = (hidden @ drawn(16, 5, seed=1) + 3 * drawn(500, 5, seed=3)).argmax(1)
    rows, _ = LINEAR._standardised(hidden * torch.logspace(0, -2, 16) @ drawn(16, 16, seed=2), hidden)
    count = []
    original = LINEAR._Problem.loss_and_gradient
    monkeypatch.setattr(LINEAR._Problem, "loss_and_gradient", lambda *args: (count.append(1), original(*args))[1])
    LINEAR._Problem.of(rows, labels, 5).solve(1e-3, rows.new_zeros(5, 17), LINEAR.FINAL)
    assert len(count) <= 30


def test_more_channels_and_classes_than_images_break_nothing():
    labels = torch.arange(90) % 30
    bank = drawn(90, 200) + 5 * drawn(30, 200, seed=1)[labels]
    queries = drawn(30, 200, seed=2) + 5 * drawn(30, 200, seed=1)
    assert linear_probe(bank, labels, queries, torch.arange(30)).accuracy == 100.0


# -- the choice of the penalty --------------------------------------------------------------------
def test_queries_have_no_say_in_the_choice(hard):
    bank, bank_labels, queries, query_labels = hard
    found = linear_probe(*hard)
    other = linear_probe(bank, bank_labels, 7 * queries.flip(1) - 1, query_labels.roll(1))
    assert (other.l2, other.validation_accuracy) == (found.l2, found.validation_accuracy)
    assert other.accuracy != found.accuracy


def test_few_images_of_many_channels_take_a_stronger_penalty():
    """With 60 channels of noise to memorise, a weak penalty loses on held-out images."""

    def noisy(count, seed):
        rows, labels = clusters(count, seed=seed)
        return torch.cat([rows, drawn(count, 60, seed=seed + 50)], dim=1), labels

    few, many = (linear_probe(*noisy(count, 1), *noisy(500, 2)) for count in (100, 4000))
    assert few.l2 >= 0.1
    assert many.l2 <= 1e-3


def test_the_penalty_is_the_best_on_images_held_out_of_the_bank(hard, monkeypatch):
    """Each penalty tried alone gives its own validation accuracy; the sweep takes the first of the best."""
    alone = []
    for l2 in LINEAR.PENALTIES:
        with monkeypatch.context() as patch:
            patch.setattr(LINEAR, "PENALTIES", (l2,))
            alone.append(linear_probe(*hard))
    found = linear_probe(*hard)
    assert len({score.validation_accuracy for score in alone}) > 1
    assert found == max(alone, key=lambda score: score.validation_accuracy)


def test_the_classifier_is_fitted_to_the_whole_bank(monkeypatch):
    bank, labels = drawn(20, 2), torch.arange(20) % 2
    rows, _ = LINEAR._standardised(bank, bank)
    seen = []
    original = LINEAR._Problem.solve

    def solve(problem, *args):
        seen.append(problem.rows)
        return original(problem, *args)

    monkeypatch.setattr(LINEAR._Problem, "solve", solve)
    linear_probe(bank, labels, bank, labels)
    assert [len(part) for part in seen] == [16] * len(LINEAR.PENALTIES) + [20]
    assert torch.equal(seen[-1], rows)


@pytest.mark.parametrize(
    ("counts", "held_out"),
    [([10, 20, 5], [2, 4, 1]), ([1, 2, 3, 4], [0, 1, 1, 1]), ([7, 8, 100], [1, 2, 20])],
)
def test_a_fifth_of_each_class_is_held_out_and_never_all_of_it(counts, held_out):
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(4))]
    mask = LINEAR._held_out(targets, 0)
    assert targets[mask].bincount(minlength=len(counts)).tolist() == held_out


def test_held_out_images_are_drawn_from_the_seed():
    targets = torch.arange(500) % 5
    masks = [LINEAR._held_out(targets, seed) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    shared = (masks[0] & masks[2]).sum().item()
    assert 5 <= shared <= 40  # a fifth of a fifth of 500 is 20
    assert not torch.equal(masks[0], targets.new_zeros(500).bool().index_fill(0, torch.arange(100), True))


def test_the_same_seed_gives_the_same_answer_and_leaves_no_trace(hard):
    before = [tensor.clone() for tensor in hard]
    random = torch.get_rng_state()
    first = linear_probe(*hard, seed=3)
    torch.manual_seed(1)
    second = linear_probe(*hard, seed=3)
    torch.set_rng_state(random)
    assert first == second
    linear_probe(*hard, seed=3)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(hard, before, strict=True))


# -- errors ---------------------------------------------------------------------------------------
def test_one_class_is_an_error():
    with pytest.raises(DataError, match="one class alone. A classifier needs images of two or more"):
        linear_probe(torch.eye(3), torch.tensor([4, 4, 4]), torch.eye(3), torch.tensor([0, 1, 2]))


def test_one_image_a_class_is_an_error():
    with pytest.raises(DataError, match="none can be held out .* at least one class two"):
        linear_probe(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3))

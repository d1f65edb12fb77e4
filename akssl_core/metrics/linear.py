"""The linear probe: multinomial logistic regression on features that were computed once, full batches or small ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # the strongest first: each solution starts the next search
CONSTANT = 1e-6  # a channel that varies less, in parts of its largest value, shows rounding errors alone
SEARCH, FINAL = 1e-4, 1e-5  # largest derivatives at the end; with a curvature of about 1, the loss is 1e-5 or 1e-7 off
Judge = Callable[[Tensor, Tensor], float]  # a mark for guesses (n,), by their targets (n,)
ITERATIONS = 300  # of one fit at most; the least regularised one needs the most, about 100


def linear_guesses(bank: Tensor, bank_labels: Tensor, queries: Tensor, *, seed: int = 0) -> tuple[Tensor, float, float]:
    """The labels (Q,) that a linear classifier on frozen features guesses, its penalty and its validation accuracy.

    After Kornblith et al. 2019 (arXiv 1805.08974): logistic regression by L-BFGS on features of unaugmented images, the
    full batch, a sweep of the L2 penalty in which each solution starts the next search, then a fit to all of the bank.
    It is not the SGD on augmented images that most self-supervised papers report as linear evaluation, so accuracies
    of the two do not compare.

    Features are standardised with the mean and standard deviation of each channel over the bank; a channel that is
    constant there becomes zero. The loss is the mean cross-entropy + l2 / 2 * |W|^2, the bias is free. `l2` is the one
    of `PENALTIES` with the best accuracy, in percent, on a fifth of each class of the bank, drawn from `seed`; of
    equals the strongest. The queries take part in no choice. Equal inputs give equal results.

    `bank` is (N, D), `bank_labels` (N,) are all known, `queries` (Q, D) are on the same device, and all are finite. The
    memory is about three matrices (N, D) and four (N, classes) in float64. Raises the errors of `held_out_split`.
    """
    classes, targets, held_out = held_out_split(bank_labels, seed)
    rows, query_rows = _standardised(bank, queries)
    l2, validation_accuracy, start = _choose(rows, targets, held_out, accuracy)
    weights = _Problem.of(rows, targets, len(classes)).solve(l2, start, FINAL)
    return classes[(weights @ query_rows.T).argmax(0)], l2, validation_accuracy


def linear_scores(
    bank: Tensor, targets: Tensor, held_out: Tensor, judge: Judge, *, refit: bool = True
) -> Callable[[Tensor], Tensor]:
    """The scores (n, classes) of rows (n, D) by the classifier of `linear_guesses` after learning from the bank.

    Its penalty is the one that `judge` gives the highest mark by guesses and targets of the rows `held_out` (N,) bool.
    `targets` (N,) are from 0 to classes - 1. Without `refit` it has learned from the other rows alone.
    """
    prepare = _standardiser(bank)
    rows = prepare(bank).double()
    l2, _, weights = _choose(rows, targets, held_out, judge)
    if refit:
        weights = _Problem.of(rows, targets, len(weights)).solve(l2, weights, FINAL)
    weights = weights.float()
    return lambda features: prepare(features) @ weights.T


def held_out_split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The classes (K,) among some labels, the number (N,) of each image's class, and which images choose settings.

    Raises:
        DataError: there are fewer than two classes, or no class with two images.
    """
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError("labels: they are of one class alone. A classifier needs images of two or more to learn from.")
    held_out = _held_out(targets, seed)
    if not held_out.any():
        raise DataError(
            "labels: each class has a single image to learn from, so that none can be held out to choose settings by. "
            "Give at least one class two, or use a larger share of the labels."
        )
    return classes, targets, held_out


def _standardised(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, with mean 0 and deviation 1 of each channel of the bank, and a last column of ones."""
    first, second = (F.pad(rows.double(), (0, 1), value=1.0) for rows in (bank, queries))
    channels = first[:, :-1]
    std, mean = torch.std_mean(channels, dim=0, correction=0)
    scale = torch.where(std > CONSTANT * channels.abs().amax(0), 1 / std, 0.0)
    for rows in (first, second):
        rows[:, :-1].sub_(mean).mul_(scale)
    return first, second


def _held_out(targets: Tensor, seed: int) -> Tensor:
    """A mask (N,) of a fifth of each class, at least one of its images and never all of them."""
    counts = targets.bincount()
    quota = torch.where(counts > 1, ((counts + 2) // 5).clamp(min=1), 0)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed)).to(targets.device)
    order = order[targets[order].argsort(stable=True)]  # class after class, shuffled within each
    first = counts.cumsum(0) - counts
    place = torch.empty_like(targets)
    place[order] = torch.arange(len(targets), device=targets.device)
    return place - first[targets] < quota[targets]


def _choose(rows: Tensor, targets: Tensor, held_out: Tensor, judge: Judge) -> tuple[float, float, Tensor]:
    """The best penalty, its mark on the held-out images, and the weights fitted to the others."""
    problem = _Problem.of(rows[~held_out], targets[~held_out], int(targets.max()) + 1)
    weights = rows.new_zeros(problem.classes, rows.shape[1])
    best = (PENALTIES[0], -1.0, weights)
    judged, truth = rows[held_out], targets[held_out]
    for l2 in PENALTIES:
        weights = problem.solve(l2, weights, SEARCH)
        mark = judge((weights @ judged.T).argmax(0), truth)
        if mark > best[1]:
            best = (l2, mark, weights)
    return best


def accuracy(guesses: Tensor, labels: Tensor) -> float:
    """Percent of the guesses (n,) that are the labels (n,)."""
    return 100 * (guesses == labels).double().mean().item()


@dataclass(frozen=True, slots=True)
class _Problem:
    """Logistic regression on rows (N, D + 1) whose last column is one; weights are (classes, D + 1).

    Scores are laid out as (classes, N): with few classes that takes less than half the time of (N, classes).
    """

    rows: Tensor
    targets: Tensor
    classes: int
    gram: Tensor  # of the rows, divided by N

    @classmethod
    def of(cls, rows: Tensor, targets: Tensor, classes: int) -> _Problem:
        return cls(rows, targets, classes, rows.T @ rows / len(rows))

    def solve(self, l2: float, start: Tensor, tolerance: float) -> Tensor:
        """The weights of least loss.

        L-BFGS moves V = W L, where L L^T = Gram / classes + penalty is about the Hessian of each class at W = 0.
        Channels of features are highly correlated; in these coordinates the curvature is about 1 in all
        directions, which saves most of the iterations and leaves the solution the same.
        """
        penalty = self.penalty(l2)
        lower = torch.linalg.cholesky(self.gram / self.classes + penalty.diag())
        moved = (start @ lower).contiguous()
        optimizer = torch.optim.LBFGS(
            [moved],
            max_iter=ITERATIONS,
            max_eval=2 * ITERATIONS,
            tolerance_grad=tolerance,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def weights() -> Tensor:
            result: Tensor = torch.linalg.solve_triangular(lower, moved, upper=False, left=False)
            return result

        def loss() -> float:
            value, gradient = self.loss_and_gradient(weights(), penalty)
            moved.grad = torch.linalg.solve_triangular(lower.T, gradient, upper=True, left=False).contiguous()
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call] # torch leaves it without types
        return weights()

    def loss_and_gradient(self, weights: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy + sum of penalty / 2 * weights^2, and its gradient in closed form."""
        log_p = (weights @ self.rows.T).log_softmax(0)
        right = self.targets, torch.arange(len(self.targets), device=self.targets.device)
        loss = (penalty * weights.square()).sum() / 2 - log_p[right].mean()
        error = log_p.exp_()
        error[right] -= 1
        return loss.item(), error @ self.rows / len(self.rows) + penalty * weights

    def penalty(self, l2: float) -> Tensor:
        """The strength for each column of the weights (D + 1,): none for the bias."""
        result = self.gram.new_full((len(self.gram),), l2)
        result[-1] = 0
        return result


# -- gradient descent over batches, for sets too large for full batches in float64 ------------------
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # one head each; all are trained at once on the same batches
EPOCHS, BATCH, MOMENTUM = 30, 256, 0.9
LARGE = 2**26  # numbers in the bank; more take over 1.5 GiB as three matrices in float64


def linear_guesses_sgd(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, seed: int = 0, epochs: int = EPOCHS
) -> tuple[Tensor, float, float]:
    """The labels (Q,) that a linear classifier trained by SGD guesses, its learning rate and validation accuracy.

    Multinomial logistic regression from zero weights: momentum 0.9, batches of 256, a cosine to zero, no penalty but
    the short schedule. Features are standardised as in `linear_guesses`. The learning rate is the one of `RATES` with
    the best accuracy on a fifth of each class of the bank, held out by `seed`; then all of the bank is fitted. The
    memory is the float32 features and one batch. `bank_labels` (N,) are all known, and on the CPU wherever the features
    are, which are finite. Raises the errors of `held_out_split`.
    """
    classes, targets, held_out = held_out_split(bank_labels, seed)
    prepare = _standardiser(bank)

    def fitted(rows: Tensor, rates: Tensor) -> Tensor:
        return _fit(bank, rows, targets, prepare, rates, len(classes), seed=seed, epochs=epochs)

    def guesses(features: Tensor, heads: Tensor) -> Tensor:
        blocks = [_scores(prepare(block), heads).argmax(2) for block in torch.split(features, 8192)]
        return torch.cat(blocks, dim=1).to(targets.device)  # (H, N)

    rates = torch.tensor(RATES, device=bank.device)
    heads = fitted(torch.nonzero(~held_out).flatten(), rates)
    judged = torch.nonzero(held_out).flatten()
    right = (guesses(bank[judged.to(bank.device)], heads) == targets[judged]).double().mean(1)
    best = int(right.argmax())  # of equals the largest rate
    head = fitted(torch.arange(len(bank)), rates[best : best + 1])
    return classes[guesses(queries, head)[0]], RATES[best], 100 * float(right[best])


def _standardiser(bank: Tensor) -> Callable[[Tensor], Tensor]:
    """Features (B, D) with mean 0 and deviation 1 of each channel of the bank, and a last column of ones."""
    mean, std = bank.mean(0), bank.std(0, correction=0)
    largest = torch.maximum(bank.amax(0), -bank.amin(0))  # without a copy of the bank, as abs() is
    scale = torch.where(std > CONSTANT * largest, 1 / std, 0.0)
    return lambda rows: F.pad((rows - mean) * scale, (0, 1), value=1.0)


def _scores(rows: Tensor, heads: Tensor) -> Tensor:
    """(H, B, K) for rows (B, D + 1) and heads (H, K, D + 1)."""
    return rows @ heads.transpose(1, 2)


def _fit(
    bank: Tensor,
    rows: Tensor,
    targets: Tensor,
    prepare: Callable[[Tensor], Tensor],
    rates: Tensor,
    classes: int,
    *,
    seed: int,
    epochs: int,
) -> Tensor:
    """The heads (H, classes, D + 1) after `epochs` passes over these rows of the bank, one for each rate (H,)."""
    generator = torch.Generator().manual_seed(seed)
    heads = bank.new_zeros(len(rates), classes, bank.shape[1] + 1)
    velocity = torch.zeros_like(heads)
    targets = targets.to(bank.device)
    width = bank.shape[1] ** 0.5  # the curvature grows with the channels, so the step shrinks with their root
    total, step = epochs * math.ceil(len(rows) / BATCH), 0
    for _ in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator)].to(bank.device)
        for chosen in torch.split(order, BATCH):
            x = prepare(bank[chosen])
            error = _scores(x, heads).softmax(2) - F.one_hot(targets[chosen], classes)
            velocity.mul_(MOMENTUM).add_(error.transpose(1, 2) @ x, alpha=1 / len(x))
            rate = rates * (1 + math.cos(math.pi * step / total)) / 2 / width
            heads.sub_(rate[:, None, None] * velocity)
            step += 1
    return heads

"""The linear probe for sets too large for full batches in float64: gradient descent over batches of cached features."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import CONSTANT, held_out_split

RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # one head each; all are trained at once on the same batches
EPOCHS, BATCH, MOMENTUM = 30, 256, 0.9
LARGE = 2**26  # numbers in the bank; more take over 1.5 GiB as three matrices in float64


def linear_guesses_sgd(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, seed: int = 0, epochs: int = EPOCHS
) -> tuple[Tensor, float, float]:
    """The labels (Q,) that a linear classifier trained by SGD guesses, its learning rate and validation accuracy.

    Multinomial logistic regression from zero weights: momentum 0.9, batches of 256, a cosine to zero, no penalty but
    the short schedule. Features are standardised as in `linear_probe`. The learning rate is the one of `RATES` with
    the best accuracy on a fifth of each class of the bank, held out by `seed`; then all of the bank is fitted. The
    memory is the float32 features and one batch. `bank_labels` (N,) are all known and the features finite.

    Raises:
        DataError: as `linear_probe`.
    """
    classes, targets, held_out = held_out_split(bank_labels, seed)
    prepare = _standardiser(bank)

    def fitted(rows: Tensor, rates: Tensor) -> Tensor:
        return _fit(bank, rows, targets, prepare, rates, len(classes), seed=seed, epochs=epochs)

    def guesses(features: Tensor, heads: Tensor) -> Tensor:
        blocks = [_scores(prepare(block), heads).argmax(2) for block in torch.split(features, 8192)]
        return torch.cat(blocks, dim=1)  # (H, N)

    rates = torch.tensor(RATES, device=bank.device)
    heads = fitted(torch.nonzero(~held_out).flatten(), rates)
    right = (guesses(bank[held_out], heads) == targets[held_out]).double().mean(1)
    best = int(right.argmax())  # of equals the largest rate
    head = fitted(torch.arange(len(bank), device=bank.device), rates[best : best + 1])
    return classes[guesses(queries, head)[0]], RATES[best], 100 * float(right[best])


def _standardiser(bank: Tensor) -> Callable[[Tensor], Tensor]:
    """Features (B, D) with mean 0 and deviation 1 of each channel of the bank, and a last column of ones."""
    mean, std = bank.mean(0), bank.std(0, correction=0)
    scale = torch.where(std > CONSTANT * bank.abs().amax(0), 1 / std, 0.0)
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
    width = bank.shape[1] ** 0.5  # the curvature grows with the channels, so the step shrinks with their root
    total, step = epochs * math.ceil(len(rows) / BATCH), 0
    for _ in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        for chosen in torch.split(order, BATCH):
            x = prepare(bank[chosen])
            error = _scores(x, heads).softmax(2) - F.one_hot(targets[chosen], classes)
            velocity.mul_(MOMENTUM).add_(error.transpose(1, 2) @ x, alpha=1 / len(x))
            rate = rates * (1 + math.cos(math.pi * step / total)) / 2 / width
            heads.sub_(rate[:, None, None] * velocity)
            step += 1
    return heads

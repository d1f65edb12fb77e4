"""The weighted k-NN classifier, and the images most alike to a given one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import labelled

QUERIES_AT_ONCE, BANK_AT_ONCE = 512, 8192  # one block of similarities takes 16 MiB, its sort keys 32 MiB
_STEPS = 2**20  # similarities closer than 1e-6 count as equal, so that rounding errors decide no tie
_INDICES = 2**32  # the lower half of a sort key holds an index


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of a weighted k-NN classifier: cosine similarity, votes weighted with exp(sim / T).

    Wu et al. 2018 (arXiv 1805.01978); k = 20 and T = 0.07 as in DINO (arXiv 2104.14294). `bank` is (N, D) and
    `queries` (Q, D); images without a label (-1) are left out. Of equally similar images the earlier one counts.

    Raises:
        DataError: the bank or the queries hold no label.
    """
    bank, bank_labels = labelled(bank, bank_labels, "k-NN", "bank")
    queries, query_labels = labelled(queries, query_labels, "k-NN", "queries")
    guesses = knn_guesses(bank, bank_labels, queries, ks=(k,), temperature=temperature)[k]
    return 100 * (guesses == query_labels).double().mean().item()


def knn_guesses(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, ks: Sequence[int], temperature: float = 0.07
) -> dict[int, Tensor]:
    """For each number of neighbours the labels (Q,) that `knn` judges by; the search is done once for all of them.

    `bank_labels` (N,) are all known.
    """
    similarity, index = _nearest(bank, queries, max(ks))
    labels = bank_labels[index]  # (Q, k), the nearest first
    result = {}
    for k in ks:
        weights = torch.softmax(similarity[:, :k] / temperature, dim=1)  # exp(sim / T) up to a factor, without overflow
        blocks = zip(*(torch.split(of, QUERIES_AT_ONCE) for of in (labels[:, :k], weights)), strict=True)
        result[k] = torch.cat([_vote(*block) for block in blocks])
    return result


def neighbours(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices (Q, min(k, N)) of the bank's images most alike to each query by cosine, the most alike first."""
    return _nearest(bank, queries, k)[1]


def _vote(labels: Tensor, weights: Tensor) -> Tensor:
    """The label (Q,) with the most weight among neighbours (Q, k); of equals that of the nearer neighbour."""
    same = labels[:, :, None] == labels[:, None, :]  # (Q, k, k): the memory does not grow with the classes
    votes = (same * weights[:, None, :]).sum(2)
    return labels.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (float64) and indices of the k nearest, each (Q, k).

    The memory does not grow with N x Q: the best k so far are merged with those of each block of the bank.
    """
    k = min(k, len(bank))
    keys = torch.cat([_best_keys(bank, block, k) for block in torch.split(queries, QUERIES_AT_ONCE)])
    return keys.div(_INDICES, rounding_mode="floor").double() / _STEPS, _INDICES - 1 - keys % _INDICES


def _best_keys(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """The k largest sort keys (Q, k) of one block of queries over the whole bank."""
    queries = _unit(queries)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), BANK_AT_ONCE):
        similarity = queries @ _unit(bank[start : start + BANK_AT_ONCE]).T
        keys = torch.cat([best, _keys(similarity, start)], dim=1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    return best


def _keys(similarity: Tensor, start: int) -> Tensor:
    """One int64 for similarity and index: a higher similarity wins, then a lower index. No two are equal."""
    index = torch.arange(start, start + similarity.shape[1], device=similarity.device)
    return (similarity * _STEPS).round().to(torch.int64) * _INDICES + (_INDICES - 1 - index)


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1; a row with a number that is not finite becomes zero, alike to nothing."""
    return F.normalize(features, dim=1).nan_to_num(0.0, 0.0, 0.0)

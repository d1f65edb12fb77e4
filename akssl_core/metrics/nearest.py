"""The weighted k-NN classifier, and the images most alike to a given one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import labelled

QUERIES_AT_ONCE, BANK_AT_ONCE = 512, 8192  # one block of similarities takes 16 MiB, its sort keys 32 MiB
_STEPS = 2**20  # similarities closer than 1e-6 count as equal, so that rounding errors decide no tie
_INDICES = 2**32  # the lower half of a sort key holds an index


def knn(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, **more: Any) -> float:
    """Accuracy in percent of a weighted k-NN classifier; arguments and errors are those of `knn_right`."""
    return percent(knn_right(bank, bank_labels, queries, query_labels, **more))


def percent(right: Tensor) -> float:
    """The accuracy in percent of answers (Q,), true where they are right."""
    return 100 * right.double().mean().item()


def knn_right(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> Tensor:
    """Whether a weighted k-NN classifier is right (Q,): cosine similarity, votes weighted with exp(sim / T).

    Wu et al. 2018 (arXiv 1805.01978); k = 20 and T = 0.07 as in DINO (arXiv 2104.14294). `bank` is (N, D) and
    `queries` (Q, D); images without a label (-1) are left out. Of equally similar images the earlier one counts.
    The search runs on `device` where that is CUDA, to which the bank goes a block at a time; else where the bank is.

    Raises:
        DataError: the bank or the queries hold no label.
    """
    bank, bank_labels = labelled(bank, bank_labels, "k-NN", "bank")
    queries, query_labels = labelled(queries, query_labels, "k-NN", "queries")
    guesses = knn_guesses(bank, bank_labels, queries, ks=(k,), temperature=temperature, device=device)[k]
    return guesses == query_labels


def knn_guesses(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """For each number of neighbours the guesses (Q,) of `knn_right`; the search is done once for all of them.

    `bank_labels` (N,) are all known.
    """
    similarity, index = nearest(bank, queries, max(ks), device)
    labels = bank_labels[index]  # (Q, k), the nearest first
    result = {}
    for k in ks:
        weights = torch.softmax(similarity[:, :k] / temperature, dim=1)  # exp(sim / T) up to a factor, without overflow
        blocks = zip(*(torch.split(of, QUERIES_AT_ONCE) for of in (labels[:, :k], weights)), strict=True)
        result[k] = torch.cat([_vote(*block) for block in blocks])
    return result


def neighbours(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices (Q, min(k, N)) of the bank's images most alike to each query by cosine, the most alike first."""
    return nearest(bank, queries, k)[1]


def _vote(labels: Tensor, weights: Tensor) -> Tensor:
    """The label (Q,) with the most weight among neighbours (Q, k); of equals that of the nearer neighbour."""
    same = labels[:, :, None] == labels[:, None, :]  # (Q, k, k): the memory does not grow with the classes
    votes = (same * weights[:, None, :]).sum(2)
    return labels.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)


def nearest(
    bank: Tensor, queries: Tensor, k: int, device: torch.device | None = None, *, few: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosine similarities (float64) and indices of the k nearest, each (Q, k), where the features are.

    `few`: the queries are so few that it is their products that are divided by the lengths of the bank's rows, not
    the rows: of 1,000,000 x 384 and one query a third of the work. The last bits of similarities are others.

    The memory does not grow with N x Q: the best k so far of each query are merged with those of each block of the
    bank, which visits the device once.
    """
    k, there = min(k, len(bank)), device if device is not None and device.type == "cuda" else bank.device
    asked = [_unit(block) for block in torch.split(queries.to(there), QUERIES_AT_ONCE)]
    best = [torch.empty(len(block), 0, dtype=torch.int64, device=block.device) for block in asked]
    for start in range(0, len(bank), BANK_AT_ONCE):
        part = bank[start : start + BANK_AT_ONCE].to(there)
        known, lengths = (part.T, torch.linalg.vector_norm(part, dim=1)) if few else (_unit(part).T, None)
        similar = (block @ known if lengths is None else _divided(block @ known, lengths) for block in asked)
        best = [_merged(keys, _keys(one, start), k) for keys, one in zip(best, similar, strict=True)]
    keys = torch.cat(best)
    index = (_INDICES - 1 - keys % _INDICES).to(bank.device)
    return keys.to(bank.device).div(_INDICES, rounding_mode="floor").double() / _STEPS, index


def _divided(products: Tensor, lengths: Tensor) -> Tensor:
    """Products (Q, N) by the lengths (N,) of rows; zero for a row without a finite length, alike to nothing."""
    return (products / lengths).nan_to_num(0.0, 0.0, 0.0)


def _merged(best: Tensor, keys: Tensor, k: int) -> Tensor:
    """The k largest sort keys (Q, k) of those so far and of another block; fewer while there are not so many."""
    keys = torch.cat([best, keys], dim=1)
    return keys.topk(min(k, keys.shape[1]), dim=1).values


def _keys(similarity: Tensor, start: int) -> Tensor:
    """One int64 for similarity and index: a higher similarity wins, then a lower index. No two are equal."""
    index = torch.arange(start, start + similarity.shape[1], device=similarity.device)
    return (similarity * _STEPS).round().to(torch.int64) * _INDICES + (_INDICES - 1 - index)


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1; a row with a number that is not finite becomes zero, alike to nothing."""
    return F.normalize(features, dim=1).nan_to_num(0.0, 0.0, 0.0)

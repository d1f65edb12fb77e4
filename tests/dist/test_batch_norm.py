"""Batch norms of two ranks against one that sees the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from akssl_core.dist import shared_statistics
from akssl_core.testing.ranks import on_ranks

SHAPES = {nn.BatchNorm1d: (12, 5), nn.BatchNorm2d: (12, 5, 3, 2), nn.BatchNorm3d: (12, 5, 2, 3, 2)}


def rows(shape):
    generator = torch.Generator().manual_seed(1)
    offsets = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=generator) + offsets  # the halves have different means


def over(x):
    return [0, *range(2, x.dim())]


def like(values, x):
    return values.view(1, -1, *[1] * (x.dim() - 2))


class Kernels:
    """The kernels that torch has for CUDA alone, by the names that it gives them, in plain operations."""

    @staticmethod
    def batch_norm_stats(x, eps):
        return x.mean(over(x)), (x.var(over(x), correction=0) + eps).rsqrt()

    @staticmethod
    def batch_norm_gather_stats_with_counts(x, means, scales, running_mean, running_var, momentum, eps, counts):
        weights = (counts / counts.sum())[:, None]
        mean = (weights * means).sum(0)
        variance = (weights * (scales**-2 - eps + means**2)).sum(0) - mean**2
        if running_mean is not None:
            rows = counts.sum()
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * variance * rows / (rows - 1))
        return mean, (variance + eps).rsqrt()

    @staticmethod
    def batch_norm_elemt(x, weight, bias, mean, scale, eps):
        out = (x - like(mean, x)) * like(scale, x)
        out = out if weight is None else out * like(weight, x)
        return out if bias is None else out + like(bias, x)

    @staticmethod
    def batch_norm_backward_reduce(grad, x, mean, scale, weight, of_x, of_weight, of_bias):
        sums, products = grad.sum(over(x)), (grad * (x - like(mean, x))).sum(over(x))
        return sums, products, products * scale, sums  # whether they are wanted or not, as torch's do

    @staticmethod
    def batch_norm_backward_elemt(grad, x, mean, scale, weight, sums, products, counts):
        assert counts.dtype == torch.int32, "torch's kernel takes no other"
        rows = counts.sum()
        shared = like(sums / rows, x) + (x - like(mean, x)) * like(scale**2 * products / rows, x)
        return (grad - shared) * like(scale if weight is None else scale * weight, x)


@pytest.fixture(params=["plain", "kernels"])
def way(request, monkeypatch):
    """Both ways in which statistics are shared: any device's, and CUDA's with its kernels played."""
    if request.param == "kernels":
        monkeypatch.setattr("akssl_core.dist._has_kernels", lambda x: True)
        for name, kernel in vars(Kernels).items():
            if name.startswith("batch_norm"):
                monkeypatch.setattr(torch, name, kernel.__func__)
    return request.param


def trained(norm, x, weights):
    """The output, the gradients and the running statistics after two batches."""
    x = x.clone().requires_grad_()
    norm(x.detach() * 2)
    (norm(x) * weights).sum().backward()
    return norm(x).detach(), x.grad, {name: p.grad for name, p in norm.named_parameters()}, dict(norm.named_buffers())


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}], ids=str
)
def test_two_ranks_normalise_as_one(kind, settings, way):
    exact = way == "kernels"  # which compute in the numbers they are given
    x = rows(SHAPES[kind]).to(torch.float64 if exact else torch.float32)
    weights = torch.linspace(-1, 2, x.numel()).view(x.shape)
    norm = kind(5, **settings).to(x.dtype)
    if norm.affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    copies = [copy.deepcopy(norm) for _ in range(2)]

    def of_rank(rank):
        half = slice(6 * rank.rank, 6 * rank.rank + 6)
        with shared_statistics(copies[rank.rank]):
            return trained(copies[rank.rank], x[half], weights[half])

    halves = on_ranks(2, of_rank)
    out, grad, of_weights, buffers = trained(norm, x, weights)
    close = {"atol": 1e-10, "rtol": 1e-10} if exact else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(torch.cat([half[0] for half in halves]), out)
    torch.testing.assert_close(torch.cat([half[1] for half in halves]), grad, **close)
    for name, expected in of_weights.items():
        torch.testing.assert_close(halves[0][2][name] + halves[1][2][name], expected, **close)
    for half in halves:
        torch.testing.assert_close(half[3], buffers)


def test_in_evaluation_running_statistics_count():
    norm = nn.BatchNorm1d(5).eval()
    norm.running_mean.fill_(3.0)
    x = rows((4, 5))

    def of_rank(rank):
        mine = copy.deepcopy(norm)
        with shared_statistics(mine):
            return mine(x)

    assert all(torch.equal(out, norm(x)) for out in on_ranks(2, of_rank))


def test_half_precision_is_normalised_in_float32():
    x = rows((12, 5)) * 100

    def of_rank(rank):
        norm = nn.BatchNorm1d(5)
        with shared_statistics(norm):
            return norm(x[6 * rank.rank : 6 * rank.rank + 6].bfloat16())

    found = torch.cat(on_ranks(2, of_rank))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, nn.BatchNorm1d(5)(x.bfloat16().float()).bfloat16(), atol=0.02, rtol=0.02)


class Own(nn.BatchNorm2d):
    """A class of a user's own."""


def test_classes_are_lent_and_given_back():
    module = nn.Sequential(nn.BatchNorm2d(3), Own(3))

    def of_rank(rank):
        mine = copy.deepcopy(module)
        with shared_statistics(mine):
            within = [type(part) for part in mine]
        return within, [type(part) for part in mine]

    for within, after in on_ranks(2, of_rank):
        assert within[0] is not nn.BatchNorm2d
        assert isinstance(within[0], type)
        assert within[1] is Own
        assert after == [nn.BatchNorm2d, Own]
    with shared_statistics(module):
        assert type(module[0]) is nn.BatchNorm2d, "one process needs nobody else"

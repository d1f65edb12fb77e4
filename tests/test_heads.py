"""Heads of self-distillation layer by layer (arXiv 2104.14294, appendix C), and what compares views."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from akssl_core.nn import CosineHead, WeightNormLinear, across_views


def head(**settings):
    torch.manual_seed(0)
    return CosineHead(12, 20, 8, 30, **settings)


def test_head_layer_by_layer():
    block = ["Linear", "GELU"]
    assert [type(layer).__name__ for layer in head().mlp] == [*block, *block, "Linear"]
    linear = [layer for layer in head().mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 20), (20, 20), (20, 8)]
    assert all(layer.bias is not None for layer in linear)
    block = ["Linear", "BatchNorm1d", "GELU"]
    assert [type(layer).__name__ for layer in head(batch_norm=True).mlp] == [*block, *block, "Linear"]
    (single,) = head(layers=1).mlp
    assert (single.in_features, single.out_features) == (12, 8)
    assert {name: tuple(p.shape) for name, p in head().last.named_parameters()} == {"direction": (30, 8)}
    gains = dict(head(fixed_gain=False).last.named_parameters())
    assert tuple(gains["gain"].shape) == (30, 1)
    assert torch.equal(gains["gain"], torch.ones(30, 1))


def test_head_starts_from_a_truncated_normal_of_002_and_the_last_layer_as_any_linear():
    torch.manual_seed(0)
    big = CosineHead(200, 300, 256, 1000)
    for layer in big.mlp:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    direction = big.last.direction
    assert direction.abs().max().item() <= 1 / 16, "uniform within 1 / sqrt(256)"
    assert direction.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.05)


def test_bottleneck_has_unit_length_and_logits_are_cosines():
    h, features = head(), torch.randn(50, 12) * 10
    z = h.project(features)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(50))
    expected = F.cosine_similarity(h.mlp(features)[:, None], h.last.direction[None], dim=2)
    torch.testing.assert_close(h(features), expected)
    assert h(features).abs().max() <= 1 + 1e-6


def test_bottleneck_and_logits_are_float32_under_autocast():
    h, features = head(fixed_gain=False), torch.randn(50, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = h.project(features)
        logits = h.last(z)
    assert z.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(logits, h.last(z), rtol=0, atol=0)


def test_length_of_directions_does_not_matter_and_the_gain_does():
    layer, rows = WeightNormLinear(8, 5, fixed_gain=False), torch.randn(4, 8)
    before = layer(rows)
    with torch.no_grad():
        layer.direction.mul_(torch.arange(1.0, 6.0)[:, None])
    torch.testing.assert_close(layer(rows), before)
    with torch.no_grad():
        layer.gain.mul_(torch.arange(1.0, 6.0)[:, None])
    torch.testing.assert_close(layer(rows), before * torch.arange(1.0, 6.0))


@pytest.mark.parametrize(("targets", "views"), [(2, 2), (2, 5), (1, 3)])
def test_views_are_compared_with_all_others_and_not_with_themselves(targets, views):
    generator = torch.Generator().manual_seed(0)
    of_targets = torch.randn(targets, 6, 4, generator=generator).softmax(2)
    predictions = torch.randn(views, 6, 4, generator=generator).requires_grad_()
    terms = [F.cross_entropy(predictions[v], of_targets[u]) for u in range(targets) for v in range(views) if u != v]
    assert len(terms) == targets * (views - 1)
    found = across_views(list(of_targets), list(predictions.log_softmax(2)))
    torch.testing.assert_close(found, torch.stack(terms).mean())

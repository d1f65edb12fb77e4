"""Our losses against stable-pretraining's: values and gradients on random inputs, as in `test_parity.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import akssl_core
from akssl_core.nn import sinkhorn

pytest.importorskip("stable_pretraining", reason="the peer library is installed by `pip install -e .[bench]`")

sys.path.append(str(Path(__file__).parent))

from parity import TOLERANCE, assert_parity, rows, unit_rows
from stable_pretraining.losses import BarlowTwinsLoss, NTXEntLoss, VICRegLoss
from stable_pretraining.losses.dino import iBOTPatchLoss
from stable_pretraining.losses.reconstruction import mae
from stable_pretraining.losses.utils import sinkhorn_knopp
from stable_pretraining.methods.lejepa import EppsPulley, LeJEPA

CROPS = 4
HIDDEN = 6  # patches of each crop


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ntxent(temperature: float) -> None:
    """Factor 1."""
    ours = akssl_core.build("loss", "ntxent", temperature=temperature)
    assert_parity(ours, NTXEntLoss(temperature), rows(16, 8, count=2))


@pytest.mark.parametrize(("invariance", "variance", "covariance"), [(25.0, 25.0, 1.0), (10.0, 50.0, 3.0)])
def test_vicreg(invariance: float, variance: float, covariance: float) -> None:
    """Factor 1, with half of the variance terms' sum."""
    weights = {"invariance_weight": invariance, "variance_weight": variance, "covariance_weight": covariance}
    ours = akssl_core.build("loss", "vicreg", **weights)
    assert_parity(ours, VICRegLoss(invariance, variance, covariance), rows(32, 16, count=2, scale=0.7))


@pytest.mark.parametrize("rows_in_all", [16, 64])
def test_barlowtwins(rows_in_all: int) -> None:
    """Not equal: theirs divides by the deviation from N - 1, and the correlations by N, (N - 1) / N of ours."""
    shrunk, weight = (rows_in_all - 1) / rows_in_all, 0.0051

    def expected(z1: Tensor, z2: Tensor) -> Tensor:
        a, b = ((z - z.mean(0)) / z.std(0) for z in (z1, z2))
        c = shrunk * (a.T @ b) / (rows_in_all - 1)
        diagonal = c.diagonal()
        value: Tensor = (diagonal - 1).square().sum() + weight * (c.square().sum() - diagonal.square().sum())
        return value

    inputs = rows(rows_in_all, 6, count=2, scale=10.0)  # large, since theirs adds 1e-5 to the deviation
    assert_parity(expected, BarlowTwinsLoss(weight), inputs)
    ours = akssl_core.build("loss", "barlowtwins", lambda_=weight)
    assert ours(*inputs).item() != pytest.approx(BarlowTwinsLoss(weight)(*inputs).item(), rel=1e-3)


@pytest.mark.parametrize("global_views", [1, 2])
def test_lejepa(global_views: int) -> None:
    """Factor 1 - lambda, where the weight of theirs is lambda / (1 - lambda) and its test is that of each view.

    Theirs tests the rows of all views as one sample, which the last lines show.
    """
    directions, share = unit_rows(40, 8, seed=7).T, 0.3
    statistic, ours = EppsPulley().double(), akssl_core.build("loss", "lejepa", lambda_=share)
    views = rows(24, 8, count=4, scale=0.7)

    def of_each(z: Tensor) -> Tensor:
        return torch.stack([statistic(view @ directions.double()).mean() for view in z.split(24)]).mean()

    def theirs(*z: Tensor) -> Tensor:
        total: Tensor = LeJEPA._compute_loss(torch.stack(z), global_views, of_each, share / (1 - share))[0]
        return total

    assert_parity(lambda *z: ours(list(z), directions, global_views), theirs, views, factor=1 - share)
    alone, pooled = akssl_core.build("loss", "lejepa", lambda_=1.0), torch.cat(views)
    assert_parity(lambda z: alone([z], directions, 1), lambda z: statistic(z @ directions.double()).mean(), [pooled])


def test_sinkhorn() -> None:
    """Factor 1, three iterations."""
    scores = unit_rows(24, 8) @ unit_rows(12, 8, seed=2).T
    expected = sinkhorn_knopp(scores, 0.05, len(scores))
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), expected, rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("name", ["ibot_patch", "dinov2_patches"])
def test_losses_of_hidden_patches(name: str) -> None:
    """Factor 1, where each crop hides as many patches: theirs is the mean over patches, ours over crops first."""
    student, teacher = rows(CROPS * HIDDEN, 32, count=1)[0], rows(CROPS * HIDDEN, 32, count=1, scale=0.3, seed=5)[0]
    weights, zero = torch.full((CROPS * HIDDEN,), 1 / HIDDEN), torch.zeros(32)
    targets = (teacher / 0.04).softmax(1)
    ours = akssl_core.build("loss", name, student_temperature=0.1)
    arguments = (teacher, weights, CROPS, zero, 0.04) if name == "ibot_patch" else (targets, weights, CROPS)
    assert_parity(lambda logits: ours(logits, *arguments), lambda z: iBOTPatchLoss(0.1)(z, targets), [student])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_mae(norm_pix: bool) -> None:
    """Factor 1: the variance within a patch from P - 1 pixels."""
    predicted, pixels = rows(3, 16, 12, count=2)
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.75
    ours = akssl_core.build("loss", "mae", norm_pix=norm_pix)

    def theirs(z: Tensor) -> Tensor:
        return mae(pixels.double(), z, mask.double(), norm_pix_loss=norm_pix)

    assert_parity(lambda z: ours(z, pixels, mask), theirs, [predicted])

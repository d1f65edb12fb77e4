"""DCL and DCLW against the formulas of arXiv 2110.06848."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from akssl_plugin_simclr import SimCLR
from torch import Tensor
from torch.nn import functional as F

import akssl_core
from akssl_core import ConfigError, Facts
from akssl_core.testing import ToyBackbone, config_of, spec_of

E3 = torch.eye(3)


def loss(name: str, z1: Tensor, z2: Tensor, temperature: float, **settings: Any) -> Tensor:
    value: Tensor = akssl_core.build("loss", name, temperature=temperature, **settings)(z1, z2)
    return value


def rows(count: int, seed: int = 2, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def anchors(z1: Tensor, z2: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Equation 6 of the paper for each anchor, in float64."""
    n, z = len(z1), F.normalize(torch.cat([z1, z2]).double(), dim=1)
    found = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        negatives = torch.stack([torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k not in (i, j)])
        weight = 1.0 if weights is None else weights[i % n]
        found.append(-weight * (z[i] @ z[j]) / temperature + torch.log(negatives.sum()))
    return torch.stack(found)


def weights_of(z1: Tensor, z2: Tensor, sigma: float) -> Tensor:
    """The weights of the paper, in float64."""
    cosine = F.cosine_similarity(z1.double(), z2.double())
    return 2 - torch.exp(cosine / sigma) / torch.exp(cosine / sigma).mean()


@pytest.mark.parametrize("name", ["dcl", "dclw"])
@pytest.mark.parametrize(
    ("z1", "z2", "temperature", "expected"),
    [
        (torch.eye(2), torch.eye(2), 0.1, -9.3068528),
        (torch.eye(2), torch.eye(2), 0.5, -1.3068528),
        (torch.eye(4), torch.eye(4), 0.1, -8.2082405),
        (torch.eye(8), torch.eye(8), 0.2, -2.3609427),
        (torch.ones(4, 3), torch.ones(4, 3), 0.1, 1.7917595),
        (torch.eye(2), -torch.eye(2), 0.1, 10.6931472),
        (torch.eye(2), -torch.eye(2), 0.5, 2.6931472),
    ],
    ids=["2", "2 softer", "4", "8", "all alike", "opposite", "opposite softer"],
)
def test_closed_forms(name: str, z1: Tensor, z2: Tensor, temperature: float, expected: float) -> None:
    """Where all cosines of partners are equal, all weights are 1."""
    assert loss(name, z1, z2, temperature).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "temperature", "expected"),
    [("dcl", 1.0, 0.1931472), ("dclw", 1.0, 0.5739443), ("dcl", 0.1, -4.3068528), ("dclw", 0.1, -0.4988820)],
)
def test_images_whose_views_are_unlike_attract_more(name: str, temperature: float, expected: float) -> None:
    assert loss(name, E3[:2], E3[[0, 2]], temperature).item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(weights_of(E3[:2], E3[[0, 2]], 0.5).float(), torch.tensor([0.2384058, 1.7615942]))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_are_equation_6(temperature: float) -> None:
    z1, z2 = rows(6).requires_grad_(), rows(6, seed=3).requires_grad_()
    for name, weights in (("dcl", None), ("dclw", weights_of(z1, z2, 0.3).detach())):
        settings = {} if weights is None else {"sigma": 0.3}
        value, expected = loss(name, z1, z2, temperature, **settings), anchors(z1, z2, temperature, weights).mean()
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        mine, papers = (torch.autograd.grad(one, [z1, z2]) for one in (value, expected))
        for got, wanted in zip(mine, papers, strict=True):
            assert (got.abs().sum(1) > 1e-3).all(), "every row of either view; weights are constants"
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_ntxent_is_the_softplus_of_each_anchor() -> None:
    z1, z2 = rows(5), rows(5, seed=3)
    decoupled = anchors(z1, z2, 0.2)
    assert loss("ntxent", z1, z2, 0.2).item() == pytest.approx(F.softplus(decoupled).mean().item(), abs=1e-5)
    assert loss("dcl", z1, z2, 0.2).item() == pytest.approx(decoupled.mean().item(), abs=1e-5)
    assert loss("dcl", z1, z2, 0.2) < loss("ntxent", z1, z2, 0.2)


def test_pull_on_a_partner_does_not_fade_once_it_is_found() -> None:
    """The slope by a partner's cosine is -1 / t whatever the negatives; NT-Xent's is that times sigmoid(l)."""

    def slope(name: str) -> float:
        angle = torch.tensor(0.3, dtype=torch.float32, requires_grad=True)
        first = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
        turned = torch.stack([angle.cos(), angle.sin(), angle * 0, angle * 0])
        value = loss(name, first, torch.stack([turned, torch.tensor([0.0, 0.0, 0.0, 1.0])]), 0.1)
        (by_angle,) = torch.autograd.grad(value, angle)
        return (by_angle / -angle.sin()).item()  # negatives are orthogonal to both and stay so

    assert slope("dcl") == pytest.approx(-1 / 0.1 / 2, rel=1e-4), "of one image among two"
    assert abs(slope("ntxent")) < 0.01


@pytest.mark.parametrize("name", ["dcl", "dclw"])
def test_finite_at_small_temperatures(name: str) -> None:
    z1 = torch.eye(2, 8, requires_grad=True)
    value = loss(name, z1, -torch.eye(2, 8), 0.01)
    value.backward()
    assert value.item() == pytest.approx(100 + math.log(2), rel=1e-6)
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dcl", "dclw"])
def test_loss_ignores_lengths_common_order_and_order_of_views(name: str) -> None:
    z1, z2 = rows(6), rows(6, seed=3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    expected = pytest.approx(loss(name, z1, z2, 0.2).item(), abs=1e-5)
    assert loss(name, 3 * z1, z2 * torch.arange(1.0, 7)[:, None], 0.2).item() == expected
    assert loss(name, z1[order], z2[order], 0.2).item() == expected
    assert loss(name, z2, z1, 0.2).item() == expected
    assert loss(name, z1[order], z2, 0.2).item() != expected


@pytest.mark.parametrize("name", ["dcl", "dclw"])
def test_one_image_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the loss {name} needs the views of other images, and there is 1"):
        loss(name, rows(1), rows(1, seed=3), 0.5)


@pytest.mark.parametrize(("name", "others"), [("ntxent", 63), ("dcl", 62), ("dclw", 62)])
def test_chance_is_the_log_of_the_views_among_which_the_loss_looks(name: str, others: int) -> None:
    config = config_of(SimCLR, loss=name)
    facts = Facts(1000, 32, 32, 32, 10, {"global": 2})
    curve = SimCLR.curves(config, facts)["loss"]
    assert curve.lines["chance"] == pytest.approx(math.log(others))
    assert ("below 0" in curve.shape) == (name != "ntxent")
    assert f"log {others}" in SimCLR.landmarks(config, facts)[0].meaning


def test_a_name_takes_the_place_of_the_recipe_s_loss() -> None:
    config = spec_of("simclr", options={"loss": "dcl"}).method.config
    assert (config.loss.name, config.loss.config.temperature) == ("dcl", 0.1)
    method = akssl_core.build("method", "simclr", ToyBackbone(), loss={"name": "dclw", "sigma": 0.3})
    assert method.loss.config.sigma == 0.3

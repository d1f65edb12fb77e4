"""LARS against recursions worked out by hand, in each of its variants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from akssl_core.config.schema import validate
from akssl_core.optim import LARS, LayerwiseSGD, parameter_groups

LARC = {"denominator": "sum_of_norms"}
VARIANTS = [{}, {"lr_inside_momentum": True}, LARC, {**LARC, "clip_ratio": True}]


def build(net, **settings):
    config = validate(LARS.Config, settings, registry=None)
    return LARS(config).build(parameter_groups(net, (), config))


def random_steps(optimizer, parameters, count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def random_parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(4, 3), (5,), (2, 2, 3, 3)]]


def test_two_steps_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([2.0]))
    net = nn.ParameterDict({"weight": weight, "bias": bias})
    settings = {"lr": {"start": 0.5, "end": None}, "weight_decay": 0.1, "eta": 0.01}
    optimizer = build(net, **settings)
    # weight: d = (0.7, 0.4) + 0.1 (3, 4) = (1, 0.8), |w| = 5, |d| = 1.2806248, q = 0.05 / |d| = 0.03904344
    # w = (3, 4) - 0.5 q d; bias, one-dimensional: no decay, q = 1: 2 - 0.5 * 0.5
    weight.grad, bias.grad = torch.tensor([[0.7, 0.4]]), torch.tensor([0.5])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[2.98047828, 3.98438262]]))
    torch.testing.assert_close(bias.data, torch.tensor([1.75]))
    # weight: d = (-0.2, 0) + 0.1 w = (0.09804783, 0.39843826), |w| = 4.975797, |d| = 0.41032478,
    # q = 0.12126484, mu = 0.9 (0.03904344, 0.03123475) + q d = (0.04702886, 0.07642791), w -= 0.5 mu
    # bias: mu = 0.9 * 0.5 - 1 = -0.55, 1.75 + 0.275
    weight.grad, bias.grad = torch.tensor([[-0.2, 0.0]]), torch.tensor([-1.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[2.95696385, 3.94616866]]))
    torch.testing.assert_close(bias.data, torch.tensor([2.025]))


@pytest.mark.parametrize(
    ("variant", "weights", "biases"),
    [
        # w = 2 with gradients 1, -0.5, 0.25 at rates 1, 0.5, 0.1; decay 0.1, eta 0.1, momentum 0.5. Here q d is 0.1 |w|
        # with the sign of d: 0.2, -0.18, 0.184; mu = 0.2, -0.08, 0.144. Bias: mu = 1, 0, 0.25.
        (VARIANTS[0], [1.8, 1.84, 1.8256], [0.0, 0.0, -0.025]),
        # q d = 0.2, -0.18, 0.179; v = 0.2, 0.1 - 0.09, 0.005 + 0.0179. Bias: v = 1, 0.25, 0.15.
        (VARIANTS[1], [1.8, 1.79, 1.7671], [0.0, -0.25, -0.4]),
        # Step 2: q = 0.18 / (0.5 + 0.18), q d = -0.0847059, mu = 0.0152941. Step 3: q d = 0.1792353, mu = 0.1868824.
        (VARIANTS[2], [1.8, 1.7923529, 1.7736647], [0.0, 0.0, -0.025]),
        # Step 2: q / lr = 0.5294118, mu = 0.1 - 0.1694118. Step 3: q / lr = 4.2 becomes 1, mu = -0.0347059 + 0.4334706.
        (VARIANTS[3], [1.8, 1.8347059, 1.7948294], [0.0, 0.0, -0.025]),
    ],
    ids=["rate outside", "rate inside", "sum of norms", "clipped"],
)
def test_variants_by_hand_while_the_rate_changes(variant, weights, biases):
    weight, bias = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.tensor([1.0]))
    net = nn.ParameterDict({"weight": weight, "bias": bias})
    optimizer = build(net, weight_decay=0.1, eta=0.1, momentum=0.5, **variant)
    for lr, grad, *expected in zip([1.0, 0.5, 0.1], [1.0, -0.5, 0.25], weights, biases, strict=True):
        weight.grad, bias.grad = torch.tensor([[grad]]), torch.tensor([grad])
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        assert [weight.item(), bias.item()] == pytest.approx(expected, abs=1e-6)


def test_the_rate_inside_the_momentum_matters_only_while_it_changes():
    outside, inside = random_parameters(), random_parameters()
    random_steps(LayerwiseSGD([{"params": outside, "weight_decay": 0.1}], lr=0.3), outside)
    random_steps(LayerwiseSGD([{"params": inside, "weight_decay": 0.1}], lr=0.3, **VARIANTS[1]), inside)
    torch.testing.assert_close(outside, inside)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("weight", "grad"), [((0.0, 0.0), (1.0, 2.0)), ((1.0, 2.0), (0.0, 0.0))])
def test_the_ratio_is_one_when_a_norm_is_zero(weight, grad, variant):
    parameter = nn.Parameter(torch.tensor([weight]))
    optimizer = LayerwiseSGD([{"params": [parameter]}], lr=0.1, **variant)
    parameter.grad = torch.tensor([grad])
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([weight]) - 0.1 * torch.tensor([grad]))


def test_the_sum_of_norms_decays_plainly_where_the_gradient_is_zero():
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = LayerwiseSGD([{"params": [parameter], "weight_decay": 0.5}], lr=0.1, **LARC)
    parameter.grad = torch.zeros(1, 1)
    optimizer.step()
    assert parameter.item() == pytest.approx(2 - 0.1 * 0.5 * 2)


def test_clipping_survives_a_rate_of_zero():
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = LayerwiseSGD([{"params": [parameter]}], lr=0.0, **VARIANTS[3])
    parameter.grad = torch.tensor([[3.0]])
    optimizer.step()
    assert parameter.item() == 2
    assert optimizer.state[parameter]["momentum_buffer"].item() == 3


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_without_adaptation_it_is_momentum_sgd(variant):
    mine, torchs = random_parameters(), random_parameters()
    groups = [{"params": mine, "adapt": False, "weight_decay": 0.1}]
    random_steps(LayerwiseSGD(groups, lr=0.3, **variant), mine)
    random_steps(torch.optim.SGD(torchs, lr=0.3, momentum=0.9, weight_decay=0.1), torchs)
    torch.testing.assert_close(mine, torchs)


def test_gradients_stay_as_they_are():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = LayerwiseSGD([{"params": [parameter], "weight_decay": 0.0}], lr=0.1)
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(parameter.grad, torch.ones(2, 2))

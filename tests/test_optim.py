from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.nn import functional as F

from akssl_core.config.schema import Schema, validate
from akssl_core.errors import ConfigError, RunDirError
from akssl_core.method import ParamRule
from akssl_core.optim import (
    LARS,
    SGD,
    AdamW,
    clip,
    drop_frozen,
    load_state_by_name,
    parameter_groups,
    set_group_values,
    state_by_name,
)
from akssl_core.schedule import Now
from akssl_core.settings import Clip

ALL = [SGD, AdamW, LARS]


class Net(nn.Module):
    """Two parts with matrices and vectors, and a third part that is not trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
        self.predictor = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 5))
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.backbone(torch.zeros(2, 2, 6, 6))

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """A loss in which every trained parameter takes part."""
        z = self.backbone(images)
        return F.mse_loss(self.predictor(z), z.detach().roll(1, 0))


def config(kind, **settings):
    return validate(kind.Config, settings, registry=None)


def groups(net, rules=(), kind=LARS, **settings):
    return parameter_groups(net, rules, config(kind, **settings))


def build(kind, net, rules=(), **settings):
    settings = config(kind, **settings)
    return kind(settings).build(parameter_groups(net, rules, settings)), settings


def train(net, optimizer, settings, steps, first=0):
    for step in range(first, first + steps):
        images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(step))
        set_group_values(optimizer, settings, Now(step, 4, 20), 8)
        net.loss(images).backward()
        drop_frozen(optimizer, Now(step, 4, 20))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# -- groups ---------------------------------------------------------------------------------------
def test_groups_hold_every_trainable_parameter_once_by_name():
    net = Net()
    named = {name: p for group in groups(net) for name, p in zip(group["names"], group["params"], strict=True)}
    assert named.keys() == {name for name, p in net.named_parameters() if p.requires_grad}
    assert all(named[name] is p for name, p in net.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("kind", "exempt"), [(SGD, False), (AdamW, True), (LARS, True)])
def test_one_dimensional_parameters_are_exempt_by_default_except_in_sgd(kind, exempt):
    plain = {
        n for g in groups(Net(), kind=kind) if g["weight_decay_factor"] == 0 and not g["adapt"] for n in g["names"]
    }
    vectors = {name for name, p in Net().named_parameters() if p.ndim == 1 and p.requires_grad}
    assert plain == (vectors if exempt else set())


def test_exempt_1d_can_be_set_either_way():
    assert len(groups(Net(), exempt_1d=False)) == 1
    assert len(groups(Net(), kind=SGD, exempt_1d=True)) == 2


def test_rules_combine():
    rules = [
        ParamRule("predictor.*", lr=0.5, weight_decay=0.5, frozen_epochs=1),
        ParamRule("*.0.weight", lr=0.1, weight_decay=0.5, fixed_lr=True, adapt=False),
        ParamRule("predictor.0.*", frozen_epochs=3),
    ]
    found = {name: group for group in groups(Net(), rules) for name in group["names"]}
    group = found["predictor.0.weight"]
    assert group["lr_factor"] == pytest.approx(0.05)
    assert group["weight_decay_factor"] == 0.25
    assert (group["fixed_lr"], group["adapt"], group["frozen_epochs"]) == (True, False, 3)
    assert found["predictor.1.weight"]["frozen_epochs"] == 1
    assert found["backbone.3.weight"]["lr_factor"] == 1


def test_a_rule_may_name_parameters_that_are_not_trained():
    assert len(groups(Net(), [ParamRule("teacher.*", lr=0.1)])) == 2


@pytest.mark.parametrize(
    ("match", "hint"),
    [
        ("predicter.*", " Did you mean 'predictor'?"),
        ("predictor.0.wieght", " Did you mean 'predictor.0.weight'?"),
        ("zzz.*", ""),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(match, hint):
    with pytest.raises(ConfigError) as error:
        groups(Net(), [ParamRule(match)])
    expected = f"ParamRule('{match}') matches no parameter of Net.{hint} Its parts: backbone, predictor, teacher."
    assert str(error.value) == expected


# -- values over time -----------------------------------------------------------------------------
def test_set_group_values():
    rules = [ParamRule("predictor.*", fixed_lr=True), ParamRule("backbone.0.*", lr=0.5, weight_decay=0.1)]
    optimizer, settings = build(SGD, Net(), rules, lr=0.4, weight_decay={"start": 0.1, "end": 0.3, "shape": "linear"})
    of = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert of["backbone.3.weight"]["lr"] == 0.4
    set_group_values(optimizer, settings, Now(5, 5, 10), 512)  # half-way: cosine 0.2, decay 0.2
    assert of["backbone.3.weight"]["lr"] == pytest.approx(0.2)
    assert of["backbone.3.weight"]["weight_decay"] == pytest.approx(0.2)
    assert of["backbone.0.weight"]["lr"] == pytest.approx(0.1)
    assert of["backbone.0.weight"]["weight_decay"] == pytest.approx(0.02)
    assert of["predictor.0.weight"]["lr"] == pytest.approx(0.4)


def test_lr_per_scales_with_the_batch_also_where_the_rate_is_fixed():
    optimizer, settings = build(SGD, Net(), [ParamRule("predictor.*", fixed_lr=True)], lr=0.1, lr_per=256)
    set_group_values(optimizer, settings, Now(0, 5, 10), 1024)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("kind", ALL)
def test_frozen_groups_stay_until_their_epoch(kind):
    net = Net()
    optimizer, settings = build(kind, net, [ParamRule("predictor.*", frozen_epochs=1)], lr=0.1)
    before = copy.deepcopy(net)
    train(net, optimizer, settings, 4)
    assert torch.equal(net.predictor[0].weight, before.predictor[0].weight)
    assert not torch.equal(net.backbone[0].weight, before.backbone[0].weight)
    train(net, optimizer, settings, 1, first=4)
    assert not torch.equal(net.predictor[0].weight, before.predictor[0].weight)


@pytest.mark.parametrize("kind", ALL)
def test_parameters_of_one_group_may_get_their_first_gradient_at_different_steps(kind):
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    net = nn.ParameterDict({"first": first, "second": second})
    optimizer, _ = build(kind, net)
    first.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(second, torch.ones(2, 2))
    second.grad = torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(second, torch.ones(2, 2))


# -- clipping -------------------------------------------------------------------------------------
def with_gradients(*norms: float) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.zeros(4)) for _ in norms]
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter.grad = torch.full((4,), norm / 2)
    names = [f"{'body' if i < 2 else 'head'}.{i}" for i in range(len(norms) + 1)]
    first = {"params": parameters[:1], "names": names[:1]}
    return torch.optim.SGD([first, {"params": [*parameters[1:], nn.Parameter(torch.zeros(1))], "names": names[1:]}])


def norms(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(p.grad.norm()) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Clip(norm=1.0), [0.6, 0.8]),
        (Clip(norm=10.0), [3.0, 4.0]),
        (Clip(norm=3.5, per="parameter"), [3.0, 3.5]),
        (Clip(norm=1.0, per="parameter"), [1.0, 1.0]),
        (None, [3.0, 4.0]),
    ],
    ids=str,
)
def test_clip(spec, expected):
    optimizer = with_gradients(3.0, 4.0)
    clip(optimizer, spec)
    assert norms(optimizer) == pytest.approx(expected, rel=1e-5)


def test_clip_by_network_limits_the_norm_of_each_part_by_itself():
    optimizer = with_gradients(3.0, 4.0, 12.0)  # of the body twice, then of a head
    clip(optimizer, Clip(norm=6.0, per="network"))
    assert norms(optimizer) == pytest.approx([3.0, 4.0, 6.0], rel=1e-5)
    clip(optimizer, Clip(norm=2.5, per="network"))
    assert norms(optimizer) == pytest.approx([1.5, 2.0, 2.5], rel=1e-5)


def test_clip_by_model_equals_torch():
    optimizer = with_gradients(3.0, 40.0, 0.1)
    reference = copy.deepcopy(optimizer)
    for group, copied in zip(optimizer.param_groups, reference.param_groups, strict=True):
        for p, q in zip(group["params"], copied["params"], strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
    clip(optimizer, Clip(norm=2.0))
    torch.nn.utils.clip_grad_norm_([p for g in reference.param_groups for p in g["params"]], 2.0)
    assert norms(optimizer) == norms(reference)


def test_clip_without_gradients_does_nothing():
    parameter = nn.Parameter(torch.ones(1))
    clip(torch.optim.SGD([{"params": [parameter], "names": ["weight"]}]), Clip(norm=0.1))
    assert parameter.item() == 1
    assert parameter.grad is None


# -- torch's optimizers ---------------------------------------------------------------------------
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_adamw_equals_the_plain_loop_of_torch(layout):
    nets = [Net().to(memory_format=layout) for _ in range(2)]
    optimizer, settings = build(AdamW, nets[0], lr=0.01, weight_decay=0.1, exempt_1d=False)
    plain = torch.optim.AdamW(groups(nets[1], kind=AdamW, exempt_1d=False), fused=False, foreach=False)
    train(nets[0], optimizer, settings, 3)
    train(nets[1], plain, settings, 3)
    for mine, torchs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("more", [{}, {"nesterov": True}, {"momentum": 0.0}], ids=str)
def test_sgd_equals_the_plain_loop_of_torch_though_some_parameters_start_late(layout, more):
    nets = [Net().to(memory_format=layout) for _ in range(2)]
    optimizer, settings = build(SGD, nets[0], lr=0.05, weight_decay=0.1, **more)
    plain = torch.optim.SGD(
        groups(nets[1], kind=SGD), momentum=settings.momentum, nesterov=settings.nesterov, fused=False, foreach=False
    )
    for net, of_net in ((nets[0], optimizer), (nets[1], plain)):
        late = next(net.parameters()).requires_grad_(False)
        train(net, of_net, settings, 2)
        late.requires_grad_(True)
        train(net, of_net, settings, 2, first=2)
    for mine, torchs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("kind", ALL)
def test_training_is_deterministic(kind):
    nets = [Net(), Net()]
    for net in nets:
        train(net, *build(kind, net), 3)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_nesterov_and_betas_reach_torch():
    assert build(SGD, Net(), nesterov=True, momentum=0.8)[0].defaults["nesterov"]
    assert build(AdamW, Net(), betas=[0.9, 0.95])[0].defaults["betas"] == (0.9, 0.95)


@pytest.fixture
def mesh():
    """This process as a group of its own, over which parameters are shared out."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize(("kind", "fused"), [(SGD, None), (AdamW, True), (LARS, None)])
@pytest.mark.parametrize("per", ["model", "network", "parameter"])
def test_shares_of_parameters_are_trained_like_whole_ones(mesh, kind, fused, per):
    weights = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    whole = nn.ParameterList(nn.Parameter(weight.clone()) for weight in weights)
    shared = nn.ParameterList(nn.Parameter(distribute_tensor(weight.clone(), mesh)) for weight in weights)
    optimizers = [build(kind, net)[0] for net in (whole, shared)]
    assert optimizers[1].defaults.get("fused") is fused
    for step in range(2):
        grads = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1 + step))
        for mine, other, grad in zip(whole, shared, grads, strict=True):
            mine.grad, other.grad = grad.clone(), distribute_tensor(grad.clone(), mesh)
        for optimizer in optimizers:
            clip(optimizer, Clip(norm=1.0, per=per))
            optimizer.step()
    for mine, other in zip(whole, shared, strict=True):
        torch.testing.assert_close(other.full_tensor(), mine)


# -- state by name --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_state_by_name_continues_bit_for_bit_with_groups_in_another_order(kind, layout):
    net = Net().to(memory_format=layout)
    optimizer, settings = build(kind, net)
    train(net, optimizer, settings, 3)
    state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state_by_name(optimizer).items()}
    other = copy.deepcopy(net)
    resumed = kind(settings).build(parameter_groups(other, (), settings)[::-1])
    load_state_by_name(resumed, state)
    train(net, optimizer, settings, 2, first=3)
    train(other, resumed, settings, 2, first=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert state_by_name(resumed).keys() == state.keys()


def test_state_is_flat_and_loading_copies_it():
    net = Net()
    optimizer, settings = build(AdamW, net)
    train(net, optimizer, settings, 1)
    state = state_by_name(optimizer)
    assert {key for key in state if key.startswith("predictor.0.weight/")} == {
        f"predictor.0.weight/{part}" for part in ("step", "exp_avg", "exp_avg_sq")
    }
    load_state_by_name(optimizer, state)
    before = {key: value.clone() for key, value in state.items()}
    train(net, optimizer, settings, 1, first=1)
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_state_of_another_network_is_refused():
    optimizer, _ = build(SGD, Net())
    with pytest.raises(RunDirError) as error:
        load_state_by_name(optimizer, {"predictor.0.wait/momentum_buffer": torch.zeros(3, 5)})
    assert str(error.value) == (
        "the checkpoint's optimizer trains 'predictor.0.wait', which this run does not. "
        "Did you mean 'predictor.0.weight'?"
    )


# -- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ALL)
def test_settings_survive_a_round_trip(kind):
    settings = config(kind, lr=0.2, weight_decay={"start": 0.04, "end": 0.4}, lr_per=256)
    assert config(kind, **settings.model_dump(mode="json")) == settings
    assert settings.lr.end == 0.0
    assert isinstance(settings, Schema)


def test_registers_its_optimizers():
    from akssl_core.optim import akssl_register

    class Names(list):
        add = list.append

    names = Names()
    akssl_register(registry=names)
    assert [component.name for component in names] == ["sgd", "adamw", "lars"]

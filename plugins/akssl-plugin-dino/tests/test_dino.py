"""DINO's step, teacher, centre and frozen layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from akssl_plugin_dino import DINO
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Callback, Method, Now, Schema, Views
from akssl_core.nn import std_ratio
from akssl_core.testing import ToyBackbone, optimizer_of, toy_batch, train

NOW = Now(0, 10, 100)
TINY = {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 32}
TINY_RUN: dict[str, Any] = {
    "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]},
    "augmentation": {"name": "multicrop", "local_count": 2},
    "optimizer": {"name": "sgd", "lr": {"start": 0.1, "warmup": 0}},
    "precision": "fp32",
    "batch_size": 16,
}


def make(**settings: Any) -> DINO:
    torch.manual_seed(0)
    backbone = ToyBackbone()
    backbone.drop = nn.Dropout(0.0)
    method = akssl_core.build("method", "dino", backbone, **{**TINY, **settings})
    assert isinstance(method, DINO)
    return method


def batch(size: int = 6, local: int = 3) -> Batch:
    return toy_batch(size, local=local)


def apart(method: DINO) -> DINO:
    """The method with a teacher that is not the student."""
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return method


def trained(callbacks: Sequence[Callback], **settings: Any) -> Method:
    """DINO after a run over 64 noisy images."""
    pixels = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {**TINY, "freeze_last_layer_epochs": 0, **settings.pop("options", {})}
    return train("dino", callbacks, **{**TINY_RUN, "data": pixels, "options": options, "epochs": 2, **settings})


class Watch(Callback):
    """Remembers teacher and head at the start, and the head after each step."""

    name = "watch"

    def __init__(self) -> None:
        super().__init__(Schema())
        self.rows: list[dict[str, Tensor]] = []

    def on_start(self, engine: Any) -> None:
        self.teacher = {name: p.detach().clone() for name, p in engine.method.teacher.named_parameters()}
        self.head = {name: p.detach().clone() for name, p in engine.method.head.named_parameters()}

    def on_step(self, engine: Any, terms: Any) -> None:
        self.rows.append({name: p.detach().clone() for name, p in engine.method.head.named_parameters()})


# -- one step -------------------------------------------------------------------------------------
@pytest.mark.parametrize("local", [0, 3])
def test_step_is_the_loss_of_the_paper_over_all_crops(local: int) -> None:
    method, b = apart(make(teacher_temperature=0.05)), batch(local=local)
    method.center.value.copy_(0.1 * torch.randn(32))
    reference = copy.deepcopy(method)
    out = method.step(b, NOW)
    groups = [torch.cat(views) for views in b.views.values()]
    rows = torch.cat([reference.backbone(images) for images in groups])
    student = reference.head(rows).split(6)
    teacher = reference.teacher.head(reference.teacher.backbone(groups[0])).split(6)
    targets = [F.softmax((t - reference.center.value) / 0.05, 1) for t in teacher]
    terms = [F.cross_entropy(s / 0.1, p) for u, p in enumerate(targets) for v, s in enumerate(student) if u != v]
    assert len(terms) == 2 * (2 + local - 1)
    assert out["loss"].item() == pytest.approx((sum(terms) / len(terms)).item(), abs=1e-5)
    z = reference.head.project(rows)[:6]
    assert out["z_std_ratio"].item() == pytest.approx(std_ratio(z).item(), abs=1e-5)


def test_crops_of_one_size_share_a_forward_pass_and_the_teacher_sees_global_ones_alone() -> None:
    method = make()
    method.step(batch(6, local=3), NOW)
    assert method.backbone.seen == [(12, 8), (18, 4)]
    assert method.teacher.backbone.seen == [(12, 8)]


def test_all_crops_share_the_batch_norms_of_the_head() -> None:
    method = make(head_batch_norm=True)
    sizes: list[int] = []
    norm = next(layer for layer in method.head.mlp if isinstance(layer, nn.BatchNorm1d))
    norm.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    method.step(batch(6, local=3), NOW)
    assert sizes == [30]


def test_order_of_the_groups_of_views_decides_nothing() -> None:
    method, b = apart(make()), batch()
    turned = Views({"local": b.views["local"], "global": b.views["global"]})
    expected = method.step(b, NOW)["loss"].item()
    assert method.step(Batch(turned, b.index), NOW)["loss"].item() == pytest.approx(expected, abs=1e-6)


def test_swapping_global_or_local_views_changes_nothing_and_changing_any_view_does() -> None:
    method, b = apart(make()), batch()
    large, small = b.views["global"], b.views["local"]

    def loss(large: list[Tensor], small: list[Tensor]) -> float:
        return method.step(Batch(Views({"global": large, "local": small}), b.index), NOW)["loss"].item()

    expected = loss(large, small)
    assert loss(large[::-1], small) == pytest.approx(expected, abs=1e-6)
    assert loss(large, small[::-1]) == pytest.approx(expected, abs=1e-6)
    for i in range(2):
        assert loss(
            [x + 3 * torch.randn_like(x) if i == j else x for j, x in enumerate(large)], small
        ) != pytest.approx(expected, abs=1e-4)
    for i in range(3):
        assert loss(
            large, [x + 3 * torch.randn_like(x) if i == j else x for j, x in enumerate(small)]
        ) != pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_student_is_trained_and_the_teacher_is_not(norm_last_layer: bool) -> None:
    method = apart(make(norm_last_layer=norm_last_layer))
    method.step(batch(), NOW)["loss"].backward()
    names = {name for name, _ in method.named_parameters()}
    assert ("head.last.gain" in names) == (not norm_last_layer)
    for name, parameter in method.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_untrained_logits_are_cosines_and_the_first_loss_is_about_log_k() -> None:
    method = make(hidden_dim=64, bottleneck_dim=256, out_dim=4096)
    assert method.step(batch(16), NOW)["loss"].item() == pytest.approx(math.log(4096), abs=1)
    assert method.head(method.backbone(batch().views["global"][0])).abs().max() <= 1 + 1e-6


def test_teacher_temperature_follows_its_schedule_by_the_epoch() -> None:
    """0.04 to 0.07 over 30 epochs unless set; the loss sees the value of the epoch's first step."""
    method, seen = make(), []
    method.loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    for step in (0, 9, 150, 155, 300, 900):
        method.step(batch(), Now(step, 10, 1000))
    assert seen == pytest.approx([0.04, 0.04, 0.055, 0.055, 0.07, 0.07])


# -- the centre -----------------------------------------------------------------------------------
def test_loss_uses_the_old_centre_which_then_moves_by_the_mean_of_raw_targets() -> None:
    method, b = apart(make()), batch()
    old = torch.linspace(-1, 1, 32)
    method.center.value.copy_(old)
    reference = copy.deepcopy(method)
    method.step(b, NOW)
    assert torch.equal(method.center.value, old), "it moves after the step"
    method.center.after_step(NOW)
    targets = reference.teacher.head(reference.teacher.backbone(torch.cat(b.views["global"])))
    torch.testing.assert_close(method.center.value, 0.9 * old + 0.1 * targets.mean(0), rtol=1e-5, atol=1e-6)


def test_centre_and_teacher_stay_in_eval_mode_and_under_feature_extraction() -> None:
    method = make().eval()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        method.encoder(batch().views["global"][0])
        method.step(batch(), NOW)
    method.center.after_step(NOW)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_constant_on_the_teachers_targets_is_absorbed_as_the_centre_converges() -> None:
    """A bias towards one output, which no input causes, does not change the loss once the centre has followed."""

    def settled(bias: Tensor) -> float:
        method, b = apart(make(teacher_temperature=0.05, center_momentum=0.5)), batch()
        method.teacher.head.register_forward_hook(lambda module, inputs, output: output + bias)
        for _ in range(30):
            loss = method.step(b, NOW)["loss"].item()
            method.center.after_step(NOW)
        return loss

    assert settled(torch.eye(32)[3] * 5) == pytest.approx(settled(torch.zeros(32)), abs=1e-4)


# -- the teacher ----------------------------------------------------------------------------------
def test_teacher_starts_as_the_student_and_without_dropout() -> None:
    method = make()
    for name, value in method.teacher.named_parameters():
        assert torch.equal(value, method.get_parameter(name)), name
    method.train()
    assert method.backbone.drop.training
    assert not method.teacher.backbone.drop.training
    assert method.teacher.backbone.bn.training


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_teacher_is_the_moving_average_of_the_student_after_each_step(momentum: float) -> None:
    watch = Watch()
    method = trained([watch], train={"steps": 1}, options={"momentum": momentum})
    before, moved = watch.teacher, 0
    for name, slow in method.teacher.named_parameters():
        fast = method.get_parameter(name)
        moved += not torch.equal(fast, before[name])
        torch.testing.assert_close(slow, momentum * before[name] + (1 - momentum) * fast, rtol=1e-6, atol=1e-7)
    assert moved == len(before), "every parameter of the student has moved"


def test_momentum_rises_to_one_along_a_cosine() -> None:
    momentum = make().teacher.momentum
    values = [momentum(Now(step, 10, 1000)) for step in (0, 250, 500, 750, 1000)]
    assert values == pytest.approx([0.996, 0.996586, 0.998, 0.999414, 1.0], abs=1e-6)


def test_the_teachers_backbone_is_probed_and_exported(tmp_path: Any) -> None:
    method = make()
    assert method.encoder is method.teacher.backbone
    pixels = torch.randint(0, 256, (64, 3, 16, 16)).to(torch.uint8)
    result = akssl_core.run(
        method="dino", data=pixels, epochs=1, out=tmp_path / "run", report=False, options=TINY, **TINY_RUN
    )
    assert math.isfinite(result.metrics["loss"])
    assert 0 <= result.history[-1]["z_std_ratio"] < 1.5
    from safetensors.torch import load_file

    file = sorted((tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    saved = {key: value for path in file for key, value in load_file(path).items()}
    exported = result.backbone.state_dict()
    weight = next(name for name, _ in result.backbone.named_parameters())
    teacher, student = (next(v for k, v in saved.items() if k.endswith(p + weight)) for p in ("teacher.backbone.", ""))
    assert torch.equal(exported[weight], teacher)
    assert not torch.equal(exported[weight], student)


# -- what is trained when -------------------------------------------------------------------------
def test_last_layer_is_frozen_in_the_first_epoch_and_nothing_else_is() -> None:
    settings = {"freeze_last_layer_epochs": 1, "norm_last_layer": False}
    watch = Watch()
    trained([watch], options=settings, optimizer={"name": "adamw", "lr": {"start": 0.01, "warmup": 0}})
    start = watch.head
    assert len(watch.rows) == 8
    for step, row in enumerate(watch.rows):
        for name, value in row.items():
            still = name.startswith("last.") and step < 4
            assert torch.equal(value, start[name]) == still, (step, name)


def test_groups_of_parameters() -> None:
    """Biases and norms are not decayed; the last layer, direction and gain, is a group that starts frozen."""
    method = make(norm_last_layer=False, freeze_last_layer_epochs=2, head_batch_norm=True)
    groups = optimizer_of(method, weight_decay=0.04, exempt_1d=True).param_groups
    frozen = [group for group in groups if group["frozen_epochs"]]
    assert [(group["frozen_epochs"], sorted(group["names"])) for group in frozen] == [
        (2.0, ["head.last.direction", "head.last.gain"])
    ]
    exempt = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    expected = {n for n, p in method.named_parameters() if p.ndim == 1 and not n.startswith("teacher.")}
    assert exempt == expected
    assert not any(name.startswith("teacher.") for group in groups for name in group["names"])


# -- state ----------------------------------------------------------------------------------------
def test_building_the_method_leaves_the_backbone_as_it_was() -> None:
    backbone = ToyBackbone()
    before = copy.deepcopy(backbone.state_dict())
    akssl_core.build("method", "dino", backbone, **TINY)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_state_is_complete_and_going_on_from_it_gives_the_same_numbers() -> None:
    """The teacher and the centre are part of the method's state, so a run that goes on keeps them."""
    method, b = apart(make()), batch()
    method.step(b, NOW)
    for part in (method.center, method.teacher):
        part.after_step(NOW)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    assert state["center.value"].abs().max() > 0
    assert any(name.startswith("teacher.head.last") for name in state)
    other = make()
    other.load_state_dict(state)
    for _ in range(3):
        assert torch.equal(other.step(b, NOW)["loss"], method.step(b, NOW)["loss"])
        for m in (method, other):
            m.center.after_step(NOW)
            m.teacher.after_step(NOW)
    assert torch.equal(other.center.value, method.center.value)

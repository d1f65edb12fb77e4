"""iBOT's step, masks, teacher and centres against arXiv 2111.07832 and the authors' code."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from akssl_plugin_ibot import IBOT
from torch import Tensor
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Features, ImageSpec, Now, Views
from akssl_core.nn import std_ratio
from akssl_core.testing import optimizer_of, toy_batch

NOW = Now(0, 10, 100)
IMAGE = ImageSpec(32, 3, (0.5,) * 3, (0.25,) * 3)
SMALL = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
HEADS = {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 12}


def make(*, backbone: dict[str, Any] | None = None, **settings: Any) -> IBOT:
    torch.manual_seed(0)
    network = akssl_core.build("backbone", "vit_tiny", IMAGE, **{**SMALL, **(backbone or {})})
    method = akssl_core.build("method", "ibot", network, **{**HEADS, **settings})
    assert isinstance(method, IBOT)
    return method


def apart(method: IBOT) -> IBOT:
    """The method with a teacher that is not the student, a mask token and centres that are not zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*method.teacher.parameters(), method.mask_token):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for center in (method.center, method.patch_center):
            center.value.copy_(0.1 * torch.randn(12, generator=generator))
    return method


def batch(images: int = 6, local: int = 2, step: int = 0) -> Batch:
    views = toy_batch(images, size=32, local=local, local_size=16).views
    return Batch(views, torch.arange(images), step=step)


def trained(method: Any, b: Batch) -> dict[str, Tensor]:
    """One step of plain gradient descent, after which teacher and centres move."""
    method.zero_grad()
    terms: dict[str, Tensor] = method.step(b, NOW)
    terms["loss"].backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    for slow in (method.teacher, method.center):
        slow.after_step(NOW)
    return terms


def states(method: Any) -> dict[str, Tensor]:
    """What DINO has too, by its names."""
    names = {name: name.replace("heads.whole.", "head.") for name in method.state_dict()}
    own = ("mask_token", "patch_center", "heads.patch", "teacher.heads.patch")
    return {names[name]: value for name, value in method.state_dict().items() if not name.startswith(own)}


def masks(method: IBOT, b: Batch) -> Tensor:
    return method.masked(b, (8, 8))[0]


def features(module: Any, act: Any) -> list[tuple[Tensor, dict[str, Any], Features]]:
    """The calls of `features` of a backbone while something is done: images, keywords and what comes out."""
    found, own = [], module.features

    def kept(images: Tensor, **named: Any) -> Features:
        found.append((images, named, own(images, **named)))
        return found[-1][2]

    module.features = kept
    act()
    module.features = own
    return found


# -- the step -------------------------------------------------------------------------------------
@pytest.mark.parametrize("shared_head", [True, False])
@pytest.mark.parametrize("local", [0, 3])
def test_the_loss_is_that_of_the_paper_crop_by_crop(local: int, shared_head: bool) -> None:
    settings = {"teacher_temperature": 0.05, "patch_temperature": 0.06, "patch_weight": 0.7}
    method, b = apart(make(shared_head=shared_head, **settings)), batch(local=local)
    mask, reference = masks(method, b), copy.deepcopy(method)
    terms = method.step(b, NOW)
    large, small = b.views["global"], b.views.get("local", [])
    own = "whole" if shared_head else "patch"

    def student(x: Tensor, hide: Tensor | None) -> tuple[Tensor, Tensor]:
        token = None if hide is None else reference.mask_token[0]
        seen = reference.backbone.features(x, mask=hide, token=token)
        return reference.heads["whole"](seen.cls) / 0.1, reference.heads[own](seen.patches.flatten(0, 1)) / 0.1

    def teacher(x: Tensor) -> tuple[Tensor, Tensor]:
        seen = reference.teacher.backbone.features(x)
        whole = reference.teacher.heads["whole"](seen.cls) - reference.center.value
        patches = reference.teacher.heads[own](seen.patches.flatten(0, 1)) - reference.patch_center.value
        return F.softmax(whole / 0.05, 1), F.softmax(patches / 0.06, 1)

    hidden = mask.chunk(2)
    says = [student(x, hide) for x, hide in zip(large, hidden, strict=True)] + [student(x, None) for x in small]
    wants = [teacher(x) for x in large]
    pairs = [F.cross_entropy(s[0], t[0]) for u, t in enumerate(wants) for v, s in enumerate(says) if u != v]
    assert len(pairs) == 2 * (1 + local)
    cls = torch.stack(pairs).mean()
    crops = []
    for v, hide in enumerate(hidden):
        costs = F.cross_entropy(says[v][1], wants[v][1], reduction="none").reshape(6, 64)
        crops += [costs[i][hide[i]].sum() / max(int(hide[i].sum()), 1) for i in range(6)]
    patch = torch.stack(crops).mean()
    assert terms["cls_loss"].item() == pytest.approx(cls.item(), abs=1e-5)
    assert terms["patch_loss"].item() == pytest.approx(patch.item(), abs=1e-5)
    assert terms["loss"].item() == pytest.approx((cls + 0.7 * patch).item(), abs=1e-5)
    assert patch.item() > 0


def test_terms_tell_what_the_teacher_says_and_whether_the_student_agrees() -> None:
    method, b = apart(make(teacher_temperature=0.05, patch_temperature=0.06)), batch()
    mask, reference = masks(method, b), copy.deepcopy(method)
    terms = method.step(b, NOW)
    large = torch.cat(b.views["global"])
    seen = reference.backbone.features(large, mask=mask, token=reference.mask_token[0])
    whole = reference.teacher.backbone.features(large)
    says = F.softmax((reference.teacher.heads["whole"](whole.cls) - reference.center.value) / 0.05, 1)
    assert terms["teacher_entropy"].item() == pytest.approx((-(says * says.log()).sum(1).mean()).item(), abs=1e-5)
    z = reference.heads["whole"].project(seen.cls)[:6]
    assert terms["z_std_ratio"].item() == pytest.approx(std_ratio(z).item(), abs=1e-5)
    spread = torch.stack([std_ratio(one) for one in whole.patches]).mean()
    assert terms["patch_std"].item() == pytest.approx(spread.item(), abs=1e-5)
    entropies, agreements = [], []
    for i in range(12):
        if mask[i].any():
            t = reference.teacher.heads["whole"](whole.patches[i][mask[i]]) - reference.patch_center.value
            p = F.softmax(t / 0.06, 1)
            entropies.append(-(p * p.log()).sum(1).mean())
            s = reference.heads["whole"](seen.patches[i][mask[i]])
            agreements.append((s.argmax(1) == t.argmax(1)).float().mean())
    assert terms["patch_entropy"].item() == pytest.approx(torch.stack(entropies).mean().item(), abs=1e-5)
    assert terms["patch_agreement"].item() == pytest.approx(torch.stack(agreements).mean().item(), abs=1e-5)
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


def test_the_student_sees_the_mask_token_and_the_teacher_everything() -> None:
    """Other pixels under the masks change nothing that the student says, and what the teacher says."""
    method, b = apart(make()), batch()
    mask = masks(method, b)
    pixels = mask.reshape(12, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    large = torch.where(pixels, noise, torch.cat(b.views["global"])).chunk(2)
    other = Batch(Views({"global": list(large), "local": b.views["local"]}), b.index)
    student, teacher = (
        [features(of(method), lambda b=b: method.step(b, NOW)) for b in (b, other)]
        for of in (lambda m: m.backbone, lambda m: m.teacher.backbone)
    )
    assert torch.equal(student[0][0][2].patches, student[1][0][2].patches)
    assert torch.equal(student[0][0][2].cls, student[1][0][2].cls)
    assert (teacher[0][0][2].patches - teacher[1][0][2].patches).abs().max() > 1e-3
    assert method.step(b, NOW)["patch_loss"].item() != method.step(other, NOW)["patch_loss"].item()


def test_crops_of_one_size_share_a_forward_pass_and_only_the_students_global_ones_are_masked() -> None:
    method, b = make(), batch(local=3)
    student = features(method.backbone, lambda: method.step(b, NOW))
    assert [(tuple(x.shape[::3]), sorted(named)) for x, named, _ in student] == [
        ((12, 32), ["mask", "token"]),
        ((18, 16), []),
    ]
    assert torch.equal(student[0][1]["mask"], masks(method, b))
    teacher = features(method.teacher.backbone, lambda: method.step(b, NOW))
    assert [(len(x), named) for x, named, _ in teacher] == [(12, {})]


def test_only_hidden_patches_are_asked_for() -> None:
    method, b = make(), batch()

    def act() -> None:
        seen = method.backbone.features
        method.backbone.features = lambda *a, **k: _retained(seen(*a, **k))
        method.step(b, NOW)["loss"].backward()

    (_, _, large), _ = features(method.backbone, act)
    assert large.patches is not None
    assert large.patches.grad is not None
    assert torch.equal(large.patches.grad.abs().sum(2) > 0, masks(method, b))


def _retained(found: Features) -> Features:
    assert found.patches is not None
    found.patches.retain_grad()
    return found


@pytest.mark.parametrize("settings", [{}, {"shared_head": False, "norm_last_layer": False}])
def test_student_and_mask_token_are_trained_and_the_teacher_is_not(settings: dict[str, Any]) -> None:
    method = apart(make(**settings))
    method.step(batch(), NOW)["loss"].backward()
    for name, parameter in method.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    assert "mask_token" in dict(method.named_parameters())
    assert not any("mask_token" in name for name in method.teacher.state_dict())


def test_a_step_without_a_mask_is_one_of_crops_alone() -> None:
    method, b = apart(make(mask_chance=1e-9)), batch()
    assert not masks(method, b).any()
    terms = method.step(b, NOW)
    terms["loss"].backward()
    assert terms["loss"].item() == terms["cls_loss"].item()
    assert [terms[name].item() for name in ("patch_loss", "patch_entropy", "patch_agreement")] == [0, 0, 0]
    assert method.mask_token.grad is not None
    assert not method.mask_token.grad.any()


def test_without_masks_and_a_loss_on_patches_it_is_dino() -> None:
    """Five steps of both: losses, gradients and slow state are equal to the bit."""
    pytest.importorskip("akssl_plugin_dino", reason="the plugin beside which iBOT is held is not installed")
    shared: dict[str, Any] = {**HEADS, "head_init_std": None, "momentum": 0.9, "teacher_temperature": 0.06}
    method, b = make(shared_head=False, mask_chance=1e-9, patch_weight=0.0, **shared), batch()
    torch.manual_seed(0)
    dino: Any = akssl_core.build("method", "dino", akssl_core.build("backbone", "vit_tiny", IMAGE, **SMALL), **shared)
    assert states(method).keys() == states(dino).keys()
    for _ in range(5):
        terms = [trained(one, b) for one in (method, dino)]
        assert terms[0]["loss"].item() == terms[1]["loss"].item()
        assert terms[0]["teacher_entropy"].item() == terms[1]["teacher_entropy"].item()
        ours, theirs = states(method), states(dino)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_untrained_losses_are_log_k_and_its_share_of_masked_crops() -> None:
    method, b = make(hidden_dim=64, bottleneck_dim=256, out_dim=4096), batch(16)
    share, terms = masks(method, b).any(1).float().mean().item(), method.step(b, NOW)
    assert terms["cls_loss"].item() == pytest.approx(math.log(4096), abs=1)
    assert terms["patch_loss"].item() == pytest.approx(share * math.log(4096), abs=1)


@pytest.mark.parametrize(
    "backbone",
    [{"class_token": False, "pool": "mean"}, {"pool": "both"}, {"pool": "mean"}, {"registers": 2}, {"drop_path": 0.2}],
)
def test_other_backbones_train(backbone: dict[str, Any]) -> None:
    method = make(backbone=backbone)
    terms = method.step(batch(), NOW)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for name, p in method.named_parameters() if not name.startswith("teacher."))


def test_one_batch_and_its_masks_can_be_learnt() -> None:
    """With a teacher that stays, both terms fall."""
    method, b = apart(make(momentum=1.0, norm_last_layer=False)), batch()
    optimizer, found = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        terms = method.step(b, NOW)
        terms["loss"].backward()
        optimizer.step()
        found.append((terms["cls_loss"].item(), terms["patch_loss"].item()))
    assert found[-1][0] < 0.8 * found[0][0]
    assert found[-1][1] < 0.8 * found[0][1]


# -- masks ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", ["block", "random"])
def test_masks_follow_from_seed_step_image_and_view(shape: str) -> None:
    method, whole = make(mask_shape=shape), batch(40, step=3)
    mask = masks(method, whole)
    first, second = mask.chunk(2)
    assert torch.equal(masks(method, whole.part(2, 5)), torch.cat([first[2:5], second[2:5]]))
    assert not torch.equal(first, second)
    assert not torch.equal(masks(method, batch(40, step=4)), mask)
    assert torch.equal(masks(method, whole), mask)


@pytest.mark.parametrize(("shape", "share"), [("block", 0.28), ("random", 0.29)])
def test_half_of_the_crops_hide_a_tenth_to_a_half_of_their_patches(shape: str, share: float) -> None:
    found = masks(make(mask_shape=shape), batch(1000, local=0)).float().mean(1)
    assert (found > 0).float().mean().item() == pytest.approx(0.5, abs=3 * 0.5 / 2000**0.5)
    assert found.max() <= 0.5
    assert found[found > 0].mean().item() == pytest.approx(share, abs=0.02)
    few = masks(make(mask_shape=shape, mask_chance=1.0, mask_ratio=[0.25, 0.25]), batch(200, local=0)).sum(1)
    assert few.max() == 16
    assert (few >= (12 if shape == "block" else 16)).all()


def test_rows_are_those_of_the_masks_and_weigh_crops_alike() -> None:
    mask, rows, weights = make().masked(batch(), (8, 8))
    assert torch.equal(rows, mask.flatten().nonzero().squeeze(1))
    assert weights.sum().item() == pytest.approx(mask.any(1).sum().item())


# -- centres and teacher --------------------------------------------------------------------------
def test_centres_move_after_the_step_by_class_tokens_and_by_all_patches() -> None:
    method, b = apart(make(shared_head=False, norm_last_layer=False)), batch()
    for center in (method.center, method.patch_center):
        center.value.zero_()
    reference = copy.deepcopy(method)
    method.step(b, NOW)
    assert not method.center.value.any(), "it moves after the step"
    for center in (method.center, method.patch_center):
        center.after_step(NOW)
    seen = reference.teacher.backbone.features(torch.cat(b.views["global"]))
    whole, patches = (
        reference.teacher.heads[name](x) for name, x in {"whole": seen.cls, "patch": seen.patches.flatten(0, 1)}.items()
    )
    torch.testing.assert_close(method.center.value, 0.1 * whole.mean(0))
    torch.testing.assert_close(method.patch_center.value, 0.1 * patches.mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(method.center.value, method.patch_center.value)


def test_the_teachers_backbone_is_exported_and_follows_along_a_cosine() -> None:
    method = make()
    assert method.encoder is method.teacher.backbone
    values = [method.teacher.momentum(Now(step, 10, 1000)) for step in (0, 500, 1000)]
    assert values == pytest.approx([0.996, 0.998, 1.0])
    before = copy.deepcopy(method.teacher.heads["whole"].last.direction)
    with torch.no_grad():
        method.heads["whole"].last.direction.add_(1.0)
    method.teacher.after_step(Now(500, 10, 1000))
    torch.testing.assert_close(method.teacher.heads["whole"].last.direction, before + 0.002)


def test_stochastic_depth_is_the_students_alone() -> None:
    method = make(backbone={"drop_path": 0.1}).train()
    assert all(block.drop_path.training for block in method.backbone.blocks)
    assert not any(block.drop_path.training for block in method.teacher.backbone.blocks)


@pytest.mark.parametrize("term", ["loss", "patch_loss"])
def test_teacher_temperatures_follow_their_schedules_by_the_epoch(term: str) -> None:
    name = "teacher_temperature" if term == "loss" else "patch_temperature"
    method, seen = make(**{name: {"start": 0.05, "end": 0.08, "shape": "linear", "over": 30, "per": "epoch"}}), []
    getattr(method, term).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[-1]))
    for step in (0, 9, 150, 900):
        method.step(batch(2), Now(step, 10, 1000))
    assert seen == pytest.approx([0.05, 0.05, 0.065, 0.08])


def test_the_weight_of_the_patches_may_begin_later() -> None:
    method, b = make(patch_weight={"start": 1.0, "warmup": 2}), batch()
    terms = [method.step(b, Now(step, 10, 100)) for step in (0, 10, 20)]
    shares = [((t["loss"] - t["cls_loss"]) / t["patch_loss"]).item() for t in terms]
    assert shares == pytest.approx([0.0, 0.5, 1.0], abs=1e-5)


# -- what is trained, and what is shown ------------------------------------------------------------
def test_mask_token_and_positions_are_decayed_and_biases_are_not() -> None:
    method = make()
    groups = optimizer_of(method, "adamw", weight_decay=0.04, exempt_1d=True).param_groups
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert {"mask_token", "backbone.pos_embed", "backbone.cls_token"} <= decayed
    assert not any(name.endswith("bias") or name.startswith("teacher.") for name in decayed)


def test_pictures_are_crops_and_what_the_student_sees() -> None:
    method, b = make(mask_chance=1.0), batch()
    pictures = method.artefacts(b, NOW).pictures
    assert list(pictures) == ["global crop", "as the student sees it"]
    crop, seen = (
        p.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) for p in pictures.values()
    )
    mask = masks(method, b)[:6]
    assert mask.any()
    assert (seen[mask] == 0.5).all()
    assert torch.equal(seen[~mask], crop[~mask])

"""DINOv2's step, masks, targets, teacher and what is trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_dinov2 import DINOv2, mean_row
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Features, ImageSpec, Now, Views
from akssl_core.nn import entropy, patch_std, sinkhorn, std_ratio
from akssl_core.testing import drop_frozen, optimizer_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
IMAGE = ImageSpec(32, 3, (0.5,) * 3, (0.25,) * 3)
SMALL: dict[str, Any] = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
TINY: dict[str, Any] = {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 32, "patch_out_dim": 24, "head_layers": 2}


def make(*, backbone: dict[str, Any] | None = None, **settings: Any) -> DINOv2:
    torch.manual_seed(0)
    network = akssl_core.build("backbone", "vit_tiny", IMAGE, **{**SMALL, **(backbone or {})})
    method = akssl_core.build("method", "dinov2", network, **{**TINY, "head_init_std": None, **settings})
    assert isinstance(method, DINOv2)
    return apart(method)


def apart(method: DINOv2) -> DINOv2:
    """The method with a teacher that is not the student, and a token that is not zero."""
    with torch.no_grad():
        for parameter in (*method.teacher.parameters(), method.mask_token):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return method


def batch(images: int = 6, *, local: int = 2, step: int = 0) -> Batch:
    views = toy_batch(images, size=32, local=local, local_size=16).views
    return Batch(views, torch.arange(images), step=step)


def inputs(module: nn.Module, act: Any) -> list[Tensor]:
    found: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, given: found.append(given[0].detach())):
        act()
    return found


# -- the step -------------------------------------------------------------------------------------
@pytest.mark.parametrize("local", [0, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_the_loss_is_that_of_the_paper(local: int, shared: bool) -> None:
    method, b = make(shared_head=shared, patch_weight=0.7, koleo_weight=0.3), batch(local=local)
    reference = copy.deepcopy(method)
    terms = method.step(b, Now(150, 10, 1000))
    x = torch.cat(b.views["global"])
    masks, _, _ = reference.hide(b, (8, 8))
    heads = [(net.head, net.head if shared else net.patch_head) for net in (reference, reference.teacher)]
    (head, patch_head), (teacher_head, teacher_patch_head) = heads
    whole = reference.teacher.backbone.features(x)
    tau = 0.04 + 0.03 * 15 / 30
    targets = sinkhorn(teacher_head(whole.cls), tau).split(6)
    wanted = sinkhorn(teacher_patch_head(whole.patches[masks]), tau)
    seen = reference.backbone.features(x, mask=masks, token=reference.mask_token[0])
    tokens = [*seen.cls.split(6), *(reference.backbone.features(crop).cls for crop in b.views.get("local", []))]
    pairs = [(u, v) for u in range(2) for v in range(len(tokens)) if u != v]
    of_crops = [F.cross_entropy(head(tokens[v]) / 0.1, targets[u]) for u, v in pairs]
    assert len(of_crops) == 2 * (1 + local)
    said, place, of_patches = patch_head(seen.patches[masks]) / 0.1, 0, []
    for mask in masks:
        count = int(mask.sum())
        if count:
            of_patches.append(F.cross_entropy(said[place : place + count], wanted[place : place + count]))
        place += count
    koleo = []
    for crop in seen.cls.split(6):
        rows = F.normalize(crop, dim=1)
        distances = torch.cdist(rows, rows) + 9 * torch.eye(6)
        koleo.append(-distances.amin(1).log().mean())
    cls_loss, patch_loss = torch.stack(of_crops).mean().item(), torch.stack(of_patches).sum().item() / 12
    spread = torch.stack(koleo).sum().item()
    assert terms["cls_loss"].item() == pytest.approx(cls_loss, rel=1e-5)
    assert terms["patch_loss"].item() == pytest.approx(patch_loss, rel=1e-5)
    assert terms["koleo"].item() == pytest.approx(spread / 2, abs=1e-4)
    assert terms["loss"].item() == pytest.approx(cls_loss + 0.7 * patch_loss + 0.3 * spread, rel=1e-4)
    assert terms["teacher_entropy"].item() == pytest.approx(entropy(torch.cat(targets)).item(), abs=1e-5)
    assert terms["patch_entropy"].item() == pytest.approx(entropy(wanted).item(), abs=1e-5)
    agreed = (said.argmax(1) == wanted.argmax(1)).float().mean()
    assert terms["patch_agreement"].item() == pytest.approx(agreed.item(), abs=1e-6)
    assert terms["patch_std"].item() == pytest.approx(patch_std(whole.patches).item(), abs=1e-5)
    assert terms["z_std_ratio"].item() == pytest.approx(std_ratio(head.project(tokens[0])).item(), abs=1e-5)
    assert [name for name, term in terms.items() if term.requires_grad] == ["loss"]


def test_the_student_sees_the_token_where_patches_are_hidden_and_the_teacher_sees_all() -> None:
    method, b = make(), batch()
    masks, places, _ = method.hide(b, (8, 8))
    assert 0 < len(places) == int(masks.sum())
    large, local = inputs(method.backbone.blocks, lambda: method.step(b, NOW))
    (whole,) = inputs(method.teacher.backbone.blocks, lambda: method.step(b, NOW))
    assert (large.shape, local.shape, whole.shape) == ((12, 65, 16), (12, 17, 16), (12, 65, 16))
    x = torch.cat(b.views["global"])
    plain, _ = method.backbone.patch_embed(x)
    positions = method.backbone.positions((8, 8))
    torch.testing.assert_close(large[:, 1:], torch.where(masks[..., None], method.mask_token, plain) + positions)
    teacher = method.teacher.backbone
    torch.testing.assert_close(whole[:, 1:], teacher.patch_embed(x)[0] + teacher.positions((8, 8)))


def test_pixels_of_hidden_patches_reach_the_targets_alone() -> None:
    method, b = make(), batch()
    masks, _, _ = method.hide(b, (8, 8))
    cells = masks.reshape(12, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    views = [
        torch.where(cell, torch.randn(view.shape, generator=torch.Generator().manual_seed(5)), view)
        for cell, view in zip(cells.split(6), b.views["global"], strict=True)
    ]
    other = Batch(Views({**b.views, "global": views}), b.index)
    seen = [inputs(method.backbone.blocks, lambda b=b: method.step(b, NOW))[0] for b in (b, other)]
    assert torch.equal(*seen)
    assert method.step(other, NOW)["loss"].item() != pytest.approx(method.step(b, NOW)["loss"].item(), abs=1e-4)


def test_only_hidden_patches_get_a_gradient_from_the_loss_on_patches() -> None:
    method, b = make(koleo_weight=0.0), batch()
    masks, places, weights = method.hide(b, (8, 8))
    h = torch.randn(12, 64, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    logits = method.on_patches(method, Features(h[:, 0], h), places)
    method.patch_loss(logits, torch.full_like(logits, 1 / 24), weights, 12).backward()
    assert h.grad is not None
    assert torch.equal(h.grad.abs().sum(2) > 0, masks)


def test_a_step_without_hidden_patches_is_finite_and_reaches_every_parameter() -> None:
    method = make(mask_chance=0.0)
    terms = method.step(batch(), NOW)
    terms["loss"].backward()
    assert all(term.isfinite() for term in terms.values())
    assert [terms[name].item() for name in ("patch_loss", "patch_entropy", "patch_agreement")] == [0, 0, 0]
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_each_crop_is_spread_out_by_itself() -> None:
    """The two crops of an image are never neighbours: alike crops cost nothing."""
    method, b = make(mask_chance=0.0), batch(local=0)
    x = b.views["global"][0]
    same = Batch(Views({"global": [x, x]}), b.index)
    alone = method.koleo(method.backbone.features(x).cls)
    assert method.step(same, NOW)["koleo"].item() == pytest.approx(alone.item(), abs=1e-5)
    assert method.step(same, NOW)["koleo"].item() < 8


def test_gradient_reaches_the_student_and_no_target() -> None:
    method = make(targets="center", gram={"snapshot": 0.0, "begin": 0.0})
    method.step(batch(), Now(5, 10, 100))["loss"].backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}
    assert {"mask_token", "backbone.cls_token", "head.last.gain", "patch_head.last.direction"} <= reached
    assert not any(name.startswith(("teacher.", "earlier.")) for name in reached)


@pytest.mark.parametrize(
    "backbone",
    [
        {"registers": 2, "layer_scale": 1e-5},
        {"pool": "both"},
        {"class_token": False, "pool": "mean"},
        {"drop_path": 0.3, "drop_path_shape": "uniform", "drop_path_kind": "subset"},
    ],
    ids=["registers", "both", "no class token", "subset"],
)
def test_other_backbones_train(backbone: dict[str, Any]) -> None:
    method = make(backbone=backbone).train()
    with torch.random.fork_rng(devices=[]):
        terms = method(batch(), NOW)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert torch.equal(*(method.teacher.backbone(batch().views["global"][0]) for _ in range(2)))


def test_one_batch_can_be_learnt() -> None:
    method, b = make(momentum=1.0, koleo_weight=0.0), batch()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = method.step(b, NOW)
        terms["loss"].backward()
        optimizer.step()
        losses.append((terms["cls_loss"].item(), terms["patch_loss"].item()))
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]


# -- masks ----------------------------------------------------------------------------------------
def test_masks_follow_from_seed_step_and_image_alone() -> None:
    method, whole = make(), batch(16, step=3)
    masks = method.hide(whole, (8, 8))[0].unflatten(0, (2, 16))
    part = method.hide(whole.part(2, 7), (8, 8))[0].unflatten(0, (2, 5))
    assert torch.equal(part, masks[:, 2:7])
    assert not torch.equal(masks[0], masks[1]), "each view has its own"
    assert not torch.equal(method.hide(batch(16, step=4), (8, 8))[0], masks.flatten(0, 1))


def test_half_of_the_crops_have_blocks_of_a_tenth_to_a_half() -> None:
    method, count = make(), 1000
    index = torch.arange(count)
    masks, places, weights = method.hide(Batch(Views(), index), (14, 14))
    shares = masks.float().mean(1)
    assert abs((shares > 0).float().mean().item() - 0.5) < 3 * (0.25 / (2 * count)) ** 0.5
    assert shares.max().item() <= 0.5
    assert shares[shares > 0].mean().item() == pytest.approx(0.296, abs=0.01)
    assert len(places) == len(weights) == int(masks.sum())
    assert weights.sum().item() == pytest.approx(int((shares > 0).sum()), abs=1e-2)


def test_pictures_are_the_crop_and_what_the_student_sees_of_it() -> None:
    method, b = make(), batch()
    pictures = method.artefacts(b, NOW).pictures
    assert list(pictures) == ["global crop", "as the student sees it"]
    torch.testing.assert_close(pictures["global crop"], IMAGE.pictures(b.views["global"][0]))
    gray = (pictures["as the student sees it"] == 0.5).all(1)[:, ::4, ::4]
    assert torch.equal(gray.flatten(1), method.hide(b, (8, 8))[0][:6])


# -- targets --------------------------------------------------------------------------------------
def test_balanced_targets_need_no_centre_and_centred_ones_follow_their_means() -> None:
    assert not any("center" in name for name in make().state_dict())
    method, b = make(targets="center"), batch()
    center, patch_center = torch.linspace(-1, 1, 32), torch.linspace(1, -1, 24)
    method.center.value.copy_(center)
    method.patch_center.value.copy_(patch_center)
    places = method.hide(b, (8, 8))[1]
    x = torch.cat(b.views["global"])
    whole = method.teacher.backbone.features(x)
    logits = method.teacher.head(whole.cls), method.teacher.patch_head(whole.patches.flatten(0, 1)[places])
    targets, patch_targets, h = method.teach(x, places, Now(0, 10, 100))
    torch.testing.assert_close(targets, ((logits[0] - center) / 0.04).softmax(1))
    torch.testing.assert_close(patch_targets, ((logits[1] - patch_center) / 0.04).softmax(1))
    torch.testing.assert_close(h.patches, whole.patches)
    assert torch.equal(method.center.value, center), "it moves after the step"
    for part, mean, old in zip((method.center, method.patch_center), logits, (center, patch_center), strict=True):
        part.after_step(NOW)
        torch.testing.assert_close(part.value, 0.9 * old + 0.1 * mean.mean(0), rtol=1e-5, atol=1e-6)


def test_a_centre_stays_where_nothing_was_hidden() -> None:
    method = make(targets="center", mask_chance=0.0)
    method.patch_center.value.fill_(0.5)
    method.step(batch(), NOW)
    method.patch_center.after_step(NOW)
    torch.testing.assert_close(method.patch_center.value, torch.full((24,), 0.5))
    assert torch.equal(mean_row(torch.zeros(0, 3), torch.arange(3.0)), torch.arange(3.0)[None])
    assert torch.equal(mean_row(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2)), torch.tensor([[2.0, 3.0]]))


def test_the_teachers_temperature_rises_step_by_step() -> None:
    schedule = make().config.teacher_temperature
    values = [schedule(Now(step, 10, 1000)) for step in (0, 5, 150, 300, 900)]
    assert values == pytest.approx([0.04, 0.0405, 0.055, 0.07, 0.07])


# -- teacher and earlier teacher ------------------------------------------------------------------
def test_the_teacher_follows_all_networks_along_a_cosine_and_is_exported() -> None:
    method = make()
    assert method.encoder is method.teacher.backbone
    parts = {name.split(".")[1] for name, _ in method.named_parameters() if name.startswith("teacher.")}
    assert parts == {"backbone", "head", "patch_head"}
    values = [method.teacher.momentum(Now(step, 10, 100)) for step in (0, 25, 50, 75, 100)]
    assert values == pytest.approx([0.992, 0.993172, 0.996, 0.998828, 1.0], abs=1e-6)


def test_the_earlier_teacher_is_kept_at_its_snapshot_and_counts_from_its_beginning() -> None:
    method, b = make(gram={"weight": 3.0, "snapshot": 0.2, "begin": 0.5}, momentum=0.5), batch()
    earlier, teacher = method.earlier.backbone.norm.weight, method.teacher.backbone.norm.weight
    kept = []
    for step in range(1, 5):
        with torch.no_grad():
            method.backbone.norm.weight.add_(1.0)
        for part in (method.teacher, method.earlier):
            part.after_step(Now(10 * step, 10, 100))
        kept.append(torch.equal(earlier, teacher))
    assert kept == [True, True, False, False]
    losses = [method.step(b, Now(step, 10, 100)) for step in (49, 50)]
    grams = [terms["gram"].item() for terms in losses]
    assert grams[0] == grams[1] > 0
    difference = losses[1]["loss"] - losses[1]["cls_loss"] - losses[1]["patch_loss"] - 0.2 * losses[1]["koleo"]
    assert difference.item() == pytest.approx(3 * grams[1], rel=1e-3)
    without = losses[0]["loss"] - losses[0]["cls_loss"] - losses[0]["patch_loss"] - 0.2 * losses[0]["koleo"]
    assert without.item() == pytest.approx(0, abs=1e-4)
    assert not any("earlier" in name for name in make().state_dict())


# -- what is trained when -------------------------------------------------------------------------
@pytest.mark.parametrize(("shared", "names"), [(False, ["head", "patch_head"]), (True, ["head"])])
@pytest.mark.parametrize(("epochs", "step"), [(1.0, 9), (None, 99)])
def test_last_layers_stay_in_the_first_epoch_or_always(
    shared: bool, names: list[str], epochs: float | None, step: int
) -> None:
    method = make(shared_head=shared, freeze_last_layer_epochs=epochs)
    optimizer = optimizer_of(method)
    method.step(batch(), NOW)["loss"].backward()
    drop_frozen(optimizer, Now(step, 10, 100))
    dropped = sorted(name for name, p in method.named_parameters() if p.requires_grad and p.grad is None)
    assert dropped == [f"{name}.last.{part}" for name in names for part in ("direction", "gain")]


def test_factors_of_norms_biases_and_gammas_do_not_decay() -> None:
    method = make(backbone={"layer_scale": 1e-5})
    groups = optimizer_of(method, "adamw", weight_decay=0.04).param_groups
    exempt = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert {"backbone.blocks.0.ls1.gamma", "backbone.norm.weight", "head.mlp.0.bias"} <= exempt
    assert not {"mask_token", "backbone.pos_embed", "head.last.gain"} & exempt


# -- runs -----------------------------------------------------------------------------------------
def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def run(out: Path, **settings: Any) -> Any:
    common: dict[str, Any] = {"epochs": 2, "batch_size": 16, "precision": "fp32", "report": False, "device": "cpu"}
    common |= {"options": {"hidden_dim": 16, "bottleneck_dim": 8}, "data": images()}
    backbone = {"name": "vit_micro", **SMALL}
    return akssl_core.run(method="dinov2", out=out, backbone=backbone, **{**common, **settings})


def test_a_second_run_goes_on_from_the_teacher_with_larger_views(tmp_path: Path) -> None:
    """The phase of high resolution: positions are interpolated, everything else is taken over."""
    first = run(tmp_path / "run")
    assert {"koleo", "teacher_entropy", "patch_entropy", "ema_distance"} <= first.history[-1].keys()
    second = run(tmp_path / "large", start=tmp_path / "run", image_size=32, epochs=1, optimizer={"lr": 0.0})
    before, after = first.backbone.state_dict(), second.backbone.state_dict()
    assert (before["pos_embed"].shape[1], after["pos_embed"].shape[1]) == (17, 65)
    for name in before.keys() - {"pos_embed"}:
        torch.testing.assert_close(after[name], before[name], msg=name)


def test_layers_of_the_imagenet_recipe_learn_by_their_depth() -> None:
    rates = spec_of("dinov2", recipe="imagenet").optimizer.config
    assert (rates.layer_decay, rates.patch_embed_rate) == (0.9, 0.2)
    assert rates.layer_decay**12 == pytest.approx(0.282430, abs=1e-6)
    assert math.prod((rates.layer_decay**13, rates.patch_embed_rate)) == pytest.approx(0.050837, abs=1e-6)
    decay = [rates.weight_decay(Now(step, 10, 100)) for step in (0, 25, 50, 75, 100)]
    assert decay == pytest.approx([0.04, 0.092721, 0.22, 0.347279, 0.4], abs=1e-6)

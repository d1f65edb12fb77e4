"""I-JEPA against the formulas and layers of arXiv 2301.08243 and of the authors' code."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_ijepa import IJEPA, UNTRAINED
from torch import Tensor, nn
from torch.nn import functional as F

import akssl_core
from akssl_core import Batch, Facts, ImageSpec, Now, Views
from akssl_core.masks import hidden
from akssl_core.nn import patch_std, sincos, take
from akssl_core.testing import config_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
IMAGE = ImageSpec(32, 3, (0.5,) * 3, (0.25,) * 3)
VIT = {"class_token": False, "positions": "sincos", "pool": "mean"}
SMALL = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, **VIT}


def make(image: ImageSpec = IMAGE, *, backbone: dict[str, Any] | None = None, **settings: Any) -> IJEPA:
    torch.manual_seed(0)
    network = akssl_core.build("backbone", "vit_tiny", image, **{**SMALL, **(backbone or {})})
    small = {"predictor_dim": 8, "predictor_depth": 1, "predictor_heads": 2, **settings}
    method = akssl_core.build("method", "ijepa", network, **small)
    assert isinstance(method, IJEPA)
    return method


def batch(images: int = 6, size: int = 32, step: int = 0) -> Batch:
    views = toy_batch(images, size=size).views["global"][:1]
    return Batch(Views({"global": views}), torch.arange(images), step=step)


def ijepa(predicted: Tensor, features: Tensor) -> Tensor:
    value: Tensor = akssl_core.build("loss", "ijepa")(predicted, features)
    return value


def facts(side: int = 8, width: int = 192) -> Facts:
    return Facts(2000, 64, 64, 32, 4, {"global": 1}, backbone="vit", embed_dim=width, tokens=(side, side))


def outputs(module: nn.Module, act: Any) -> list[Tensor]:
    found: list[Tensor] = []
    with module.register_forward_hook(lambda _, inputs, output: found.append(output.detach())):
        act()
    return found


def inputs(module: nn.Module, act: Any) -> list[Tensor]:
    found: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, given: found.append(given[0].detach())):
        act()
    return found


# -- the loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "expected", "cost"),
    [((3.0, 1.0), (1.0, -1.0), 0.5), ((1.0, 2.0, 3.0, 4.0), (-1.341635, -0.447212, 0.447212, 1.341635), 0.470817)],
)
def test_targets_are_normalised_over_their_features(raw: Any, expected: Any, cost: float) -> None:
    target = torch.tensor([expected])
    assert ijepa(target, torch.tensor([raw])).item() == pytest.approx(0, abs=1e-9)
    assert ijepa(torch.zeros_like(target), torch.tensor([raw])).item() == pytest.approx(cost, abs=1e-5)


@pytest.mark.parametrize(("off", "cost"), [(0.5, 0.125), (1.0, 0.5), (2.0, 1.5)])
def test_small_errors_cost_squares_and_large_ones_their_size(off: float, cost: float) -> None:
    h = torch.randn(4, 2, 3, 16, generator=torch.Generator().manual_seed(0))
    target = F.layer_norm(h, (16,))
    assert ijepa(target + off, h).item() == pytest.approx(cost, abs=1e-5)
    assert ijepa(target - off, h).item() == pytest.approx(cost, abs=1e-5)


def test_scale_and_shift_of_a_target_mean_nothing_and_it_gets_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    z, h = (torch.randn(2, 3, 16, generator=generator).requires_grad_() for _ in range(2))
    scale, shift = 3 * torch.rand(2, 3, 1, generator=generator) + 1, torch.randn(2, 3, 1, generator=generator)
    loss = ijepa(z, h)
    torch.testing.assert_close(ijepa(z, h * scale + shift), loss, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert h.grad is None
    assert z.grad is not None


def test_a_guess_of_0_costs_what_the_curve_says() -> None:
    exact = 0.5 * (1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) - math.erfc(math.sqrt(0.5)))
    exact += 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) - 0.5 * math.erfc(math.sqrt(0.5))
    assert exact == pytest.approx(UNTRAINED, abs=1e-5)
    wide = torch.randn(50, 4096, generator=torch.Generator().manual_seed(0))
    assert ijepa(torch.zeros_like(wide), wide).item() == pytest.approx(UNTRAINED, abs=2e-3)


# -- the predictor --------------------------------------------------------------------------------
def asked(method: IJEPA) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a context, its places, and the targets of six images."""
    wanted, places = method.blocks(batch(), (8, 8))
    return torch.randn(6, places.shape[1], 16, generator=torch.Generator().manual_seed(1)), places, wanted


def test_blocks_do_not_see_each_other() -> None:
    predictor = make().predictor
    context, places, wanted = asked(make())
    z = predictor(context, places, wanted, (8, 8))
    assert z.shape == (*wanted.shape, 16)
    torch.testing.assert_close(predictor(context, places, wanted.flip(0), (8, 8)), z.flip(0), rtol=1e-4, atol=1e-6)
    alone = torch.cat([predictor(context, places, block[None], (8, 8)) for block in wanted])
    torch.testing.assert_close(alone, z, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_context_changes_nothing_and_its_places_do() -> None:
    predictor = make().predictor
    context, places, wanted = asked(make())
    z = predictor(context, places, wanted, (8, 8))
    torch.testing.assert_close(predictor(context.flip(1), places.flip(1), wanted, (8, 8)), z, rtol=1e-4, atol=1e-6)
    assert (predictor(context, places.flip(1), wanted, (8, 8)) - z).abs().max() > 1e-5
    assert (predictor(context, places, wanted.flip(2), (8, 8)) - z).abs().max() > 1e-5


def test_the_predictor_sees_context_and_one_token_at_each_place_that_it_is_asked_for() -> None:
    predictor = make().predictor
    context, places, wanted = asked(make())
    with torch.no_grad():
        (tokens,) = inputs(predictor.blocks, lambda: predictor(context, places, wanted, (8, 8)))
    count, table = places.shape[1], sincos((8, 8), 8)
    assert tokens.shape == (wanted.shape[0] * 6, count + wanted.shape[2], 8)
    of_block = tokens.unflatten(0, (-1, 6))
    for t, block in enumerate(wanted):
        torch.testing.assert_close(of_block[t, :, :count], predictor.embed(context) + table[places])
        torch.testing.assert_close(of_block[t, :, count:], predictor.mask_token + table[block])


def test_first_weights_are_a_narrow_normal() -> None:
    predictor = make(predictor_dim=64, predictor_heads=2).predictor
    weights = [p for name, p in predictor.named_parameters() if p.ndim > 1]
    assert all(0.015 < w.std().item() < 0.025 for w in weights)
    assert "positions" not in predictor.state_dict()


# -- the step -------------------------------------------------------------------------------------
def test_the_loss_is_that_of_the_paper_image_by_image() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    wanted, places = method.blocks(b, (8, 8))
    costs = []
    for i in range(6):
        h = F.layer_norm(method.target.backbone.features(x[i : i + 1]).patches[0], (16,))
        context = method.backbone.features(x[i : i + 1], keep=places[i : i + 1]).patches
        for t in range(4):
            z = method.predictor(context, places[i : i + 1], wanted[t : t + 1, i : i + 1], (8, 8))[0, 0]
            costs.append(F.smooth_l1_loss(z, h[wanted[t, i]]))
    assert method.step(b, NOW)["loss"].item() == pytest.approx(torch.stack(costs).mean().item(), abs=1e-6)


def test_the_encoder_sees_the_context_and_the_target_encoder_everything() -> None:
    method, b = make(), batch()
    wanted, places = method.blocks(b, (8, 8))
    (seen,) = inputs(method.backbone.blocks, lambda: method.step(b, NOW))
    assert seen.shape == (6, places.shape[1], 16)
    (whole,) = inputs(method.target.backbone.blocks, lambda: method.step(b, NOW))
    assert whole.shape == (6, 64, 16)
    assert not (hidden(places, 64).logical_not() & ~hidden(wanted.transpose(0, 1).flatten(1), 64)).any(), "disjoint"


def test_pixels_of_targets_reach_targets_and_no_prediction() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    wanted, _ = method.blocks(b, (8, 8))
    of_targets = ~hidden(wanted.transpose(0, 1).flatten(1), 64).reshape(6, 1, 8, 8)
    pixels = of_targets.repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    other = Batch(Views({"global": [torch.where(pixels, noise, x)]}), b.index)
    predictions = [outputs(method.predictor, lambda b=b: method.step(b, NOW))[0] for b in (b, other)]
    assert torch.equal(*predictions)
    assert method.step(other, NOW)["loss"].item() != pytest.approx(method.step(b, NOW)["loss"].item(), abs=1e-5)


def test_blocks_follow_from_seed_step_and_image_alone() -> None:
    method, whole = make(), batch(step=3)
    wanted, places = method.blocks(whole, (8, 8))
    part = method.blocks(whole.part(2, 5), (8, 8))
    assert torch.equal(part[0], wanted[:, 2:5])
    assert torch.equal(part[1], places[2:5])
    later = method.blocks(batch(step=4), (8, 8))
    assert later[0].shape != wanted.shape or not torch.equal(later[0], wanted)


def test_gradient_reaches_encoder_and_predictor_but_neither_targets_nor_positions() -> None:
    method = make()
    method.step(batch(), NOW)["loss"].backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}
    assert {"backbone.patch_embed.proj.weight", "backbone.norm.weight", "predictor.mask_token"} <= reached
    assert not any(name.startswith("target.") or "pos_embed" in name or "cls" in name for name in reached)


def test_the_target_encoder_is_exported_and_follows_along_a_straight_line() -> None:
    method = make(momentum={"start": 0.9, "end": 1.0, "shape": "linear"})
    assert method.encoder is method.target.backbone
    before = copy.deepcopy(method.target.backbone.norm.weight)
    with torch.no_grad():
        method.backbone.norm.weight.add_(1.0)
    method.target.after_step(Now(25, 10, 100))
    torch.testing.assert_close(method.target.backbone.norm.weight, before + 0.075)
    default = config_of(IJEPA).momentum
    assert [default(Now(step, 10, 100)) for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])


def test_the_first_loss_is_that_of_knowing_nothing() -> None:
    terms = make(backbone={"width": 128}).step(batch(32), NOW)
    assert terms["loss"].item() == pytest.approx(UNTRAINED, abs=0.03)
    assert not terms["z_std_ratio"].requires_grad
    assert not terms["target_patch_std"].requires_grad


def test_terms_tell_of_targets_that_are_alike() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    same = Batch(Views({"global": [x[:1].expand(6, -1, -1, -1)]}), b.index)
    assert method.step(same, NOW)["z_std_ratio"].item() == pytest.approx(0, abs=1e-3)
    assert method.step(b, NOW)["z_std_ratio"].item() > 1e-2
    found = method.target.backbone.features(x).patches
    assert method.step(b, NOW)["target_patch_std"].item() == pytest.approx(patch_std(found).item(), abs=1e-6)


@pytest.mark.parametrize(
    "backbone", [{"class_token": True}, {"registers": 2}, {"class_token": True, "pool": "both"}, {"width": 24}]
)
def test_other_backbones_train(backbone: dict[str, Any]) -> None:
    method = make(backbone=backbone)
    terms = method.step(batch(), NOW)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [48, 30])
def test_views_of_another_side_than_the_images_train(size: int) -> None:
    """30 px are padded to whole patches."""
    method, b = make(), batch(size=size)
    assert method.step(b, NOW)["loss"].isfinite()
    assert method.artefacts(b, NOW).pictures["context"].shape == (6, 3, size, size)


def test_one_batch_can_be_learnt() -> None:
    method, b = make(predictor_dim=32, momentum=1.0), batch()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = method.step(b, NOW)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_pictures_are_the_context_and_each_target() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    wanted, places = method.blocks(b, (8, 8))
    pictures = method.artefacts(b, NOW).pictures
    assert list(pictures) == ["image", "context", "target 1", "target 2", "target 3", "target 4"]
    torch.testing.assert_close(pictures["image"], IMAGE.pictures(x))
    for name, positions in {"context": places, "target 3": wanted[2]}.items():
        cells = pictures[name].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        whole = pictures["image"].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        torch.testing.assert_close(take(cells, positions), take(whole, positions))
        assert (cells[hidden(positions, 64)] == 0.5).all()


# -- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("side", "targets"), [(2, 2), (4, 3), (5, 3), (7, 3), (8, None), (14, None)])
def test_small_grids_have_fewer_targets(side: int, targets: int | None) -> None:
    choices = IJEPA.choose(config_of(IJEPA), facts(side, 768))
    assert (choices["targets"].value if "targets" in choices else None) == targets
    IJEPA.check(config_of(IJEPA, targets=targets or 4), facts(side, 768))


def test_no_room_for_a_context_is_refused_in_words() -> None:
    with pytest.raises(akssl_core.ConfigError, match=r"may leave 1 of 49 patches .* at least 6. Use method.targets=3"):
        IJEPA.check(config_of(IJEPA), facts(7))
    with pytest.raises(akssl_core.ConfigError, match=r"may leave 0 of 1 patches .* at least 1. Use smaller patches"):
        IJEPA.check(config_of(IJEPA, targets=1), facts(1))
    with pytest.raises(akssl_core.ConfigError, match=r"context_area: a context of 0.05 .* has 4 of 64 .* least 8"):
        IJEPA.check(config_of(IJEPA, context_area=[0.05, 1.0]), facts(8))
    with pytest.raises(akssl_core.ConfigError, match="at least 8"):
        IJEPA.check(config_of(IJEPA, context_area=[0.6, 1.0]), facts(8))


def test_what_is_chosen_leaves_enough_in_every_step() -> None:
    for side in (2, 3, 4, 6, 8):
        choices = IJEPA.choose(config_of(IJEPA), facts(side))
        config = config_of(IJEPA, targets=choices["targets"].value if "targets" in choices else 4)
        least = int(IJEPA.derived(config, facts(side))["context"].split()[0])
        method = make(ImageSpec(4 * side, 3, (0.5,) * 3, (0.25,) * 3), targets=config.targets)
        found = [method.blocks(batch(2, step=step), (side, side))[1].shape[1] for step in range(50)]
        assert min(found) >= least >= 1


def test_the_predictor_is_no_wider_than_the_encoder() -> None:
    choices = IJEPA.choose(config_of(IJEPA), facts(width=192))
    assert (choices["predictor_dim"].value, choices["predictor_heads"].value) == (96, 3)
    assert IJEPA.choose(config_of(IJEPA), facts(width=16))["predictor_dim"].value == 32
    assert not IJEPA.choose(config_of(IJEPA), facts(14, width=768))


def test_heads_that_do_not_divide_are_chosen_anew_or_refused() -> None:
    assert IJEPA.choose(config_of(IJEPA, predictor_dim=64), facts())["predictor_heads"].value == 8
    many = config_of(IJEPA, predictor_dim=64, predictor_heads=10**12)  # not tried beyond the width
    assert IJEPA.choose(many, facts())["predictor_heads"].value == 64
    with pytest.raises(akssl_core.ConfigError, match=r"predictor_heads: 12 must divide .* 1, 2, 4, 8, 16 do"):
        IJEPA.check(config_of(IJEPA, predictor_dim=64), facts())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"predictor_dim": 98}, "multiple of 4"),
        ({"target_area": [0.3, 0.1]}, "smaller number first"),
        ({"target_aspect": [0.0, 1.0]}, "greater than 0"),
        ({"context_area": [0.5, 1.5]}, "less than or equal to 1"),
        ({"momentum": {"start": 0.9, "end": 1.1}}, "between 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(akssl_core.ConfigError, match=words):
        config_of(IJEPA, **settings)


def test_it_is_judged_by_a_linear_probe_and_says_what_faults_look_like() -> None:
    assert (IJEPA.headline, IJEPA.collapses) == ("linear", True)
    collapsed, idle = IJEPA.landmarks(config_of(IJEPA), facts())
    assert collapsed.where == {"loss": (0.0, 0.03), "z_std_ratio": (0.0, 0.1)}
    assert idle.where["loss"][0] < UNTRAINED < idle.where["loss"][1]
    assert idle.throughout
    assert IJEPA.curves(config_of(IJEPA), facts())["loss"].lines == {"untrained": UNTRAINED}
    assert IJEPA.derived(config_of(IJEPA), facts())["context"].startswith("16 of 64")


# -- runs -----------------------------------------------------------------------------------------
def test_the_authors_recipe_is_theirs() -> None:
    spec = spec_of("ijepa", recipe="imagenet")
    config, rates = spec.method.config, spec.optimizer.config
    assert (config.targets, config.target_area, config.target_aspect) == (4, (0.15, 0.2), (0.75, 1.5))
    assert rates.scale(spec.train.batch_size) * rates.lr.start == 1e-3
    decay = [rates.weight_decay(Now(step, 10, 100)) for step in (0, 100)]
    assert decay == pytest.approx([0.04, 0.4])


def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def run(out: Path, **settings: Any) -> Any:
    common: dict[str, Any] = {"epochs": 2, "batch_size": 16, "precision": "fp32", "report": False, "device": "cpu"}
    common |= {"options": {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2}, "data": images()}
    backbone = {"name": "vit_micro", "patch_size": 4, "width": 16, "depth": 2, "heads": 2, **VIT}
    return akssl_core.run(method="ijepa", out=out, backbone=backbone, **{**common, **settings})


def test_a_run_logs_its_terms_keeps_its_pictures_and_waits_for_its_judge(tmp_path: Path) -> None:
    result = run(tmp_path / "run", data={"name": "shapes", "size": 64, "test_size": 32}, image_size=16)
    assert {"z_std_ratio", "target_patch_std", "ema_distance"} <= result.history[-1].keys()
    assert "targets: 3" in (tmp_path / "run" / "config.yaml").read_text(), "16 patches have no room for four"
    assert (tmp_path / "run" / "samples.safetensors").exists()
    assert "linear probe" in str(result.diagnosis)
    assert result.backbone(result.preprocess(images()[:2])).shape == (2, 16)


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(akssl_core.ConfigError, match="predictor_depth: should be less than or equal to 256"):
        config_of(IJEPA, predictor_depth=10**12)

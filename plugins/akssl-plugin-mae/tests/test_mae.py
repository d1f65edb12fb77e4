"""MAE against the formulas, layers and masks of arXiv 2111.06377 and of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from akssl_plugin_mae import MAE
from akssl_plugin_mae.decoder import patchify, unpatchify
from torch import Tensor, nn

import akssl_core
from akssl_core import Batch, Facts, ImageSpec, Now, Views
from akssl_core.masks import hidden, kept, shuffle_masks
from akssl_core.testing import config_of, spec_of, toy_batch

NOW = Now(0, 10, 100)
IMAGE = ImageSpec(16, 3, (0.5,) * 3, (0.25,) * 3)
SMALL = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, "positions": "sincos", "pool": "mean"}


def make(image: ImageSpec = IMAGE, *, backbone: dict[str, Any] | None = None, **settings: Any) -> MAE:
    torch.manual_seed(0)
    network = akssl_core.build("backbone", "vit_tiny", image, **{**SMALL, **(backbone or {})})
    small = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, **settings}
    method = akssl_core.build("method", "mae", network, **small)
    assert isinstance(method, MAE)
    return method


def batch(images: int = 6, size: int = 16) -> Batch:
    views = toy_batch(images, size=size).views["global"][:1]
    return Batch(Views({"global": views}), torch.arange(images))


def mae(predicted: Tensor, pixels: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    value: Tensor = akssl_core.build("loss", "mae", **settings)(predicted, pixels, mask)
    return value


def facts(tokens: int = 8, channels: int = 3, size: int = 32) -> Facts:
    return Facts(2000, 64, 64, size, 4, {"global": 1}, channels=channels, backbone="vit", tokens=(tokens, tokens))


# -- patches --------------------------------------------------------------------------------------
def test_patches_are_row_by_row_and_pixels_within_them_too() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patchify(image, 2)[0].tolist() == expected


def test_the_channels_of_a_pixel_stand_beside_each_other() -> None:
    image = torch.stack([torch.arange(4.0) + 10 * c for c in range(3)]).reshape(1, 3, 2, 2)
    assert patchify(image, 2)[0, 0].tolist() == [0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 13, 23]


@pytest.mark.parametrize(("channels", "grid", "side"), [(3, (2, 5), 4), (1, (3, 1), 2)])
def test_images_of_patches_are_the_images(channels: int, grid: tuple[int, int], side: int) -> None:
    images = torch.randn(2, channels, grid[0] * side, grid[1] * side)
    assert torch.equal(unpatchify(patchify(images, side), grid, channels), images)


@pytest.mark.parametrize(
    ("size", "patch", "words"),
    [(30, 4, "Use 28 or 32 px, or backbone.patch_size of 2, 3, 5, 6, 10, 15"), (12, 16, "Use 16 px, or")],
)
def test_images_that_are_no_whole_patches_are_refused_in_words(size: int, patch: int, words: str) -> None:
    image = ImageSpec(size, 3, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(akssl_core.ConfigError, match="no whole number of patches") as found:
        make(image, backbone={"patch_size": patch})
    assert words in str(found.value)
    with pytest.raises(akssl_core.ConfigError, match="no whole number of patches"):
        patchify(torch.zeros(1, 3, size, size), patch)


# -- the loss -------------------------------------------------------------------------------------
RAMP = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(2, 4, 4)
MASK = torch.tensor([[True, True, False, True], [False, True, True, True]])


def test_targets_have_the_deviation_from_n_minus_1() -> None:
    """(P - 1) / P, where that from N gives 1."""
    target = torch.tensor([-1.161895, -0.387298, 0.387298, 1.161895]).expand(2, 4, 4)
    assert mae(target, RAMP, MASK).item() == pytest.approx(0, abs=1e-6)
    assert mae(torch.zeros_like(RAMP), RAMP, MASK).item() == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize(("side", "expected"), [(2, 0.916667), (3, 0.962963), (4, 0.979167), (8, 0.994792)])
def test_a_guess_of_the_mean_costs_what_the_landmark_says(side: int, expected: float) -> None:
    pixels = torch.randn(2, 4, side * side * 3, generator=torch.Generator().manual_seed(0))
    assert mae(torch.zeros_like(pixels), pixels, MASK).item() == pytest.approx(expected, abs=1e-5)
    (landmark,) = MAE.landmarks(config_of(MAE), facts(24 // side, size=24))
    assert landmark.where["loss"] == (pytest.approx(0.98 * expected, abs=1e-5), math.inf)
    curve = MAE.curves(config_of(MAE), facts(24 // side, size=24))["loss"]
    assert curve.lines == {"each patch flat": pytest.approx(expected, abs=1e-5)}


def test_a_constant_patch_is_a_target_of_zeros() -> None:
    pixels, predicted = torch.full((2, 4, 12), 0.3), torch.zeros(2, 4, 12, requires_grad=True)
    loss = mae(predicted, pixels, MASK)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, predicted))


def test_only_hidden_patches_count_and_all_images_count_alike() -> None:
    off = RAMP + 0.5 * MASK[..., None]
    assert mae(off, RAMP, MASK, norm_pix=False).item() == pytest.approx(0.25)
    assert mae(off, RAMP, ~MASK, norm_pix=False).item() == 0
    first = RAMP + torch.tensor([3.0, 0.0])[:, None, None]  # 3 of the 6 hidden patches are 9 off
    assert mae(first, RAMP, MASK, norm_pix=False).item() == pytest.approx(4.5)
    predicted = RAMP.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mae(predicted, RAMP, MASK), predicted)
    assert torch.equal(slope[~MASK], torch.zeros(2, 4))
    assert (slope[MASK].abs().sum(1) > 0.1).all()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_predictions_in_pixels_are_the_pixels_where_the_loss_is_0(norm_pix: bool) -> None:
    pixels = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1)) * 0.3 + 1
    mean, std = pixels.mean(2, keepdim=True), pixels.std(2, keepdim=True)
    perfect = (pixels - mean) / std if norm_pix else pixels
    loss = akssl_core.build("loss", "mae", norm_pix=norm_pix)
    assert loss(perfect, pixels, MASK).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(loss.as_pixels(perfect, pixels), pixels, rtol=1e-4, atol=1e-5)


# -- the step -------------------------------------------------------------------------------------
def seen_by(module: nn.Module, act: Any) -> list[Tensor]:
    found: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach())):
        act()
    return found


def test_the_encoder_sees_the_visible_patches_and_its_class_token_alone() -> None:
    method, b = make(), batch()
    (tokens,) = seen_by(method.backbone.blocks[0], lambda: method.step(b, NOW))
    assert tokens.shape == (6, 1 + 4, 16)
    (everything,) = seen_by(method.decoder.blocks[0], lambda: method.step(b, NOW))
    assert everything.shape == (6, 1 + 16, 8)


def test_hidden_pixels_reach_the_loss_and_not_the_encoder() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    mask = hidden(shuffle_masks(b.draws, 16, kept(16, 0.75)), 16)
    noise = torch.randn(6, 16, 48, generator=torch.Generator().manual_seed(2))
    for where, reaches in ((mask, False), (~mask, True)):
        other = unpatchify(patchify(x, 4) + noise * where[..., None], (4, 4), 3)
        changed = Batch(Views({"global": [other]}), b.index)
        one, two = method.fill_in(x, b), method.fill_in(other, changed)
        assert torch.equal(one[2], mask)
        assert torch.equal(one[0], two[0]) is not reaches
        assert method.step(changed, NOW)["loss"].item() != pytest.approx(method.step(b, NOW)["loss"].item(), abs=1e-4)


def test_the_order_of_the_visible_patches_changes_nothing() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    keep = shuffle_masks(b.draws, 16, 4)
    found = []
    for order in (keep, keep.flip(1)):
        seen = method.backbone.features(x, keep=order)
        found.append(method.decoder(seen.patches, seen.cls, order, (4, 4)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_decoder_puts_each_token_in_its_place() -> None:
    """Where nothing is mixed, predictions of visible patches follow from token and place, of others from the place."""
    method = make()
    decoder = method.decoder
    decoder.blocks = nn.Identity()
    visible, keep = torch.randn(2, 2, 16), torch.tensor([[3, 7], [15, 0]])
    found = decoder(visible, torch.randn(2, 16), keep, (4, 4))
    for i in range(2):
        tokens = decoder.mask_token[0] + decoder.positions
        for place, token in zip(keep[i].tolist(), visible[i], strict=True):
            tokens = tokens.index_copy(0, torch.tensor([place]), decoder.embed(token)[None] + decoder.positions[place])
        torch.testing.assert_close(found[i], decoder.predict(decoder.norm(tokens)))


def test_gradient_reaches_both_networks_and_their_tokens_but_no_positions() -> None:
    method = make()
    method.step(batch(), NOW)["loss"].backward()
    names = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert names == {name for name, p in method.named_parameters() if p.requires_grad}
    assert {"backbone.cls_token", "backbone.norm.weight", "decoder.mask_token", "decoder.predict.bias"} <= names
    assert "backbone.pos_embed" not in names
    assert "decoder.positions" not in method.state_dict()


@pytest.mark.parametrize("backbone", [{"class_token": False}, {"registers": 2}, {"pool": "both"}])
def test_backbones_with_other_tokens_train(backbone: dict[str, Any]) -> None:
    method = make(backbone=backbone)
    terms = method.step(batch(), NOW)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_views_of_another_side_than_the_images_train() -> None:
    terms = make().step(batch(size=24), NOW)
    assert terms["loss"].isfinite()


def test_the_first_loss_is_that_of_xaviers_weights() -> None:
    """Flat patches and a variance of 2 Dd / (Dd + P) on them: 2.31 for the default recipe's decoder and patches."""
    method = make(decoder_dim=96, decoder_depth=2, decoder_heads=3)
    terms = method.step(batch(64), NOW)
    assert terms["loss"].item() == pytest.approx(47 / 48 + 2 * 96 / (96 + 48), rel=0.25)
    assert terms["visible_loss"].item() == pytest.approx(terms["loss"].item(), rel=0.15)
    assert not terms["visible_loss"].requires_grad


def test_one_batch_can_be_learnt() -> None:
    method, b = make(), batch()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = method.step(b, NOW)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 < losses[0]


def test_pictures_are_the_view_what_was_seen_of_it_and_what_was_made_of_that() -> None:
    method, b = make(), batch()
    (x,) = b.views["global"]
    pictures = method.artefacts(b, NOW).pictures
    assert list(pictures) == ["original", "visible patches", "reconstruction"]
    torch.testing.assert_close(pictures["original"], IMAGE.pictures(x))
    predicted, pixels, mask = method.fill_in(x, b)
    shown = {name: patchify(picture, 4) for name, picture in pictures.items()}
    for name in ("visible patches", "reconstruction"):
        torch.testing.assert_close(shown[name][~mask], shown["original"][~mask])
    assert (shown["visible patches"][mask] == 0.5).all(), "the mean colour"
    deviation = (pixels.var(2, keepdim=True) + 1e-6).sqrt()
    wanted = IMAGE.pictures(unpatchify(predicted * deviation + pixels.mean(2, keepdim=True), (4, 4), 3))
    torch.testing.assert_close(shown["reconstruction"][mask], patchify(wanted, 4)[mask])


# -- settings -------------------------------------------------------------------------------------
def test_heads_that_do_not_divide_are_chosen_anew_or_refused() -> None:
    assert MAE.choose(config_of(MAE, decoder_dim=72), facts())["decoder_heads"].value == 12
    assert not MAE.choose(config_of(MAE, decoder_dim=96, decoder_heads=3), facts())
    many = config_of(MAE, decoder_dim=96, decoder_heads=10**12)  # numbers of heads are not tried beyond the width
    assert MAE.choose(many, facts())["decoder_heads"].value == 96
    with pytest.raises(
        akssl_core.ConfigError, match=r"decoder_heads: 16 must divide .* 1, 2, 3, 4, 6, 8, 9, 12, 18 do"
    ):
        MAE.check(config_of(MAE, decoder_dim=72), facts())
    with pytest.raises(akssl_core.ConfigError, match="multiple of 4"):
        config_of(MAE, decoder_dim=98)


def test_one_patch_stays_visible_and_a_single_one_is_refused() -> None:
    few = Facts(2000, 64, 64, 8, 4, {"global": 1}, tokens=(1, 3))
    assert MAE.choose(config_of(MAE), few)["mask_ratio"].value == pytest.approx(2 / 3)
    with pytest.raises(akssl_core.ConfigError, match="0.75 of 3 patches leaves 0 to see"):
        MAE.check(config_of(MAE), few)
    assert not MAE.choose(config_of(MAE), facts(1))
    with pytest.raises(akssl_core.ConfigError, match="32 px are 1 patch; expected 2 or more.* smaller patches"):
        MAE.check(config_of(MAE), facts(1))


def test_it_is_judged_by_fine_tuning_and_the_spread_of_its_features_is_no_fault() -> None:
    assert (MAE.headline, MAE.collapses) == ("finetune", False)
    assert MAE.derived(config_of(MAE), facts()) == {"visible patches": "16 of 64"}


def test_raw_pixels_have_no_landmark_of_norm_pix() -> None:
    raw = config_of(MAE, loss={"name": "mae", "norm_pix": False})
    assert not MAE.landmarks(raw, facts())
    assert MAE.curves(raw, facts())["loss"].lines == {}


# -- runs -----------------------------------------------------------------------------------------
def test_the_authors_recipe_is_theirs() -> None:
    spec = spec_of("mae", recipe="imagenet")
    rates = spec.optimizer.config
    assert rates.scale(spec.train.batch_size) * rates.lr.start == pytest.approx(2.4e-3)
    assert (rates.lr.warmup, spec.train.epochs, spec.optimizer.config.betas) == (40, 800, (0.9, 0.95))
    defaults = config_of(MAE)
    assert (defaults.mask_ratio, defaults.decoder_dim, defaults.decoder_depth, defaults.decoder_heads) == (
        0.75, 512, 8, 16,
    )  # fmt: skip


def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def run(out: Path, **settings: Any) -> Any:
    common: dict[str, Any] = {"epochs": 2, "batch_size": 16, "precision": "fp32", "report": False, "device": "cpu"}
    common |= {"options": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}, "data": images()}
    backbone = {"name": "vit_micro", "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "pool": "mean"}
    return akssl_core.run(method="mae", out=out, backbone=backbone, **{**common, **settings})


def test_a_run_keeps_its_pictures_and_waits_for_its_judge(tmp_path: Path) -> None:
    result = run(tmp_path / "run", data={"name": "shapes", "size": 64, "test_size": 32}, image_size=16)
    assert {"visible_loss", "pixel_std"} <= result.history[-1].keys()
    assert (tmp_path / "run" / "samples.safetensors").exists()
    assert "fine-tuning" in str(result.diagnosis)
    assert result.backbone(result.preprocess(images()[:2])).shape == (2, 16)


def test_layers_beyond_all_use_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(akssl_core.ConfigError, match="decoder_depth: should be less than or equal to 256"):
        config_of(MAE, decoder_depth=10**12)

"""Patch tokens that are selected and masked, and views of several sizes."""

from __future__ import annotations

import pytest
import timm
import torch
from akssl_plugin_timm.interpolation import ByMatrices

from akssl_core import ConfigError
from akssl_core.nn import take


# -- patch tokens ----------------------------------------------------------------------------------
def test_tokens_and_their_grid(build, pictures, vit):
    seen = vit.features(pictures())
    with torch.no_grad():
        tokens = vit.timm.forward_features(pictures())
    assert seen.patches.shape == (2, 16, 192)
    assert (seen.grid, vit.patch_size) == ((4, 4), 8)
    assert torch.equal(seen.patches, tokens[:, 1:])
    assert vit.patch_embed is vit.timm.patch_embed


def test_registers_and_missing_class_tokens_are_no_patches(build, pictures):
    registers = build("test_vit", options={"reg_tokens": 3})
    assert registers.features(pictures()).patches.shape == (2, 4, 64)
    mean = build("test_vit", pool="avg", options={"class_token": False})
    seen = mean.features(pictures())
    assert seen.patches.shape == (2, 4, 64)
    torch.testing.assert_close(seen.pooled, mean.timm.fc_norm(seen.patches.mean(1)))


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"qk_norm": True}])
def test_attention_gives_what_the_class_token_takes_from_the_patches(build, pictures, options):
    vit, seen, taken = build("test_vit", options=options).eval(), [], []
    attend = vit.timm.blocks[-1].attn
    with (
        attend.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        attend.proj.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])),
    ):
        vit.features(pictures())
    found, first = vit.attention(pictures()), vit.timm.num_prefix_tokens
    value = attend.qkv(seen[0]).unflatten(2, (3, attend.num_heads, -1))[:, :, 2].transpose(1, 2)  # (B, heads, N, d)
    of_patches = (found.flatten(2)[:, :, None] @ value[:, :, first:]).flatten(1)
    if first == 1:  # what is left of the output comes from the class token itself
        own = (1 - found.flatten(2).sum(-1))[..., None] * value[:, :, 0]
        torch.testing.assert_close(of_patches + own.flatten(1), taken[0][:, 0])
    assert found.shape[2:] == vit.features(pictures()).grid
    assert ((found >= 0) & (found.flatten(2).sum(-1)[..., None, None] <= 1)).all()


def test_the_class_token_and_the_features_after_each_of_the_last_blocks(build, pictures, vit):
    with torch.no_grad():
        tokens = vit.timm.forward_intermediates(pictures(), norm=True, intermediates_only=True, output_fmt="NLC")
        found, seen = vit.layers(pictures(), 3), vit.features(pictures())
    for features, patches in zip(found, tokens[-3:], strict=True):
        assert torch.equal(features.patches, patches)
        assert features.grid == (4, 4)
    assert torch.equal(found[-1].pooled, seen.pooled)
    assert torch.equal(seen.cls, seen.pooled)
    assert vit.patch_grid(pictures()) == seen.grid
    assert build("test_vit", pool="avg", options={"class_token": False}).features(pictures()).cls is None
    with pytest.raises(ConfigError, match=r"layers: .* has 12 blocks; expected 1 to 12, got 13"):
        vit.layers(pictures(), 13)


def test_pooled_patches_have_no_attention_of_a_class_token(build, pictures):
    assert build("test_vit", pool="avg").attention(pictures()) is None


def test_keeping_all_patches_in_order_changes_nothing(pictures, vit):
    plain, kept = vit.features(pictures()), vit.features(pictures(), keep=torch.arange(16).expand(2, -1))
    torch.testing.assert_close(kept.pooled, plain.pooled)
    torch.testing.assert_close(kept.patches, plain.patches)
    assert kept.grid is None


def test_kept_patches_come_in_the_order_asked_for(pictures, vit):
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    plain, shuffled = vit.features(pictures()), vit.features(pictures(), keep=order)
    torch.testing.assert_close(shuffled.patches, take(plain.patches, order), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled.pooled, plain.pooled, atol=1e-4, rtol=1e-4)


def test_patches_that_are_not_kept_have_no_influence(pictures, vit):
    keep = torch.tensor([[0, 5, 9], [15, 1, 2]])
    changed = pictures()
    changed[0, :, 8:16, 8:16] += 9  # patch 5 of the first image: kept
    changed[1, :, 8:16, 8:16] += 9  # patch 5 of the second image: not kept
    before, after = (vit.features(x, keep=keep) for x in (pictures(), changed))
    assert before.patches.shape == (2, 3, 192)
    assert not torch.equal(before.patches[0], after.patches[0])
    assert torch.equal(before.patches[1], after.patches[1])


@pytest.mark.parametrize("dynamic", [True, False])
def test_masked_patches_have_no_influence_and_the_token_has(build, pictures, dynamic):
    vit = build("test_vit", patch_size=8, options={"dynamic_img_size": dynamic})
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True
    token = torch.randn(64, requires_grad=True)
    changed = pictures()
    changed[:, :, 8:16, 8:16] = 9.0
    before, after = (vit.features(x, mask=mask, token=token) for x in (pictures(), changed))
    assert torch.equal(before.patches, after.patches)
    assert torch.equal(before.pooled, after.pooled)
    assert before.grid == (4, 4)
    assert not torch.equal(before.patches, vit.features(pictures(), mask=mask, token=token + 1).patches)
    nothing = torch.zeros_like(mask)
    torch.testing.assert_close(vit.features(pictures(), mask=nothing, token=token).pooled, vit(pictures()))
    before.patches.square().sum().backward()
    assert token.grad is not None
    assert token.grad.norm() > 0


def test_masked_places_keep_their_positions(pictures, vit):
    everything = torch.ones(2, 16, dtype=torch.bool)
    patches = vit.features(pictures(), mask=everything, token=torch.zeros(192)).patches
    assert len(patches[0].unique(dim=0)) == 16


def test_patches_that_timm_drops_leave_no_grid(build, pictures):
    seen = build("test_vit", patch_size=8, options={"patch_drop_rate": 0.5}).train().features(pictures())
    assert (seen.patches.shape, seen.grid) == ((2, 8, 64), None)


# -- sizes of views --------------------------------------------------------------------------------
def test_views_of_several_sizes_pass_a_vision_transformer(build, pictures, vit):
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, dynamic_img_size=True)
    plain.load_state_dict(vit.export_state())
    for size in (16, 24, 48):
        seen = vit.features(pictures(size))
        assert seen.grid == (size // 8, size // 8)
        torch.testing.assert_close(seen.pooled, plain.eval()(pictures(size)))


def test_views_are_padded_with_zeros_to_whole_patches(build, pictures, vit):
    view, padded = pictures(18), torch.zeros(2, 3, 24, 24)
    padded[:, :, :18, :18] = view
    assert vit.features(view).grid == (3, 3)
    assert torch.equal(vit(view), vit(padded))
    asked = build("test_vit", 30, options={"dynamic_img_pad": True})
    assert asked.features(pictures(30)).grid == (2, 2)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("swin_s3_tiny_224", 18, r"made for images of 32 px, cannot take views of 18 x 18 px: .*divisible"),
        ("test_vit_relpos", 16, r"timm/test_vit_relpos, made for images of 32 px, cannot take views of 16 x 16 px"),
    ],
)
def test_a_view_of_a_size_that_it_cannot_take_is_the_users_to_mend(build, pictures, model, size, message):
    with pytest.raises(ConfigError, match=message + ".*Give all views sizes that it takes, or choose another"):
        build(model)(pictures(size))


def test_other_mistakes_are_not_blamed_on_the_size(build, pictures):
    with pytest.raises(RuntimeError, match="expected input"):
        build("test_resnet")(pictures(32, channels=5))


# -- positions of views of other sizes -------------------------------------------------------------
def nodes(result: torch.Tensor) -> set[str]:
    """The names of what autograd will call."""
    found, left = {}, [result.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            left += [before for before, _ in node.next_functions]
    return set(found.values())


@pytest.mark.parametrize("size", [(20, 20), (48, 40)])
def test_positions_are_interpolated_by_products_alone_if_asked(vit, size):
    images = torch.rand(2, 3, *size)
    plain = vit.features(images).pooled
    with ByMatrices():
        same = vit.features(images).pooled
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
    assert any("Bicubic" in name for name in nodes(plain))
    assert not any("Bicubic" in name for name in nodes(same))
    gradients = [torch.autograd.grad(result.sum(), vit.pos_embed)[0] for result in (plain, same)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)

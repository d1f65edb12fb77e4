from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from akssl_core.backbone.vit import ViTBase, ViTMicro, ViTSmall, ViTTiny
from akssl_core.config.schema import validate
from akssl_core.data.base import ImageSpec
from akssl_core.errors import ConfigError
from akssl_core.nn import EMA, sincos, take
from akssl_core.optim import AdamW, parameter_groups
from akssl_core.schedule import Schedule


def build(size: int = 32, component=ViTTiny, **settings) -> ViTTiny:
    torch.manual_seed(0)
    image = ImageSpec(size, 3, (0.5,) * 3, (0.2,) * 3)
    return component(validate(component.Config, settings, registry=None), image).eval()


@pytest.fixture(scope="module")
def vit():
    return build()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# -- parts of an image ----------------------------------------------------------------------------
def test_keeping_all_patches_in_order_changes_nothing(vit, images):
    plain = vit.features(images)
    kept = vit.features(images, keep=torch.arange(64).expand(2, -1))
    assert torch.equal(kept.pooled, plain.pooled)
    assert torch.equal(kept.patches, plain.patches)
    assert plain.grid == (8, 8)
    assert kept.grid is None


def test_kept_patches_come_in_the_order_asked_for(vit, images):
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    plain, shuffled = vit.features(images), vit.features(images, keep=order)
    torch.testing.assert_close(shuffled.patches, take(plain.patches, order), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled.pooled, plain.pooled, atol=1e-4, rtol=1e-4)


def test_patches_that_are_not_kept_have_no_influence(vit, images):
    keep = torch.tensor([[0, 5, 9], [63, 1, 2]])
    changed = images.clone()
    changed[0, :, 4:8, 4:8] += 9  # patch 9 of the first image: kept
    changed[1, :, 4:8, 4:8] += 9  # patch 9 of the second image: not kept
    before, after = (vit.features(x, keep=keep) for x in (images, changed))
    assert before.patches.shape == (2, 3, 192)
    assert not torch.equal(before.patches[0], after.patches[0])
    assert torch.equal(before.patches[1], after.patches[1])


def test_masked_patches_have_no_influence_and_the_token_has(vit, images):
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, 9] = True
    token = torch.randn(192)
    changed = images.clone()
    changed[:, :, 4:8, 4:8] = 9.0
    before, after = (vit.features(x, mask=mask, token=token) for x in (images, changed))
    assert torch.equal(before.patches, after.patches)
    assert torch.equal(before.pooled, after.pooled)
    assert not torch.equal(before.patches, vit.features(images, mask=mask, token=token + 1).patches)
    assert not torch.equal(before.patches, vit.features(images).patches)
    assert before.grid == (8, 8)


def test_masked_places_keep_their_positions(vit, images):
    everything = torch.ones(2, 64, dtype=torch.bool)
    patches = vit.features(images, mask=everything, token=torch.zeros(192)).patches
    assert len(patches[0].unique(dim=0)) == 64


def test_an_empty_mask_changes_nothing(vit, images):
    mask = torch.zeros(2, 64, dtype=torch.bool)
    assert torch.equal(vit.features(images, mask=mask, token=torch.ones(192)).pooled, vit(images))


def test_the_token_learns(vit, images):
    token = torch.zeros(192, requires_grad=True)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, :32] = True
    vit.features(images, mask=mask, token=token).patches.sum().backward()
    assert token.grad.norm() > 0


# -- attention ------------------------------------------------------------------------------------
def attention_by_torch(attend, tokens):
    """The weights of torch's own attention layer, (B, heads, N, N)."""
    reference = nn.MultiheadAttention(tokens.shape[2], attend.heads, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": attend.qkv.weight,
            "in_proj_bias": attend.qkv.bias,
            "out_proj.weight": attend.proj.weight,
            "out_proj.bias": attend.proj.bias,
        }
    )
    out, weights = reference(tokens, tokens, tokens, average_attn_weights=False)
    torch.testing.assert_close(out, attend(tokens))
    return weights


@pytest.mark.parametrize("shape", [(32, 32), (16, 32), (30, 18)])
def test_attention_is_that_of_the_class_token_in_the_last_block(vit, shape):
    images, seen = torch.randn(2, 3, *shape), []
    with vit.blocks[-1].attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        grid = vit.features(images).grid
    found = vit.attention(images)
    assert found.shape == (2, 3, *grid)
    torch.testing.assert_close(found.flatten(2), attention_by_torch(vit.blocks[-1].attn, seen[0])[:, :, 0, 1:])


def test_pooled_patches_have_no_attention_of_a_class_token(images):
    assert build(pool="mean").attention(images) is None


# -- sizes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", [(4, 4), (12, 12), (3, 10)])
def test_positions_are_interpolated_as_torch_does(vit, grid):
    own = vit.pos_embed[:, 1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(own, size=grid, mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(vit.positions(grid), expected)


def test_sides_are_padded_with_zeros_to_whole_patches(vit):
    image = torch.randn(1, 3, 30, 18)
    padded = torch.zeros(1, 3, 32, 20)
    padded[:, :, :30, :18] = image
    assert vit.features(image).grid == (8, 5)
    assert torch.equal(vit(image), vit(padded))


@pytest.mark.parametrize(
    ("size", "settings", "patch", "notes"),
    [
        (64, {}, 4, ["vit_tiny: patches of 4 px, because 64 px is at most 64 px"]),
        (96, {}, 16, ["vit_tiny: patches of 16 px, because 96 px is over 64 px"]),
        (32, {"patch_size": 8}, 8, []),
        (30, {"patch_size": 8}, 8, ["vit_tiny: images are padded from 30 to 32 px, whole patches"]),
    ],
)
def test_the_patch_size_and_its_reason(size, settings, patch, notes):
    vit = build(size, **settings)
    assert vit.patch_size == vit.patch_embed.proj.kernel_size[0] == patch
    assert vit.notes == notes


@pytest.mark.parametrize("patch_size", [0, -4, "large"])
def test_a_wrong_patch_size_is_refused(patch_size):
    with pytest.raises(ConfigError, match="patch_size"):
        build(patch_size=patch_size)


# -- fixed positions ------------------------------------------------------------------------------
def test_fixed_positions_are_sines_and_cosines_and_zeros_for_the_class_token():
    vit = build(positions="sincos")
    assert torch.equal(vit.pos_embed[0, 1:], sincos((8, 8), 192))
    assert not vit.pos_embed[0, 0].any()
    assert vit.export_state()["pos_embed"].shape == (1, 65, 192), "the file has the keys of learned positions"


def test_fixed_positions_have_no_gradient_and_all_else_is_trained(images):
    vit = build(positions="sincos")
    vit(images)[:, 0].sum().backward()
    assert {name for name, p in vit.named_parameters() if p.grad is None} == {"pos_embed"}
    learned = build()
    learned(images)[:, 0].sum().backward()
    assert learned.pos_embed.grad.norm() > 0


def test_fixed_positions_alone_differ_from_learned_ones():
    fixed, learned = build(positions="sincos").state_dict(), build().state_dict()
    assert {key for key in learned if not torch.equal(fixed[key], learned[key])} == {"pos_embed"}


def test_fixed_positions_follow_the_grid_where_it_is_not_the_one_of_training():
    vit = build(positions="sincos")
    assert vit.positions((4, 4)).shape == (1, 16, 192)
    assert vit.features(torch.zeros(1, 3, 16, 24)).grid == (4, 6)


# -- the network ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("component", "width", "millions"), [(ViTTiny, 192, 5.5), (ViTSmall, 384, 21.7), (ViTBase, 768, 85.8)]
)
def test_keys_and_sizes(component, width, millions):
    with torch.device("meta"):
        vit = component(component.Config(), ImageSpec(224, 3, (0.5,) * 3, (0.2,) * 3))
    shapes = {key: tuple(value.shape) for key, value in vit.export_state().items()}
    block = {
        "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    assert shapes == {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **{f"blocks.{i}.{key}": shape for i in range(12) for key, shape in block.items()},
    }
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_heads_follow_the_width_unless_they_are_set(images):
    six = build(heads=6)
    assert [block.attn.heads for block in six.blocks] == [6] * 12
    assert {block.attn.heads for block in build().blocks} == {3}
    assert ViTSmall.heads == 6
    three = build()
    three.load_state_dict(six.state_dict())
    assert not torch.allclose(three(images), six(images), atol=1e-4)


def test_heads_that_do_not_share_the_width_are_refused():
    with pytest.raises(
        ConfigError, match="backbone.heads: 5 must divide the width of 192; 1, 2, 3, 4, 6, 8, 12, 16, 24"
    ):
        build(heads=5)


def test_initial_weights_are_narrow(vit):
    for weight in (vit.pos_embed, vit.blocks[3].attn.qkv.weight, vit.blocks[11].mlp.fc2.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not vit.blocks[0].attn.qkv.bias.any()


def test_xaviers_weights_have_the_bounds_of_their_matrix_queries_keys_and_values_apart():
    vit = build(init="xavier")
    bounds = {(vit.patch_embed.proj, 1): 48 + 192}  # 4 x 4 patches of 3 channels
    for block in vit.blocks:
        bounds |= {(block.attn.qkv, 3): 2 * 192, (block.attn.proj, 1): 2 * 192}
        bounds |= {(block.mlp.fc1, 1): 5 * 192, (block.mlp.fc2, 1): 5 * 192}
    assert len(bounds) == 1 + sum(isinstance(module, nn.Linear) for module in vit.modules())
    for (layer, parts), fans in bounds.items():
        for matrix in layer.weight.detach().flatten(1).chunk(parts):
            assert matrix.abs().max() == pytest.approx((6 / fans) ** 0.5, rel=0.01)
            assert matrix.std() == pytest.approx((2 / fans) ** 0.5, rel=0.05)
        assert not layer.bias.any()
    assert vit.cls_token.std() < 1e-5


def test_pooling_is_the_class_token_or_the_mean(vit, images):
    mean = build(pool="mean")
    found = mean.features(images)
    torch.testing.assert_close(found.pooled, found.patches.mean(1))
    torch.testing.assert_close(found.patches, vit.features(images).patches)
    assert not torch.allclose(found.pooled, vit(images))


def test_stochastic_depth_follows_torchs_generator(images):
    vit = build(drop_path=0.5).train()
    torch.manual_seed(5)
    first = vit(images)
    assert not torch.equal(vit(images), first)
    torch.manual_seed(5)
    assert torch.equal(vit(images), first)


def test_a_slow_copy_has_no_stochastic_depth(images):
    vit = build(drop_path=0.5).train()
    slow = EMA(Schedule(start=0.9), backbone=vit).train()
    assert torch.equal(slow.backbone(images), vit.eval()(images))


# -- settings of the network ----------------------------------------------------------------------
def test_width_depth_and_hidden_width_are_settings(images):
    vit = build(width=128, depth=3, mlp_ratio=2)
    assert vit(images).shape == (2, vit.embed_dim) == (2, 128)
    assert len(vit.blocks) == len(vit.parts()) == 3
    assert vit.blocks[0].mlp.fc1.out_features == 256
    assert vit.blocks[0].attn.heads == 2, "64 channels each"


def test_the_small_one_for_a_cpu(images):
    vit = build(component=ViTMicro)
    assert (vit.grid, vit.patch_size, vit.blocks[0].attn.heads) == ((4, 4), 8, 4)
    assert build(size=96, component=ViTMicro).patch_size == 16
    assert vit.notes == ["vit_micro: patches of 8 px, because 32 px is at most 64 px"]
    (note,) = build(size=33, component=ViTMicro).notes
    assert note.endswith("patches of 3 px, because 33 px is at most 64 px and no multiple of 8: 121 patches an image")
    sides = {size: build(size=size, component=ViTMicro).patch_size for size in (8, 12, 20, 28, 31, 40, 64)}
    assert sides == {8: 4, 12: 6, 20: 5, 28: 7, 31: 8, 40: 8, 64: 8}, "whole patches, more than one"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 90, "positions": "sincos"}, "backbone.width: 90 must be a multiple of 4"),
        ({"class_token": False}, "backbone.pool: 'cls' takes the class token, .* Set backbone.pool to mean"),
        ({"class_token": False, "pool": "both"}, "backbone.pool: 'both' takes the class token"),
        ({"width": 4}, "width"),
        ({"registers": -1}, "registers"),
        ({"layer_scale": 0}, "layer_scale"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_registers_are_attended_to_and_no_features(images):
    vit, plain = build(registers=3), build()
    found = vit.features(images)
    assert (found.patches.shape, found.grid) == ((2, 64, 192), (8, 8))
    assert vit.attention(images).shape == (2, 3, 8, 8)
    assert {key: tuple(t.shape) for key, t in vit.state_dict().items() if key not in plain.state_dict()} == {
        "reg_token": (1, 3, 192)
    }
    assert vit.pos_embed.shape == (1, 64, 192), "as timm has it: neither class token nor registers have a position"
    nn.init.normal_(vit.reg_token)
    assert not torch.allclose(vit.features(images).pooled, found.pooled)
    everything = torch.arange(64).expand(2, -1)
    assert torch.equal(vit.features(images, keep=everything).pooled, vit(images))


def test_without_a_class_token_patches_are_pooled(images):
    vit = build(class_token=False, pool="mean", positions="sincos", depth=2)
    found = vit.features(images)
    torch.testing.assert_close(found.pooled, found.patches.mean(1))
    assert found.cls is None
    assert vit.attention(images) is None
    assert "cls_token" not in vit.state_dict()
    assert torch.equal(vit.pos_embed[0], sincos((8, 8), 192))


def test_both_ways_of_pooling_side_by_side(images):
    both, mean = build(pool="both", depth=2), build(pool="mean", depth=2)
    found = both.features(images)
    assert (both.embed_dim, both.token_dim, mean.token_dim) == (384, 192, 192)
    assert torch.equal(found.pooled, torch.cat([found.cls, mean(images)], 1))
    assert torch.equal(found.cls, build(depth=2)(images))
    assert torch.equal(mean.features(images).cls, found.cls), "the class token is there whatever is pooled"


@pytest.mark.parametrize("settings", [{}, {"registers": 2, "pool": "mean"}])
def test_the_features_after_each_of_the_last_blocks(images, settings):
    vit = build(depth=4, **settings)
    found = vit.layers(images, 3)
    for features, depth in zip(found, (2, 3, 4), strict=True):
        shorter = build(depth=depth, **settings)
        shorter.load_state_dict({key: vit.state_dict()[key] for key in shorter.state_dict()})
        expected = shorter.features(images)
        assert torch.equal(features.pooled, expected.pooled)
        assert torch.equal(features.patches, expected.patches)
        assert torch.equal(features.cls, expected.cls)
        assert features.grid == (8, 8)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match=f"layers: vit_tiny has 4 blocks; expected 1 to 4, got {wrong}"):
            vit.layers(images, wrong)


@pytest.mark.parametrize("shape", [(32, 32), (16, 24), (30, 18)])
def test_the_grid_is_known_before_a_pass(vit, shape):
    images = torch.zeros(1, 3, *shape)
    assert vit.patch_grid(images) == vit.features(images).grid


def test_fixed_positions_and_factors_of_branches_are_not_decayed():
    vit = build(positions="sincos", layer_scale=1e-5, registers=2, depth=2)
    groups = parameter_groups(vit, [], AdamW.Config())
    decayed = {name: group["weight_decay"] > 0 for group in groups for name in group["names"]}
    assert "pos_embed" not in decayed
    assert not decayed["blocks.1.ls2.gamma"]
    assert decayed["reg_token"]

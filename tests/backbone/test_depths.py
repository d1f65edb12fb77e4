"""How deep the parameters of networks are, and the rates that follow from it."""

from __future__ import annotations

import pytest
from torch import nn

from akssl_core import ImageSpec
from akssl_core.backbone import WrappedBackbone
from akssl_core.config.schema import validate
from akssl_core.errors import ConfigError
from akssl_core.method import ParamRule
from akssl_core.optim import LARS, AdamW, depth_rules, parameter_groups
from akssl_core.plugins.manager import Plugins

IMAGE = ImageSpec(32, 3, (0.5,) * 3, (0.5,) * 3)
STEM, TOKENS = "backbone.patch_embed.proj.weight", "backbone.cls_token"


@pytest.fixture
def network(plugins: Plugins):
    def build(name, **settings):
        component = plugins.get("backbone", name)
        return component(component.Config(**settings), IMAGE)

    return build


class Whole(nn.Module):
    """A backbone with a head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embed_dim, 4)


def factors(backbone, kind=AdamW, rules=(), **settings):
    """The factor of the learning rate of each parameter, by name."""
    config, whole = validate(kind.Config, settings, registry=None), Whole(backbone)
    groups = parameter_groups(whole, [*rules, *depth_rules(backbone, config)], config)
    named = [(name, group) for group in groups for name in group["names"]]
    names = [name for name, _ in named]
    assert len(set(names)) == len(names) == len(list(whole.parameters()))
    return {name: group["lr_factor"] for name, group in named}, dict(named)


def test_the_table_of_a_transformer_of_12_blocks(network):
    found, _ = factors(network("vit_tiny"), layer_decay=0.9)
    for name in (STEM, "backbone.patch_embed.proj.bias", TOKENS, "backbone.pos_embed"):
        assert found[name] == pytest.approx(0.254187, rel=1e-5)
    assert found["backbone.blocks.0.norm1.weight"] == pytest.approx(0.282430, rel=1e-5)
    assert found["backbone.blocks.0.mlp.fc2.bias"] == pytest.approx(0.282430, rel=1e-5)
    assert found["backbone.blocks.11.attn.qkv.weight"] == pytest.approx(0.9)
    assert found["backbone.norm.weight"] == found["head.weight"] == 1.0
    slow, _ = factors(network("vit_tiny"), layer_decay=0.9, patch_embed_rate=0.2)
    assert slow[STEM] == pytest.approx(0.0508373, rel=1e-5)
    assert slow[TOKENS] == pytest.approx(0.254187, rel=1e-5)


def test_stages_are_the_layers_of_a_conv_net(network):
    found, _ = factors(network("resnet18"), kind=LARS, layer_decay=0.8)
    parts = {"conv1.weight": 5, "bn1.bias": 5, "layer1.0.conv1.weight": 4, "layer1.1.bn2.weight": 4,
             "layer2.0.downsample.0.weight": 3, "layer4.1.conv2.weight": 1}  # fmt: skip
    assert {name: found[f"backbone.{name}"] for name in parts} == pytest.approx({k: 0.8**v for k, v in parts.items()})


def test_rates_by_depth_go_with_rules_and_exempt_vectors(network):
    own = [ParamRule("backbone.layer4.*", lr=0.5), ParamRule("head.*", fixed_lr=True)]
    found, groups = factors(network("resnet_tiny"), kind=LARS, rules=own, layer_decay=0.5)
    assert found["backbone.layer4.0.conv1.weight"] == 0.25
    vector, matrix = groups["backbone.layer1.0.bn1.weight"], groups["backbone.layer1.0.conv1.weight"]
    assert (vector["lr_factor"], vector["weight_decay_factor"], vector["adapt"]) == (0.0625, 0.0, False)
    assert (matrix["lr_factor"], matrix["weight_decay_factor"], matrix["adapt"]) == (0.0625, 1.0, True)
    assert groups["head.weight"]["fixed_lr"]


def test_without_a_decay_there_are_no_rules(network):
    assert depth_rules(network("vit_tiny"), AdamW.Config()) == []


def test_a_patch_rate_is_refused_where_there_are_no_patches(network):
    with pytest.raises(ConfigError, match="patch_embed_rate: resnet_tiny has no projection of patches"):
        factors(network("resnet_tiny"), patch_embed_rate=0.2)


class Stages(nn.Sequential):
    """A stem, two stages with a layer between them, and a norm at the end."""

    def __init__(self):
        def block(width):
            return nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())

        stages = nn.Sequential(block(4), block(4)), nn.Sequential(block(8), block(8))
        super().__init__(nn.Conv2d(3, 4, 3), stages[0], nn.Conv2d(4, 8, 1), stages[1], nn.BatchNorm2d(8))


def test_what_stands_between_layers_is_of_the_one_that_follows():
    depths = WrappedBackbone(Stages(), IMAGE).depths()
    assert depths == {
        f"module.{place}.{kind}": depth
        for place, depth in {"0": 3, "1.0.0": 2, "1.1.0": 2, "2": 1, "3.0.0": 1, "3.1.0": 1, "4": 0}.items()
        for kind in ("weight", "bias")
    }


def test_without_blocks_the_children_are_the_layers():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    depths = WrappedBackbone(module, IMAGE).depths()
    assert [depths[f"module.{place}.weight"] for place in (0, 2, 3)] == [3, 2, 1]
    assert WrappedBackbone(nn.Conv2d(3, 4, 3), IMAGE).depths() == {"module.weight": 1, "module.bias": 1}

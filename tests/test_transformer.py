"""Blocks over tokens: their parts, and stochastic depth that is the same however a batch is divided."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from akssl_core.draws import Draws, drawing
from akssl_core.nn import Block, Trunk, initialise
from akssl_core.nn.transformer import DropPath

TOKENS = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(0))


def trunk(depth=3, **settings):
    torch.manual_seed(0)
    return Trunk(16, depth, 2, **settings)


# -- blocks ---------------------------------------------------------------------------------------
def test_a_block_is_torchs_encoder_layer():
    block = Block(16, 2, mlp_ratio=3)
    layer = nn.TransformerEncoderLayer(16, 2, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.", "mlp.fc1.": "linear1."}
    names |= {"mlp.fc2.": "linear2.", "norm1.": "norm1.", "norm2.": "norm2."}
    state = {}
    for name, tensor in block.state_dict().items():
        start = next(start for start in names if name.startswith(start))
        state[names[start] + name.removeprefix(start)] = tensor
    layer.load_state_dict(state)
    torch.testing.assert_close(block(TOKENS), layer(TOKENS))


def test_a_trunk_is_its_blocks_and_shows_what_comes_out_of_the_last():
    net, x, states = trunk(), TOKENS, []
    for block in net:
        states.append(x := block(x))
    assert torch.equal(net(TOKENS), x)
    assert all(map(torch.equal, net.states(TOKENS, 2), states[1:]))
    assert [name for name in net.state_dict() if "ls" in name] == []


def test_factors_of_branches_scale_what_blocks_add():
    plain, scaled = trunk(depth=1), trunk(depth=1, layer_scale=0.5)
    assert [name for name in scaled.state_dict() if name not in plain.state_dict()] == ["0.ls1.gamma", "0.ls2.gamma"]
    one, half = plain[0], scaled[0]
    middle = TOKENS + 0.5 * one.attn(one.norm1(TOKENS))
    torch.testing.assert_close(half(TOKENS), middle + 0.5 * one.mlp(one.norm2(middle)))
    assert not half(TOKENS).isnan().any()
    nn.init.zeros_(half.ls1.gamma)
    nn.init.zeros_(half.ls2.gamma)
    assert torch.equal(half(TOKENS), TOKENS)


def test_first_weights():
    def bound(how):
        layer = nn.ModuleDict({"qkv": nn.Linear(64, 192), "other": nn.Linear(64, 64, bias=False)})
        initialise(layer, how)
        assert not layer["qkv"].bias.any()
        return float(layer["qkv"].weight.detach().abs().max())

    assert bound("xavier") == pytest.approx((6 / 128) ** 0.5, rel=0.01)
    assert bound("xavier_joint") == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    assert bound("normal") < 0.1


# -- stochastic depth -----------------------------------------------------------------------------
def added(drop, rows, draws=None):
    """What a branch of ones adds to each row."""
    return drop(torch.zeros(rows, 1, 1), torch.ones_like, draws).flatten()


def test_each_images_branch_is_dropped_by_itself():
    values = added(DropPath(0.5), 400)
    assert set(values.tolist()) == {0.0, 2.0}
    assert 140 < int((values == 0).sum()) < 260
    draws = torch.tensor([0, 1 << 22, 1 << 23, (1 << 24) - 1], dtype=torch.int32)
    assert added(DropPath(0.25), 4, draws).tolist() == [0, *[pytest.approx(4 / 3)] * 3]
    assert added(DropPath(0.5).eval(), 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("rows", "rate", "left"), [(8, 0.3, 5), (10, 0.3, 7), (128, 0.1, 115), (2, 0.6, 1)])
def test_a_branch_of_a_subset_is_computed_for_it_alone(rows, rate, left):
    seen = []

    def branch(x):
        seen.append(len(x))
        return torch.ones_like(x)

    values = DropPath(rate, "subset")(torch.zeros(rows, 1, 1), branch).flatten()
    assert seen == [left]
    assert sorted(set(values.tolist())) == [0, pytest.approx(rows / left)]
    assert int((values > 0).sum()) == left


def test_rates_rise_or_are_the_same_in_all_blocks():
    assert [block.drop_path.rate for block in trunk(drop_path=0.4)] == [0, 0.2, 0.4]
    assert [block.drop_path.rate for block in trunk(drop_path=0.4, drop_path_shape="uniform")] == [0.4] * 3
    assert [block.drop_path.rate for block in trunk(depth=1, drop_path=0.4)] == [0.4]


def views_of(net, images, *, seed=0, step=0):
    """Two forward passes, the first of two views of these images (rows of TOKENS) one after the other."""
    with drawing(Draws.of_step(seed, step, torch.tensor(images))):
        return net(TOKENS[images].repeat(2, 1, 1)).chunk(2), net(TOKENS[images])


def test_which_images_are_dropped_follows_from_seed_step_and_image():
    net = trunk(drop_path=0.5, drop_path_shape="uniform")
    (first, second), third = views_of(net, [0, 1, 2, 3, 4, 5])
    for images in ([0, 1, 2], [5, 3], [4]):  # as in other processes and micro-batches
        (a, b), c = views_of(net, images)
        for whole, part in ((first, a), (second, b), (third, c)):
            torch.testing.assert_close(part, whole[images])
    assert not any(torch.allclose(*pair) for pair in ((first, second), (first, third), (second, third)))
    assert not torch.allclose(views_of(net, [0, 1, 2, 3, 4, 5], step=1)[1], third)
    assert not torch.allclose(views_of(net, [0, 1, 2, 3, 4, 5], seed=1)[1], third)


@pytest.mark.parametrize("kind", ["sample", "subset"])
def test_rows_that_are_no_views_of_the_batch_follow_torchs_generator(kind):
    net = trunk(drop_path=0.5, drop_path_kind=kind)

    def once(seed):
        torch.manual_seed(seed)
        with drawing(Draws.of_step(0, 0, torch.arange(5))):
            return net(TOKENS)

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))
    assert not torch.equal(net(TOKENS), net(TOKENS))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself where warnings are no errors
def test_a_step_of_a_compiled_trunk_draws_the_same():
    net = trunk(drop_path=0.5, drop_path_shape="uniform")
    compiled = torch.compile(net, backend="eager")
    for step in range(3):
        (first, second), third = views_of(net, [0, 1, 2], step=step)
        (a, b), c = views_of(compiled, [0, 1, 2], step=step)
        torch.testing.assert_close(torch.cat([a, b, c]), torch.cat([first, second, third]))

"""Fast convolutions give torch's numbers by another way, and leave no trace behind."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from akssl_core.training.convolution import Axis, Conv2d, Grid, _AsMatrix, _TapGradient, fast_convolutions

MATRIX, TAPS, TORCH = _AsMatrix, _TapGradient, None
GEOMETRIES = [  # channels in, out, map, kernel, stride, padding, the way in float32
    (32, 16, (1, 1), 3, 1, 1, MATRIX),
    (16, 32, (2, 2), 3, 1, 1, MATRIX),
    (16, 32, (2, 2), 3, 2, 1, MATRIX),
    (8, 8, (2, 1), 3, 1, 1, MATRIX),
    (8, 8, (4, 4), 4, 1, 0, MATRIX),
    (8, 8, (2, 2), 5, 1, 2, MATRIX),
    (8, 8, (1, 3), (1, 3), 1, (0, 1), MATRIX),
    (360, 320, (4, 4), 3, 1, 1, TAPS),
    (130, 128, (5, 4), 3, 2, 1, TAPS),
    (130, 128, (5, 4), 1, 2, 0, TAPS),
    (130, 128, (3, 3), 3, (2, 1), (0, 1), TAPS),
    (64, 64, (2, 1), 1, 1, 0, TAPS),
    (8, 8, (8, 8), 3, 1, 1, TORCH),
    (3, 64, (32, 32), 7, 2, 3, TORCH),
]


def conv_of(into, out, kernel, stride, padding, **more) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(into, out, kernel, stride, padding, **more)


def results(conv: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Output and all gradients."""
    images = images.clone().requires_grad_()
    out = conv(images)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, [images, *conv.parameters()], upstream)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("into", "out", "sides", "kernel", "stride", "padding", "way"), GEOMETRIES)
def test_output_and_gradients_are_torchs(into, out, sides, kernel, stride, padding, way, bias, layout):
    conv = conv_of(into, out, kernel, stride, padding, bias=bias).to(memory_format=layout)
    images = torch.randn(5, into, *sides).contiguous(memory_format=layout)
    expected = results(conv, images)
    with fast_convolutions(conv):
        assert conv._way(conv._grid(images), torch.float32) is way
        for mine, theirs in zip(results(conv, images), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(("into", "out", "sides"), [(64, 64, (1, 1)), (32, 64, (2, 2)), (320, 330, (4, 4))])
def test_in_mixed_precision_only_the_rounding_differs(into, out, sides):
    conv, images = conv_of(into, out, 3, 1, 1, bias=True), torch.randn(64, into, *sides)
    exact = results(conv, images)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = results(conv, images)
    with fast_convolutions(conv), torch.autocast("cpu", torch.bfloat16):
        mine = results(conv, images)
    for a, b, truth in zip(mine, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert float((a.float() - truth).norm()) <= 1.2 * float((b.float() - truth).norm())


def test_nothing_is_computed_for_what_needs_no_gradient():
    conv = conv_of(8, 8, 3, 1, 1)
    with fast_convolutions(conv):
        conv.weight.requires_grad_(False)
        images = torch.randn(4, 8, 2, 2, requires_grad=True)
        conv(images).sum().backward()
        assert conv.weight.grad is None
        assert images.grad is not None
        conv.weight.requires_grad_(True)
        conv(images.detach()).sum().backward()
        assert conv.weight.grad is not None


def test_without_gradients_taps_have_nothing_to_offer():
    conv, images = conv_of(360, 320, 3, 1, 1), torch.randn(2, 360, 4, 4)
    with fast_convolutions(conv), torch.no_grad():
        assert conv._way(conv._grid(images), torch.float32) is TORCH
        assert conv(images).equal(F.conv2d(images, conv.weight, conv.bias, padding=1))


@pytest.mark.parametrize(
    "more", [{"groups": 4}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}], ids=str
)
def test_unusual_convolutions_are_left_to_torch(more):
    conv = nn.Conv2d(8, 8, 3, **{"padding": 1, **more})
    images = torch.randn(2, 8, 5, 5)
    expected = conv(images)
    with fast_convolutions(conv):
        assert conv._grid(images) is None
        assert conv(images).equal(expected)


def test_an_image_without_batch_and_a_map_that_is_too_small_are_torchs_matter():
    conv = conv_of(8, 8, 3, 1, 0)
    with fast_convolutions(conv):
        assert conv(torch.randn(8, 5, 5)).shape == (8, 3, 3)
        with pytest.raises(RuntimeError, match="Kernel size"):
            conv(torch.randn(2, 8, 2, 2))


def test_taps_meet_each_pixel_as_often_as_the_plain_loop():
    for inputs, kernel, stride, padding in [(5, 3, 1, 1), (6, 3, 2, 1), (7, 5, 3, 2), (4, 1, 2, 0), (2, 5, 1, 2)]:
        axis = Axis(inputs, kernel, stride, padding)
        found = []
        for tap, outputs, seen in axis.taps():
            pairs = zip(range(axis.outputs)[outputs], range(inputs)[seen], strict=True)
            found += [(o, i, tap) for o, i in pairs]
        assert sorted(found) == sorted(axis.triples())
    assert Grid(Axis(2, 3, 1, 1), Axis(1, 3, 1, 1)).rows.outputs == 2


def test_modules_are_afterwards_as_they_were():
    class Own(nn.Conv2d):
        pass

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3)), Own(4, 4, 1))
    state = copy.deepcopy(net.state_dict())
    with contextlib.suppress(KeyError), fast_convolutions(net):
        assert [type(part) for part in net.modules() if isinstance(part, nn.Conv2d)] == [Conv2d, Conv2d, Own]
        raise KeyError
    assert [type(part) for part in net.modules() if isinstance(part, nn.Conv2d)] == [nn.Conv2d, nn.Conv2d, Own]
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())

"""Checks of backbones: shapes, gradients, independence of images, export, patches."""

from __future__ import annotations

import copy
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..backbone import Backbone, TokenBackbone
from ..errors import ConfigError
from ..training.recompute import twice
from .check import NotApplicable, expect, few, rule
from .subject import ComponentSubject, Waiting, backward, patterns, toy_spec


def _backbone(subject: ComponentSubject, size: int = 32, channels: int = 3, seed: int = 0) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: Backbone = subject.build(toy_spec(size, channels))
        return built


def _token_backbone(subject: ComponentSubject) -> Any:
    if not issubclass(subject.component, TokenBackbone):
        raise NotApplicable("not a TokenBackbone")
    return _backbone(subject).eval()


@rule("backbone", cure="set embed_dim to the width of Features.pooled, and grid to the rows and columns of the patches")
def features_have_their_shapes(subject: ComponentSubject) -> None:
    """Features are (B, embed_dim), and patches, where there are any, (B, rows x columns, D)."""
    for size, channels in ((32, 3), (16, 1), (48, 5), (96, 3)):
        net = _backbone(subject, size, channels).eval()
        with torch.no_grad():
            features = net.features(patterns(2, channels, size))
        what = f"{channels} channels of {size} px"
        expect(tuple(features.pooled.shape) == (2, net.embed_dim), f"{what}: pooled is {tuple(features.pooled.shape)}")
        expect(bool(features.pooled.isfinite().all()), f"{what}: features are not finite")
        if features.patches is not None and features.grid is not None:
            count = features.grid[0] * features.grid[1]
            expect(features.patches.shape[:2] == (2, count), f"{what}: patches are {tuple(features.patches.shape)}")


@rule("backbone", cure="remove what is not used: a classifier, a mask token, a head")
def gradient_reaches_every_parameter(subject: ComponentSubject) -> None:
    """Every trainable parameter gets a gradient."""
    net = _backbone(subject).train()
    waiting = Waiting(net)
    for step in range(3):  # a branch that starts at zero lets gradients through from the second step on
        net.zero_grad()
        features = net.features(patterns(4, 3, 32, seed=step))
        backward((features.pooled * torch.linspace(-1, 1, net.embed_dim)).square().sum())
        waiting.look()
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p.sub_(p.grad / p.grad.norm().clamp(min=1e-6), alpha=1e-2)
    waiting.none_left()


@rule("backbone", cure="put every batch norm and dropout into evaluation mode")
def features_belong_to_their_image(subject: ComponentSubject) -> None:
    """In evaluation mode features of an image do not depend on the images beside it, nor on chance."""
    net, images = _backbone(subject).eval(), patterns(6, 3, 32)
    with torch.no_grad():
        together, again, alone = net(images), net(images), net(images[:1])
    expect(torch.equal(together, again), "two passes over the same images give other features")
    gap = float((together[:1] - alone).abs().max())
    expect(
        gap < 1e-4 * max(float(alone.abs().max()), 1.0), f"the first image's features differ by {gap:.2g} when alone"
    )


@rule("backbone", cure="let export_state() return what load_state_dict() takes, each tensor once")
def weights_can_be_exported(subject: ComponentSubject) -> None:
    """The exported weights go through safetensors into a fresh network, and features are the same."""
    net, other = _backbone(subject).eval(), _backbone(subject, seed=1).eval()
    exported = {name: tensor.contiguous() for name, tensor in net.export_state().items()}
    other.load_state_dict(load(save(exported)))
    images = patterns(2, 3, 32)
    with torch.no_grad():
        gap = float((net(images) - other(images)).abs().max())
    expect(gap == 0, f"features differ by {gap:.2g} after a round trip")


@rule(
    "backbone",
    cure="in the blocks of parts() draw from torch's generators alone, keep no state but the running statistics of "
    "torch's norms, and change no input in place",
)
def blocks_can_be_computed_twice(subject: ComponentSubject) -> None:
    """Gradients and running statistics are the same where the insides of blocks are dropped and computed again."""
    once = _backbone(subject).train()
    again = copy.deepcopy(once)
    forwards = twice(again)
    if not forwards:
        raise NotApplicable("it has no blocks")
    for block, forward in forwards.items():
        block.forward = forward
    for net in (once, again):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backward((net(patterns(4, 3, 32)) * torch.linspace(-1, 1, net.embed_dim)).square().sum())
    pairs = zip(_moved(once).items(), _moved(again).values(), strict=True)
    gaps = {name: float((one - other).abs().max() / one.abs().max().clamp(min=1e-6)) for (name, one), other in pairs}
    wrong = [f"{name} by {gap:.2g}" for name, gap in gaps.items() if not gap < 1e-4]
    expect(not wrong, f"computed twice, these differ in parts of their size: {few(wrong)}")


def _moved(net: Backbone) -> dict[str, Tensor]:
    """Gradients and buffers after a pass, by name."""
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return gradients | {name: buffer.double() for name, buffer in net.named_buffers()}


@rule("backbone", cure="select `keep` after positions were added; replace where `mask` is set before that")
def patches_can_be_kept_and_masked(subject: ComponentSubject) -> None:
    """Kept patches are encoded alone, and masked ones are replaced by the token."""
    net = _token_backbone(subject)
    images = patterns(2, 3, 32)
    with torch.no_grad():
        whole = net.features(images)
        assert whole.patches is not None
        count, width = whole.patches.shape[1:]
        kept = net.features(images, keep=torch.arange(count // 2).expand(2, -1))
        expect(kept.patches.shape == (2, count // 2, width), f"kept patches are {tuple(kept.patches.shape)}")
        mask = torch.zeros(2, count, dtype=torch.bool)
        token = torch.zeros(width)
        same = net.features(images, mask=mask, token=token)
        expect(torch.allclose(same.pooled, whole.pooled, atol=1e-5), "an empty mask changes the features")
        mask[:, 0] = True
        masked = [
            net.features(other, mask=mask, token=token).pooled for other in (images, _first_patch_white(net, images))
        ]
        expect(torch.allclose(masked[0], masked[1], atol=1e-5), "pixels of a masked patch still reach the features")


@rule("backbone", cure="give what comes out of each block the norm and the pooling of the last one")
def layers_end_with_the_features(subject: ComponentSubject) -> None:
    """The features after the last of several layers are the features."""
    net, images = _token_backbone(subject), patterns(2, 3, 32)
    try:
        with torch.no_grad():
            *_, one, last = net.layers(images, 2)
    except ConfigError as error:
        raise NotApplicable("it does not tell those of other layers") from error
    with torch.no_grad():
        whole = net.features(images)
    expect(torch.equal(last.pooled, whole.pooled), "the pooled ones differ")
    expect(torch.equal(last.patches, whole.patches), "those of the patches differ")
    expect(not torch.equal(one.pooled, last.pooled), "two layers have the same")


@rule("backbone", cure="return weights (B, heads, rows, columns) of the patches' grid, without the class token's own")
def attention_is_over_the_patches(subject: ComponentSubject) -> None:
    """Attention has the patches' grid; weights are not negative, and each head's sum is at most 1."""
    net = _token_backbone(subject)
    images = patterns(2, 3, 32)
    with torch.no_grad():
        found, grid = net.attention(images), net.features(images).grid
    if found is None:
        raise NotApplicable("its attention is not known")
    shape = tuple(found.shape)
    expect(found.ndim == 4 and (shape[0], shape[2:]) == (2, tuple(grid)), f"attention is {shape}, the grid is {grid}")
    expect(bool((found >= 0).all()), "some weights are negative")
    expect(bool((found.sum((2, 3)) <= 1 + 1e-4).all()), "a head's weights sum to more than 1")


def _first_patch_white(net: Any, images: Tensor) -> Tensor:
    changed_images = images.clone()
    changed_images[:, :, : net.patch_size, : net.patch_size] = 2.0
    return changed_images

"""Checks of augmentations: shapes, and draws that belong to one image and one view."""

from __future__ import annotations

from typing import Any

import torch

from ..data import Pixels
from ..draws import Draws
from .check import expect, rule
from .setting_checks import draws_per_image
from .subject import ComponentSubject, toy_images, toy_spec


def _views(
    subject: ComponentSubject, channels: int = 3, size: int = 32, seed: int = 0, part: slice = slice(None)
) -> Any:
    augmentation = subject.build(toy_spec(size, channels))
    images, _ = toy_images(8, channels, 32)
    return augmentation, augmentation(Pixels(images[part]), Draws.of(seed, 0, torch.arange(8)[part]))


@rule(
    "augmentation",
    cure="return (B, C, size, size) float32 from each transform; leave out colour operations on other than 3 channels",
)
def views_have_their_shapes(subject: ComponentSubject) -> None:
    """Views are float32, normalised and of the size their group tells, for any number of channels."""
    for channels, size in ((3, 32), (1, 16), (5, 24)):
        augmentation, views = _views(subject, channels, size)
        for group in augmentation.groups():
            expect(
                len(views[group.name]) == len(group.transforms), f"'{group.name}' has {len(views[group.name])} views"
            )
            for view in views[group.name]:
                expected = (8, channels, group.size, group.size)
                expect(tuple(view.shape) == expected, f"a view is {tuple(view.shape)} instead of {expected}")
                expect(
                    view.dtype == torch.float32 and bool(view.isfinite().all()), f"a view is {view.dtype} or not finite"
                )


@rule("augmentation", cure="draw one set of parameters per image: draws.uniform('my-op', n) is (B, n)")
def views_are_drawn_per_image(subject: ComponentSubject) -> None:
    """Each image and each view is drawn with parameters of its own."""
    images, _ = toy_images(1, 3, 32)
    draws_per_image(subject.build(toy_spec()), images.expand(8, -1, -1, -1).contiguous())


@rule("augmentation", cure="take every random number from Draws (uniform, seeds), none from torch, random or numpy")
def views_follow_from_the_draws(subject: ComponentSubject) -> None:
    """A view is a function of seed, epoch, image and view: the same in any batch, whatever generators do."""
    torch.manual_seed(0)
    _, whole = _views(subject)
    torch.manual_seed(1)
    _, again = _views(subject)
    _, part = _views(subject, part=slice(3, 6))
    _, other = _views(subject, seed=1)
    for name, group in whole.items():
        for i, view in enumerate(group):
            expect(torch.equal(view, again[name][i]), f"view {i} of '{name}' depends on a global generator")
            expect(
                torch.allclose(view[3:6], part[name][i], atol=1e-5),
                f"view {i} of '{name}' depends on the batch around it",
            )
            expect(not torch.equal(view, other[name][i]), f"view {i} of '{name}' is the same under another seed")

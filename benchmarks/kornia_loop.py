"""The honest rival: the best loop that a careful user of today's libraries would write by hand.

Batched augmentation by kornia with the same policy, bf16 autocast, channels_last, images ready in memory; the method's
modules, loss and optimizer are ours, its convolutions and memory torch's own. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from akssl_core import Batch, Views
from akssl_core.augment.policy import PolicyTransform
from akssl_core.method import Method
from akssl_core.nn import StepState
from akssl_core.running.plan import Plan


def pipeline(transform: PolicyTransform, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """One of our policies in kornia's terms."""
    policy, size = transform.policy, (transform.size, transform.size)
    jitter = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    steps: list[nn.Module] = [
        K.RandomResizedCrop(size, scale=policy.scale, ratio=policy.ratio),
        K.RandomHorizontalFlip(p=policy.flip),
        K.ColorJitter(*jitter, p=policy.jitter),
        K.RandomGrayscale(p=policy.grayscale),
    ]
    if policy.blur:
        kernel = 2 * (transform.size // 20) + 1
        steps.append(K.RandomGaussianBlur((kernel, kernel), policy.blur_sigma, p=policy.blur))
    steps.append(K.Normalize(torch.tensor(mean), torch.tensor(std)))
    return nn.Sequential(*steps)


class KorniaLoop:
    """A plan's method, trained by a plain loop over images in memory."""

    def __init__(self, plan: Plan, images: Tensor) -> None:
        self.engine = plan.engine([])
        self.images = images.to(self.engine.device)
        image, groups = plan.image, plan.augmentation.groups()
        self.groups = {
            g.name: [pipeline(t, image.mean, image.std).to(self.engine.device) for t in g.transforms] for g in groups
        }
        self.slow = [part for part in plan.method.modules() if isinstance(part, StepState | Method)]
        self.order = torch.randperm(len(images))
        self.place = 0

    def step(self) -> None:
        """One step, from uint8 images on."""
        engine, size = self.engine, self.engine.batch_size
        if self.place + size > len(self.images):
            self.order, self.place = torch.randperm(len(self.images)), 0
        index = self.order[self.place : self.place + size].to(engine.device)
        self.place += size
        pixels = self.images[index].float().div_(255)
        with torch.no_grad():
            views = Views({name: [self._view(t, pixels) for t in group] for name, group in self.groups.items()})
        with torch.autocast(engine.device.type, torch.bfloat16):
            loss = engine.method(Batch(views, index), engine.now)["loss"]
        loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad(set_to_none=True)
        for part in self.slow:
            part.after_step(engine.now)

    @staticmethod
    def _view(transform: nn.Module, pixels: Tensor) -> Tensor:
        view: Tensor = transform(pixels)
        return view.contiguous(memory_format=torch.channels_last)

"""The peer: lightly's methods as the examples of its repository build them.

Heads, losses, transforms, optimizers, learning rates, batch sizes and schedules are those of `examples/pytorch/` in
lightly-ai/lightly. Only what a common budget fixes is different: the backbone, the images, the epochs, the size of
the views (local crops keep their 96/224 of the global ones), the mean and standard deviation that views are scaled
by, and no blur below 64 px, which lightly's own examples for 32 px leave out as well. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    LeJEPALoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
)
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    LeJEPAProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    DINOTransform,
    MoCoV2Transform,
    SimCLRTransform,
    SimSiamTransform,
    SwaVTransform,
    VICRegTransform,
)
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from akssl_core import Backbone, ImageSpec

WORKERS = 2


class Trained(NamedTuple):
    """What a peer leaves behind."""

    encoder: nn.Module  # in evaluation mode: images (B, C, H, W) -> features (B, D)
    seconds: float  # from the first batch asked for to the last step done


@dataclass(frozen=True)
class Example:
    """One method, ready to train."""

    batch_size: int
    transform: Callable[[Image.Image], list[Tensor]]
    modules: nn.ModuleList  # all that the optimizer sees, as in `model.parameters()` of the example
    optimizer: torch.optim.Optimizer
    loss: Callable[[list[Tensor], int], Tensor]  # of the views of a batch in an epoch
    encoder: nn.Module
    after_backward: Callable[[float], Any] = lambda epoch: None  # epochs done, with the part of the present one


def simclr(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/simclr.py`; the jitter keeps the example's strength of 1."""
    head = SimCLRProjectionHead(backbone.embed_dim, 512, 128)
    criterion = NTXentLoss()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        z0, z1 = head(backbone(views[0])), head(backbone(views[1]))
        value: Tensor = criterion(z0, z1)
        return value

    modules = nn.ModuleList([backbone, head])
    transform = SimCLRTransform(**settings(image))
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Example(256, transform, modules, optimizer, loss, encoder=backbone)


def byol(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/byol.py`: targets move at the start of a step, their momentum once an epoch."""
    projector, predictor = BYOLProjectionHead(backbone.embed_dim, 1024, 256), BYOLPredictionHead(256, 1024, 256)
    target_backbone, target_projector = slow(copy.deepcopy(backbone)), slow(copy.deepcopy(projector))
    criterion = NegativeCosineSimilarity()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        momentum = cosine_schedule(epoch, epochs, 0.996, 1)
        update_momentum(backbone, target_backbone, m=momentum)
        update_momentum(projector, target_projector, m=momentum)
        p0, p1 = (predictor(projector(backbone(x))) for x in views)
        z0, z1 = (target_projector(target_backbone(x)).detach() for x in views)
        value: Tensor = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        return value

    modules = nn.ModuleList([backbone, projector, predictor, target_backbone, target_projector])
    transform = BYOLTransform(BYOLView1Transform(**settings(image)), BYOLView2Transform(**settings(image)))
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Example(256, transform, modules, optimizer, loss, encoder=backbone)


def swav(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/swav.py`: two global crops and six local ones, no queue, prototypes never frozen."""
    head, prototypes = SwaVProjectionHead(backbone.embed_dim, 512, 128), SwaVPrototypes(128, n_prototypes=512)
    criterion = SwaVLoss()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        prototypes.normalize()
        scores = [prototypes(F.normalize(head(backbone(x)), dim=1, p=2)) for x in views]
        value: Tensor = criterion(scores[:2], scores[2:]).squeeze()
        return value

    modules = nn.ModuleList([backbone, head, prototypes])
    sizes = (image.size, local_size(image))
    transform = SwaVTransform(crop_sizes=sizes, normalize=statistics(image), **blur(image))
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.001)
    return Example(128, transform, modules, optimizer, loss, encoder=backbone)


def dino(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/dino.py`: two global crops and six local ones; the heads start from different weights.

    The example scores nothing; lightly's CIFAR-10 benchmark scores the student, its ImageNet benchmark the teacher, as
    the paper does. The encoder here is the teacher; the student is the backbone that was given.
    """
    student_head = DINOProjectionHead(backbone.embed_dim, 512, 64, 2048, freeze_last_layer=1)
    teacher_head = slow(DINOProjectionHead(backbone.embed_dim, 512, 64, 2048))
    teacher = slow(copy.deepcopy(backbone))
    criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        momentum = cosine_schedule(epoch, epochs, 0.996, 1)
        update_momentum(backbone, teacher, m=momentum)
        update_momentum(student_head, teacher_head, m=momentum)
        targets = [teacher_head(teacher(x)) for x in views[:2]]
        predictions = [student_head(backbone(x)) for x in views]
        value: Tensor = criterion(targets, predictions, epoch=epoch)
        return value

    modules = nn.ModuleList([backbone, student_head, teacher, teacher_head])
    transform = DINOTransform(
        global_crop_size=image.size,
        local_crop_size=local_size(image),
        normalize=statistics(image),
        **blur(image, none=(0.0, 0.0, 0.0)),
    )
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.001)
    freeze = student_head.cancel_last_layer_gradients
    return Example(64, transform, modules, optimizer, loss, encoder=teacher, after_backward=freeze)


def simsiam(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/simsiam.py`."""
    projector, predictor = SimSiamProjectionHead(backbone.embed_dim, 512, 128), SimSiamPredictionHead(128, 64, 128)
    criterion = NegativeCosineSimilarity()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        z0, z1 = (projector(backbone(x)) for x in views)
        p0, p1 = predictor(z0), predictor(z1)
        value: Tensor = 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))
        return value

    modules = nn.ModuleList([backbone, projector, predictor])
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Example(256, SimSiamTransform(**settings(image)), modules, optimizer, loss, encoder=backbone)


def barlowtwins(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/barlowtwins.py`, whose transform is BYOL's."""
    projector, criterion = BarlowTwinsProjectionHead(backbone.embed_dim, 2048, 2048), BarlowTwinsLoss()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        z0, z1 = (projector(backbone(x)) for x in views)
        value: Tensor = criterion(z0, z1)
        return value

    modules = nn.ModuleList([backbone, projector])
    transform = BYOLTransform(BYOLView1Transform(**settings(image)), BYOLView2Transform(**settings(image)))
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Example(256, transform, modules, optimizer, loss, encoder=backbone)


def mocov2(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/moco.py`: one direction, and a bank of 4096 keys."""
    projector = MoCoProjectionHead(backbone.embed_dim, 512, 128)
    slow_backbone, slow_projector = slow(copy.deepcopy(backbone)), slow(copy.deepcopy(projector))
    criterion = NTXentLoss(memory_bank_size=(4096, 128))

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        momentum = cosine_schedule(epoch, epochs, 0.996, 1)
        update_momentum(backbone, slow_backbone, m=momentum)
        update_momentum(projector, slow_projector, m=momentum)
        query = projector(backbone(views[0]))
        key = slow_projector(slow_backbone(views[1])).detach()
        value: Tensor = criterion(query, key)
        return value

    modules = nn.ModuleList([backbone, projector, slow_backbone, slow_projector])
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Example(256, MoCoV2Transform(**settings(image)), modules, optimizer, loss, encoder=backbone)


def vicreg(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/vicreg.py`."""
    projector, criterion = VICRegProjectionHead(backbone.embed_dim, 2048, 2048, num_layers=2), VICRegLoss()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        value: Tensor = criterion(*(projector(backbone(x)) for x in views))
        return value

    modules = nn.ModuleList([backbone, projector])
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.06)
    return Example(256, VICRegTransform(**settings(image)), modules, optimizer, loss, encoder=backbone)


def lejepa(backbone: Backbone, image: ImageSpec, epochs: int) -> Example:
    """`examples/pytorch/lejepa.py`: two global crops and six local ones, through the head of the library's default.

    The example's network is a ViT with a linear layer of 512 outputs before the head, and drop-path; here the head
    follows the backbone.
    """
    projector, criterion = LeJEPAProjectionHead(input_dim=backbone.embed_dim), LeJEPALoss()

    def loss(views: list[Tensor], epoch: int) -> Tensor:
        big, small = (projector(backbone(torch.cat(x))).unflatten(0, (len(x), -1)) for x in (views[:2], views[2:]))
        value: Tensor = criterion(local_proj=small, global_proj=big)
        return value

    modules = nn.ModuleList([backbone, projector])
    transform = DINOTransform(
        global_crop_size=image.size,
        local_crop_size=local_size(image),
        global_crop_scale=(0.3, 1),
        local_crop_scale=(0.05, 0.3),
        n_local_views=6,
        normalize=statistics(image),
        **blur(image, none=(0.0, 0.0, 0.0)),
    )
    optimizer = torch.optim.AdamW(modules.parameters(), lr=5e-4, weight_decay=5e-2)
    return Example(64, transform, modules, optimizer, loss, encoder=backbone)


METHODS = {
    "simclr": simclr,
    "byol": byol,
    "simsiam": simsiam,
    "barlowtwins": barlowtwins,
    "swav": swav,
    "dino": dino,
    "mocov2": mocov2,
    "vicreg": vicreg,
    "lejepa": lejepa,
}


def settings(image: ImageSpec) -> dict[str, Any]:
    """What a transform of two views is told."""
    return {"input_size": image.size, "normalize": statistics(image), **blur(image)}


def blur(image: ImageSpec, none: Any = 0.0) -> dict[str, Any]:
    """No blur below 64 px; from there lightly's own default."""
    return {"gaussian_blur": none} if image.size < 64 else {}


def slow(module: nn.Module) -> nn.Module:
    """The module, without gradients."""
    deactivate_requires_grad(module)
    return module


def local_size(image: ImageSpec) -> int:
    """Side of a local crop: 96 for a global one of 224, which both transforms have as default."""
    return round(image.size * 96 / 224)


def statistics(image: ImageSpec) -> dict[str, list[float]]:
    """What lightly's transforms normalise with, per channel of an RGB image."""
    repeats = 3 // image.channels
    return {"mean": list(image.mean) * repeats, "std": list(image.std) * repeats}


class PILViews(Dataset[list[Tensor]]):
    """Views of uint8 images (N, C, H, W), made by a transform that wants RGB images of Pillow.

    Lightly's transforms know three channels only. One channel is therefore fed as a grey RGB image, on which changes
    of saturation and hue do nothing, and the first channel of each view is kept.
    """

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        """Views (C, h, w) of one image."""
        channels = self.images.shape[1]
        pixels = self.images[index].expand(3, -1, -1).permute(1, 2, 0).contiguous()
        return [view[:channels] for view in self.transform(Image.fromarray(pixels.numpy()))]


def train(
    method: str,
    images: Tensor,
    backbone: Backbone,
    *,
    image: ImageSpec,
    epochs: int,
    seed: int,
    batch_size: int | None = None,
    rate: float = 1.0,
    tick: Callable[[], None] = lambda: None,
    methods: Mapping[str, Callable[[Backbone, ImageSpec, int], Example]] = METHODS,
) -> Trained:
    """Train a backbone in place as a peer's example of the method would.

    Args:
        method: one of `methods`.
        images: (N, C, H, W) uint8 with 1 or 3 channels.
        backbone: the network to train.
        image: side of the global views in pixels, and the statistics that all views are normalised with.
        epochs: passes over the images; the last batch of each is dropped unless full.
        seed: of heads, order and views. The backbone's weights are left as they come.
        batch_size: instead of the example's own.
        rate: the example's learning rates are multiplied by it.
        tick: called after each step.
        methods: those of a peer; lightly's by default.

    Raises:
        ValueError: the channels are others, or the images fewer than a batch.
    """
    if images.shape[1] not in (1, 3) or images.shape[1] != image.channels:
        raise ValueError(f"images of {images.shape[1]} channels: the transforms take 1 or 3, as `image` says")
    torch.manual_seed(seed)
    example = methods[method](backbone, image, epochs)
    scale(example.optimizer, rate)
    if len(images) < (batch_size := batch_size or example.batch_size):
        raise ValueError(f"{len(images)} images make no batch of {batch_size}")
    loader, start = loader_of(PILViews(images, example.transform), batch_size, seed), time.perf_counter()
    example.modules.train()
    for epoch in range(epochs):
        one_epoch(example, loader, epoch, tick)
    return Trained(example.encoder.eval(), time.perf_counter() - start)


def scale(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Multiply learning rates by a number during each step, whatever sets them between the steps."""

    def change(factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= factor

    optimizer.register_step_pre_hook(lambda *_: change(rate))
    optimizer.register_step_post_hook(lambda *_: change(1 / rate))


def loader_of(views: Dataset[list[Tensor]], batch_size: int, seed: int) -> DataLoader[list[Tensor]]:
    """Batches of views from two worker processes that stay."""
    return DataLoader(
        views,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(seed),  # seeds the workers too, numpy and random among them
    )


def one_epoch(
    example: Example, loader: DataLoader[list[Tensor]], epoch: int, tick: Callable[[], None] = lambda: None
) -> None:
    """One pass over the images; `tick` is called after each step."""
    for done, views in enumerate(loader):
        example.loss(views, epoch).backward()
        example.after_backward(epoch + done / len(loader))
        example.optimizer.step()
        example.optimizer.zero_grad()
        tick()

"""AK_SSL, our upstream, as its Trainer runs: whole batches through torchvision's transforms, one draw for all images.

A part of the extra `bench`; the benchmark leaves it out where it is missing. Its MoCo v2 runs on CUDA alone.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from AK_SSL.vision import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from tqdm import tqdm

NAMES = {
    "simclr": "SimCLR", "byol": "BYOL", "simsiam": "SimSiam", "barlowtwins": "BarlowTwins", "swav": "SwAV",
    "dino": "DINO",
}  # fmt: skip


class Upstream:
    """One of AK_SSL's methods on a ResNet-18 of torchvision, with its default optimizer (Adam)."""

    def __init__(self, method: str, images: Tensor, size: int, batch: int) -> None:
        backbone = resnet18()
        backbone.fc = nn.Identity()
        self.folder = tempfile.TemporaryDirectory()  # it writes TensorBoard events
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = {"use_blur": size >= 64}
            self.trainer = Trainer(NAMES[method], backbone, 512, size, self.folder.name, verbose=False, **more)
        self.optimizer = torch.optim.Adam(self.trainer.model.parameters(), lr=1e-3, weight_decay=1e-6)
        labels = torch.zeros(len(images))
        data = TensorDataset(images.float() / 255, labels)
        self.loader = DataLoader(data, batch, shuffle=True, drop_last=True)
        self.trainer.model.train()

    def epoch(self, tick: Callable[[], None]) -> None:
        """One pass over the images; `tick` is called after each step."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer.train_one_epoch(tqdm(_ticking(self.loader, tick), disable=True), self.optimizer)


def _ticking(loader: Iterable[Any], tick: Callable[[], None]) -> Iterator[Any]:
    """The batches; whoever asks for the next is done with the one before."""
    for batch in loader:
        yield batch
        tick()

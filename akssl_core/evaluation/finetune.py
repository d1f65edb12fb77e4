"""Fine-tuning: all of a backbone with a linear head, for a short schedule, on a copy."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone
from ..data import ImageSet, Preprocess

IMAGES_A_STEP = 64
RATE, DECAY, WARMUP = 1e-3, 0.05, 0.1  # AdamW's peak rate and weight decay, share of warm-up
LEAST = 100  # steps, where few labels would give fewer


@dataclass(frozen=True)
class FineTuning:
    """A short schedule: AdamW, a rate of 1e-3 after a linear warm-up, a cosine to zero, no augmentation."""

    epochs: int
    batch_size: int  # images of a forward pass that trains nothing
    device: torch.device

    def guesses(
        self,
        backbone: Backbone,
        preprocess: Preprocess,
        train: ImageSet,
        labels: Tensor,
        test: ImageSet,
        *,
        seed: int,
    ) -> Tensor:
        """The labels (Q,) that a copy of the backbone gives the test images after training on `labels` (N,)."""
        classes, targets = torch.unique(labels, return_inverse=True)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            network = copy.deepcopy(backbone).to(self.device)
            head = nn.Linear(backbone.embed_dim, len(classes)).to(self.device)
            nn.init.zeros_(head.weight)
            self._train(nn.Sequential(network, head), preprocess, train, targets, seed)
            guesses = self._judge(nn.Sequential(network, head), preprocess, test)
        found: Tensor = classes[guesses]
        return found

    def _train(self, model: nn.Module, preprocess: Preprocess, train: ImageSet, targets: Tensor, seed: int) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=RATE)
        batch = min(IMAGES_A_STEP, len(train))
        per_epoch = len(train) // batch
        total = max(LEAST, self.epochs * per_epoch)
        generator = torch.Generator().manual_seed(seed)
        model.train()
        for step in range(total):
            if step % per_epoch == 0:
                order = torch.randperm(len(train), generator=generator)
            index = order[step % per_epoch * batch :][:batch]
            images = preprocess.pixels(train.fetch(index.tolist()).to(self.device))
            for group in optimizer.param_groups:
                group["lr"] = RATE * _course(step, total)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images).float(), targets[index].to(self.device))
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it without types
            optimizer.step()

    def _judge(self, model: nn.Module, preprocess: Preprocess, test: ImageSet) -> Tensor:
        model.eval()
        found = []
        with torch.no_grad():
            for start in range(0, len(test), self.batch_size):
                index = range(start, min(start + self.batch_size, len(test)))
                scores = model(preprocess.pixels(test.fetch(index).to(self.device)))
                found.append(scores.argmax(1).cpu())
        return torch.cat(found)


def _course(step: int, total: int) -> float:
    """The rate's share at a step: linear over the first tenth, then a cosine to zero."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

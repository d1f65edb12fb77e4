"""The upper reference of the accuracy table: the same backbone trained with the labels, as a one-file plugin."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from akssl_core import Backbone, Batch, Choice, Facts, Method, Now, Registry, Schema, hookimpl
from akssl_core.nn import std_ratio


class Supervised(Method):
    """Cross-entropy on labels, over the same two views as the methods without labels."""

    name = "supervised"
    uses_labels = True
    recipes: ClassVar = {
        "default": {
            "augmentation": {"name": "pair", "scale": [0.3, 1.0], "blur": 0.0},
            "optimizer": {"name": "sgd", "lr": {"start": 0.1, "warmup": 1}, "lr_per": 128, "weight_decay": 5e-4},
            "train": {"batch_size": 128},
        }
    }

    class Config(Schema):
        """The size of the classifier."""

        classes: int = Field(10, gt=1, description="number of classes")

    @classmethod
    def choose(cls, config: Any, facts: Facts) -> dict[str, Choice]:
        """As many classes as the labels have."""
        return {"classes": Choice(facts.classes, "the classes of the labels")}

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.classifier = nn.Linear(backbone.embed_dim, config.classes)

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        """The mean cross-entropy of both views."""
        assert batch.label is not None
        logits = self.classifier(self.backbone(torch.cat(batch.views["global"])))
        return {
            "loss": F.cross_entropy(logits, batch.label.repeat(2), ignore_index=-1),
            "z_std_ratio": std_ratio(logits),
        }


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add the reference."""
    registry.add(Supervised)

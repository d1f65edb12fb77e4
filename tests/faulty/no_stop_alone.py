"""The same fault in a method of its own, which declares no landmarks: what a user's first plugin may look like."""

from __future__ import annotations

from torch.nn import functional as F

from akssl_core import Method, Schema, hookimpl
from akssl_core.nn import mlp, std_ratio


class NoStopAlone(Method):
    """Siamese networks without a stop-gradient."""

    name = "no-stop-alone"

    class Config(Schema):
        """No settings."""

    recipes = {"default": {"optimizer": {"name": "sgd", "lr": 0.1}}}

    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.projector = mlp(backbone.embed_dim, 128, 128, last_batch_norm="plain")
        self.predictor = mlp(128, 32, 128)

    def step(self, batch, now):
        z1, z2 = (self.projector(self.backbone(x)) for x in batch.views["global"])
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
        return {"loss": loss, "z_std_ratio": std_ratio(z1)}


@hookimpl
def akssl_register(registry):
    registry.add(NoStopAlone)

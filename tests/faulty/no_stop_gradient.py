"""SimSiam as our upstream has it (SS1): no side of the loss is cut off, so that a constant is optimal."""

from __future__ import annotations

from akssl_plugin_simsiam import SimSiam
from torch.nn import functional as F

from akssl_core import hookimpl
from akssl_core.nn import std_ratio


class NoStopGradient(SimSiam):
    """SimSiam without the stop-gradient."""

    name = "no-stop-gradient"

    def step(self, batch, now):
        x1, x2 = batch.views["global"]
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
        return {"loss": loss, "z_std_ratio": std_ratio(z1)}


@hookimpl
def akssl_register(registry):
    registry.add(NoStopGradient)

"""What tests of many runs share: small settings, and a method that fails where it is told to."""

from __future__ import annotations

from akssl_core import Method

SMALL = {
    "epochs": 1, "image_size": 12, "precision": "fp32", "batch_size": 16,
    "data": {"name": "shapes", "size": 32, "test_size": 16}, "report": False,
}  # fmt: skip


class Breaking(Method):
    """A method that fails in its step where it is told to."""

    name = "breaking"
    recipes = {"default": {"backbone": {"name": "toy"}, "optimizer": {"name": "sgd", "lr": 0.1}}}
    working = False

    def step(self, batch, now):
        if not Breaking.working:
            raise RuntimeError("out of luck")
        return {"loss": self.backbone(batch.views["global"][0]).square().mean()}

"""Two gloo processes with half of the batch each against one process with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from akssl_plugin_swav import SwappedPrediction, SwAV
from torch import Tensor, nn

from akssl_core import Backbone, Batch, Component, Features, ImageSpec, Now, Schema, Views, dist

STEPS = 3  # the queue of 16 fills in two


class Linear(Backbone):
    """A backbone without batch norm, which would see half of the batch."""

    name = "linear"
    embed_dim = 6

    def __init__(self) -> None:
        super().__init__(Schema(), ImageSpec(4, 1, (0.5,), (0.25,)))
        self.layer = nn.Linear(4, 6)

    def features(self, images: Tensor) -> Features:
        return Features(self.layer(images.flatten(2)[..., :4].mean(1)))


class OneLoss:
    """A registry of SwAV's loss alone: a worker that loads no other component starts in half of the time."""

    def get(self, kind: str, name: str) -> type[Component]:
        return SwappedPrediction


def train() -> dict[str, Tensor]:
    """Some steps on this process's share of each batch of 8: losses, gradients and the queue."""
    torch.manual_seed(0)
    settings = {"hidden_dim": 6, "out_dim": 5, "prototypes": 4, "queue_size": 16, "queue_from_epoch": 0}
    method = SwAV(SwAV.Config.model_validate(settings, context={"registry": OneLoss()}), Linear())
    method.projector = nn.Linear(6, 5)
    result: dict[str, Tensor] = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        views = {"global": (2, 4), "local": (2, 2)}
        drawn = {
            name: [
                torch.randn(8, 1, side, side, generator=generator).chunk(dist.world())[dist.rank()] for _ in range(n)
            ]
            for name, (n, side) in views.items()
        }
        now = Now(step, 10, 100)
        method.zero_grad()
        loss = method(Batch(Views(drawn), torch.arange(8 // dist.world())), now)["loss"]
        loss.backward()
        result[f"loss {step}"] = dist.mean(loss.detach())
        # What DDP does with gradients; it is left out because its import takes longer than the steps.
        result |= {f"{step} {name}": dist.mean(p.grad) for name, p in method.named_parameters()}
        for queue in method.queues:
            queue.after_step(now)
    return result | {"queue": method.queues[1].rows, "filled": method.queues[0].filled}


def test_two_processes_equal_one_with_the_whole_batch(tmp_path) -> None:
    env = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)], env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    alone = train()
    assert int(alone["filled"]) == 16
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(
                result[name], value.detach(), rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert alone["loss 2"].item() != pytest.approx(alone["loss 1"].item())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{folder}/rendezvous")
    state = {name: value.detach().clone() for name, value in train().items()}
    torch.save(state, folder / f"{dist.rank()}.pt")
    dist.stop()

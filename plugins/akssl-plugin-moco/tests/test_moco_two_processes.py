"""Two gloo processes against one process that holds the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import akssl_core
from akssl_core import Backbone, Batch, Features, ImageSpec, Now, Schema, Views, dist
from akssl_core.nn import StepState

NOW = Now(0, 10, 100)


class Plain(Backbone):
    """A backbone without batch norm: what it makes of an image does not depend on the batch."""

    name = "plain"
    embed_dim = 12

    def __init__(self) -> None:
        super().__init__(Schema(), ImageSpec(4, 3, (0.5,) * 3, (0.25,) * 3))
        self.linear = nn.Linear(48, 12)

    def features(self, images: Tensor) -> Features:
        return Features(self.linear(images.flatten(1)).tanh())


class Contrast(nn.Module):
    """Queries by one layer, keys by another, and MoCo v3's loss between them."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(48, 6), nn.Linear(48, 6).requires_grad_(False)
        self.loss = akssl_core.build("loss", "infonce_mocov3", temperature=0.5)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        x1, x2 = x1.flatten(1), x2.flatten(1)
        loss: Tensor = self.loss(self.queries(x1), self.queries(x2), self.keys(x1), self.keys(x2))
        return loss


def views(part: int, of: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 4, 4, generator=generator).chunk(of)[part] for _ in range(2)]


def contrast(part: int, of: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = dist.wrap(Contrast())
    loss = model(*views(part, of))
    loss.backward()
    return {"v3 loss": loss.detach(), **{f"v3 {p.shape}": p.grad for p in model.parameters() if p.grad is not None}}


def queue(part: int, of: int) -> dict[str, Tensor]:
    """Loss, gradients and queue of one symmetric step of MoCo v2, with shuffled parts of the batch."""
    torch.manual_seed(0)
    method = akssl_core.build(
        "method", "mocov2", Plain(), out_dim=6, queue_size=32, bn_splits=2, symmetric=True, momentum=0.5
    )
    model = dist.wrap(method)
    torch.manual_seed(part)  # every process shuffles in its own way
    loss = model(Batch(Views({"global": views(part, of)}), torch.arange(8 // of)), NOW)["loss"]
    loss.backward()
    for module in method.modules():
        if isinstance(module, StepState):
            module.after_step(NOW)
    grads = {f"v2 {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"v2 loss": loss.detach(), "queue": method.queue.rows, "filled": method.queue.filled, **grads}


def results(part: int, of: int) -> dict[str, Tensor]:
    return {**contrast(part, of), **queue(part, of)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    return [torch.load(folder / f"{i}.pt") for i in range(2)]


def test_two_processes_are_one_with_the_whole_batch(ranks: list[dict[str, Tensor]]) -> None:
    """Gradients, and the losses on average; the queue holds the keys of all ranks, in rank order."""
    alone = results(0, 1)
    assert len(alone) == 2 + 2 + 2 + 6, "two losses, the queue and its count, a gradient for each parameter"
    for name, value in alone.items():
        if name.endswith("loss"):
            torch.testing.assert_close(torch.stack([rank[name] for rank in ranks]).mean(), value)
        else:
            for rank in ranks:
                torch.testing.assert_close(rank[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(ranks[0]["queue"], ranks[1]["queue"])
    assert alone["filled"] == 16


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    torch.save(results(dist.rank(), 2), target / f"{dist.rank()}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)

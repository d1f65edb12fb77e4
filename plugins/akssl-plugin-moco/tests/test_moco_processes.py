"""Two and four gloo processes against one process that holds the whole batch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import akssl_core
from akssl_core import Backbone, Batch, Features, ImageSpec, Now, Schema, Views, dist
from akssl_core.nn import StepState

NOW = Now(0, 10, 100)


IMAGES = 16
GROUPS = (1, 4, 8)  # of batch norms: one for all processes, one or two in each of four, up to eight in one


class Normed(Backbone):
    """A backbone with a batch norm: what it makes of an image depends on the images beside it."""

    name = "normed"
    embed_dim = 12

    def __init__(self) -> None:
        super().__init__(Schema(), ImageSpec(4, 3, (0.5,) * 3, (0.25,) * 3))
        self.conv = nn.Conv2d(3, 12, 2)
        self.bn = nn.BatchNorm2d(12)

    def features(self, images: Tensor) -> Features:
        return Features(self.bn(self.conv(images)).tanh().mean((2, 3)))


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
    return [torch.randn(IMAGES, 3, 4, 4, generator=generator).chunk(of)[part] for _ in range(2)]


def contrast(part: int, of: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = dist.wrap(Contrast())
    loss = model(*views(part, of))
    loss.backward()
    return {"v3 loss": loss.detach(), **{f"v3 {p.shape}": p.grad for p in model.parameters() if p.grad is not None}}


def queue(part: int, of: int, groups: int) -> dict[str, Tensor]:
    """Loss, gradients and queue of one symmetric step of MoCo v2 with so many groups of batch norms."""
    torch.manual_seed(0)
    method = akssl_core.build(
        "method", "mocov2", Normed(), out_dim=6, queue_size=64, bn_splits=groups, symmetric=True, momentum=0.5
    )
    model = dist.wrap(method)
    torch.manual_seed(part)  # as the engine does: every process draws other numbers inside a step
    batch = Batch(Views({"global": views(part, of)}), torch.arange(IMAGES).chunk(of)[part])
    with dist.shared_statistics(method) if method.shared_batch_norm else nullcontext():
        loss = model(batch, NOW)["loss"]
        loss.backward()
    for module in method.modules():
        if isinstance(module, StepState):
            module.after_step(NOW)
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    found = {"loss": loss.detach(), "queue": method.queue.rows, "filled": method.queue.filled, **grads}
    return {f"v2 {groups} {name}": value for name, value in found.items()}


def results(part: int, of: int) -> dict[str, Tensor]:
    found = contrast(part, of)
    for groups in GROUPS:
        found |= queue(part, of, groups)
    return found


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    env = {**os.environ, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder)], env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}
        )
        for i in range(world)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0] * world
    return [torch.load(folder / f"{i}.pt") for i in range(world)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return results(0, 1)


def test_processes_are_one_with_the_whole_batch(ranks: list[dict[str, Tensor]], alone: dict[str, Tensor]) -> None:
    """Gradients, and the losses on average; the queue holds the keys of all ranks, in rank order."""
    assert len(alone) == 2 + 1 + len(GROUPS) * (3 + 8), "losses, queues and their counts, a gradient for each parameter"
    for name, value in alone.items():
        if name.endswith("loss"):
            torch.testing.assert_close(torch.stack([rank[name] for rank in ranks]).mean(), value, msg=told(name))
        else:
            for rank in ranks:
                torch.testing.assert_close(rank[name], value, rtol=1e-4, atol=1e-5, msg=told(name))


def test_groups_make_a_difference(alone: dict[str, Tensor]) -> None:
    losses = [alone[f"v2 {groups} loss"].item() for groups in GROUPS]
    assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-3


def told(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    torch.save(results(dist.rank(), dist.world()), target / f"{dist.rank()}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)

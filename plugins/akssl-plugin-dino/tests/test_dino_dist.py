"""DINO in two gloo processes against one process that holds the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import akssl_core
from akssl_core import Backbone, Batch, Features, ImageSpec, Now, Schema, Views, dist

NOW = Now(0, 10, 100)


class Plain(Backbone):
    """A backbone without batch norms, which would see the rows of one process alone."""

    embed_dim = 6

    def __init__(self) -> None:
        super().__init__(Schema(), ImageSpec(4, 3, (0.5,) * 3, (0.25,) * 3))
        self.conv = nn.Conv2d(3, 6, 3)

    def features(self, images: Tensor) -> Features:
        return Features(self.conv(images).relu().mean((2, 3)))


def two_steps(part: slice) -> dict[str, Tensor]:
    """Loss and gradients of two steps on some of 8 images, with the centre moved between them."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden_dim": 8, "bottleneck_dim": 4, "out_dim": 10, "norm_last_layer": False}
    method = akssl_core.build("method", "dino", Plain(), **settings)
    views = [torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(side)) for side in (6, 7, 4, 5)]
    large = [views[0], views[1][..., :6, :6]]
    small = [views[2], views[3][..., :4, :4]]
    batch = Batch(Views({"global": [x[part] for x in large], "local": [x[part] for x in small]}), torch.arange(8)[part])
    model, result = dist.wrap(method), {}
    for i in range(2):
        model.zero_grad()
        loss = model(batch, NOW)["loss"]
        loss.backward()
        method.center.after_step(NOW)
        result |= {f"loss {i}": loss.detach(), f"center {i}": method.center.value.clone()}
        result |= {f"{name} {i}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return result


def test_two_processes_equal_one(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    expected = two_steps(slice(None))
    assert expected["center 0"].abs().max() > 0
    for name, value in expected.items():
        if name.startswith("loss"):
            torch.testing.assert_close((first[name] + second[name]) / 2, value)
            continue
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(first[name], second[name]), name


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{folder}/rendezvous")
    torch.save(two_steps(slice(4 * dist.rank(), 4 * dist.rank() + 4)), folder / f"{dist.rank()}.pt")
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)

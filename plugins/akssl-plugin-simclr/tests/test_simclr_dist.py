"""SimCLR in two gloo processes against one process that holds the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import akssl_core
from akssl_core import Batch, Now, Views, dist
from akssl_core.testing import ToyBackbone

NOW = Now(0, 10, 100)


LOSSES = ("ntxent", "dcl", "dclw")


def results(rank: int, world: int, name: str) -> dict[str, Tensor]:
    """Loss and gradients of a rank's share of 8 images.

    In evaluation mode a batch norm treats each row by itself: no statistics are left that would differ.
    """
    torch.manual_seed(0)
    loss = {"name": name, "temperature": 0.5}
    method = akssl_core.build("method", "simclr", ToyBackbone(batch_norm=False), out_dim=5, loss=loss).eval()
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(8, 3, 4, 4, generator=generator).chunk(world)[rank] for _ in range(2)]
    model = dist.wrap(method)
    value = model(Batch(Views({"global": views}), torch.arange(8).chunk(world)[rank]), NOW)["loss"]
    value.backward()
    return {"loss": value.detach(), **{n: p.grad for n, p in method.named_parameters() if p.grad is not None}}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    loaded: list[dict[str, dict[str, Any]]] = [torch.load(folder / f"{i}.pt") for i in range(2)]
    return loaded


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_two_processes_average_to_that_of_one(ranks: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    losses = [result[name]["loss"] for result in ranks]
    torch.testing.assert_close(sum(losses) / 2, results(0, 1, name)["loss"])
    assert losses[0] != losses[1], "each process has anchors of its own"


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_two_processes_are_those_of_one(ranks: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    alone = results(0, 1, name)
    for result in (rank[name] for rank in ranks):
        assert result.keys() == alone.keys()
        for part in alone.keys() - {"loss"}:
            torch.testing.assert_close(result[part], alone[part], msg=lambda text, part=part: f"{part}: {text}")
    assert alone["backbone.conv.weight"].abs().max() > 1e-3


if __name__ == "__main__":
    target = Path(sys.argv[1])
    dist.start("cpu", init_method=f"file://{target}/rendezvous")
    number = dist.rank()
    torch.save({name: results(number, 2, name) for name in LOSSES}, target / f"{number}.pt")
    dist.stop()
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)

"""Two gloo processes against one process that holds the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akssl_core import dist
from akssl_core.nn import Center, Queue
from akssl_core.schedule import Now

NOW = Now(0, 10, 100)


class Net(nn.Module):
    """A network with a buffer, whose forward pass is its loss over the rows of all ranks."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.register_buffer("mark", torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        """A loss that compares all rows and reads their mean."""
        z = F.normalize(dist.gather(self.linear(rows)), dim=1)
        spread = dist.mean(self.linear(rows).square().mean(0)).square().sum()
        return torch.logsumexp(z @ z.T * 5, 1).mean() + spread


def rows() -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def states(mine: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    queue, center = Queue(12, 3), Center(3, momentum=0.5)
    queue.push(mine)
    center.push(mine)
    center.push(mine + 1)
    for block in (queue, center):
        block.after_step(NOW)
    return {"queue": queue.rows, "center": center.value}


def work(folder: Path) -> dict[str, Tensor]:
    """What one of two processes computes on its half of the rows."""
    dist.start("cpu", init_method=f"file://{folder}/rendezvous")
    mine = rows().chunk(2)[dist.rank()]
    model = dist.wrap(net())
    model.module.mark.fill_(dist.rank())
    assert model.gradient_as_bucket_view
    loss = model(mine)
    loss.backward()
    result = {"loss": loss.detach(), "grad": model.module.linear.weight.grad.clone(), "mark": model.module.mark}
    model.zero_grad()
    with dist.no_sync(model):
        model(mine).backward()
    result["unsynced"] = model.module.linear.weight.grad.clone()
    x = mine.clone().requires_grad_()
    gathered = dist.gather(x)
    (gathered * torch.arange(24.0).reshape(8, 3) * (dist.rank() + 1)).sum().backward()
    result |= {"gathered": gathered.detach(), "gathered_grad": x.grad, "mean": dist.mean(mine)}
    result |= {"index": dist.gather(torch.full((2,), dist.rank())), **states(mine)}
    result["who"] = torch.tensor([dist.rank(), dist.world(), dist.is_main(), dist.local_rank()])
    time.sleep(1 - dist.rank())  # the other one begins anew while this one has not ended
    dist.stop()
    result["after"] = torch.tensor(dist.world())
    dist.start("cpu", init_method=f"file://{folder}/rendezvous")
    result["again"] = dist.gather(torch.tensor([dist.rank()]))
    dist.stop()
    return result



@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder)],
            env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    return [torch.load(folder / f"{i}.pt") for i in range(2)]


def test_loss_and_gradients_equal_one_process(ranks):
    model = net()
    loss = model(rows())
    loss.backward()
    for result in ranks:
        torch.testing.assert_close(result["loss"], loss.detach())
        torch.testing.assert_close(result["grad"], model.linear.weight.grad)


def test_gather_keeps_rank_order_and_its_backward_sums_over_ranks(ranks):
    for i, result in enumerate(ranks):
        assert torch.equal(result["gathered"], rows())
        assert torch.equal(result["index"], torch.tensor([0, 0, 1, 1]))
        expected = (torch.arange(24.0) * 3).reshape(8, 3).chunk(2)[i]  # ranks weigh their loss by 1 and by 2
        assert torch.equal(result["gathered_grad"], expected)


def test_mean_is_over_ranks(ranks):
    for result in ranks:
        torch.testing.assert_close(result["mean"], sum(rows().chunk(2)) / 2)


def test_no_sync_keeps_gradients_local(ranks):
    assert not torch.allclose(ranks[0]["unsynced"], ranks[1]["unsynced"])


def test_wrap_leaves_buffers_alone(ranks):
    assert [int(result["mark"]) for result in ranks] == [0, 1]


def test_ranks_know_themselves_and_leave(ranks):
    assert [result["who"].tolist() for result in ranks] == [[0, 2, 1, 0], [1, 2, 0, 1]]
    assert all(result["after"] == 1 for result in ranks)


def test_they_meet_again_though_one_is_late(ranks):
    assert all(result["again"].tolist() == [0, 1] for result in ranks)


def test_queue_and_center_are_equal_on_all_ranks_and_to_one_process(ranks):
    alone = states(rows())
    for result in ranks:
        assert torch.equal(result["queue"], alone["queue"])
        torch.testing.assert_close(result["center"], alone["center"])
    assert torch.equal(ranks[0]["center"], ranks[1]["center"])


def test_threads_of_the_group_let_go_of_their_tensors_before_the_process_may_end(monkeypatch):
    """One that needs Python for that once Python is ending would abort the process."""
    begun, left, let_go = threading.Event(), threading.Event(), []

    def hold():
        begun.set()
        left.wait()
        let_go.append(True)

    monkeypatch.setattr(dist, "_grouped", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", left.set)
    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # it gets Python only while this thread waits
    try:
        dist.stop()
        assert let_go
    finally:
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_group_waits_for_the_main_process_and_knows_its_gpu(monkeypatch, device):
    joined = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **how: joined.update(how))
    monkeypatch.setitem(dist._met, "env://", torch.distributed.HashStore())
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert dist.start(device)
    assert joined["timeout"] == dist.WAIT
    assert joined["device_id"] == (torch.device("cuda", 1) if device == "cuda" else None)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    dist.start("cpu")
    x, model = rows(), net()
    assert (dist.rank(), dist.world(), dist.is_main()) == (0, 1, True)
    assert dist.gather(x) is x
    assert dist.mean(x) is x
    assert dist.wrap(model) is model
    with dist.no_sync(model):
        model(x).backward()
    assert model.linear.weight.grad is not None
    dist.stop()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    torch.save(work(target), target / f"{os.environ['RANK']}.pt")
    # Torch's background threads sometimes abort the interpreter's exit after gloo; all that is tested is written.
    os._exit(0)

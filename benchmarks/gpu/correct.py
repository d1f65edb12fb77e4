"""Whether the GPU computes what the CPU does, waits for nothing, and does the same thing twice."""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as distributed
from bare import ROOT
from rows import Found, Row, Rows, Setup, bounded
from safetensors.torch import load_file
from torch import Tensor, nn
from trial import METHODS, SMALL, TINY, Ragged, exact_float32, noise, plan, repeated, trained, waits

from akssl_core import Draws, dist
from akssl_core.testing.ranks import ThreadRank, on_ranks

ROWS = Rows()


def settings(setup: Setup, backbone: str, precision: str = "fp32", **more: Any) -> dict[str, Any]:
    """A small run at 32 px."""
    network = setup.pick({"name": backbone, **SMALL[backbone]}, TINY)
    sizes = {"data": noise(64, 40), "image_size": 32, "batch_size": 16}
    return {"backbone": network, "precision": precision, **sizes, **more}


# -- the machine ----------------------------------------------------------------------------------
@ROWS.add("machine")
def machine(setup: Setup) -> Iterator[Found]:
    """Its two ceilings: memory and products."""
    source = torch.randn(setup.pick(2**30, 2**20), device=setup.device)
    target = torch.empty_like(source)
    copied = repeated(setup, 2 * source.nbytes, lambda: target.copy_(source))
    yield bounded("copying on the device", copied.rate / 1e9, unit="GB/s, read and written")
    side = setup.pick(8192, 256)
    a, b = (torch.randn(side, side, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    products = repeated(setup, 2 * side**3, lambda: a @ b)
    yield bounded(f"product {side}^3 in bf16", products.rate / 1e12, unit="TFLOP/s")


# -- values ---------------------------------------------------------------------------------------
def views(setup: Setup, method: str, side: int) -> Iterator[Found]:
    """The views of one batch, of photos of several sizes, made twice."""
    side = setup.pick(side, 32)
    sizes = {"recipe": "imagenet" if side > 32 else "cifar", "image_size": side, "batch_size": 16}
    made = plan(setup, method, data=Ragged(32, side), **sizes)
    pixels, draws = made.images.fetch(range(16)), Draws.of(0, 0, torch.arange(16))
    with exact_float32():
        here, there = (made.augmentation(pixels.to(device), draws) for device in (setup.host.device, setup.device))
    pairs = zip(here.all(), there.all(), strict=True)
    apart = max((a - b.cpu()).abs().max().item() for a, b in pairs)
    yield bounded("largest difference", apart, most=2e-5)


def first_steps(setup: Setup, method: str, backbone: str) -> Iterator[Found]:
    """Three steps in fp32 on both devices, from the same weights."""
    with exact_float32():
        here = trained(setup.host, method, 3, **settings(setup, backbone))
        there = trained(setup, method, 3, **settings(setup, backbone))
    apart = max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(here[0], there[0], strict=True))
    numbers: dict[str, Any] = {
        "CPU": here[0],
        setup.device.type: there[0],
        "weights apart": relative(here[1], there[1]),
    }
    yield bounded("losses apart, relative", apart, most=1e-3, **numbers)


def relative(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The norm of all differences over that of all values."""
    exact = [name for name, value in ours.items() if value.is_floating_point()]
    apart = sum((ours[name].double() - theirs[name].double()).square().sum().item() for name in exact)
    return math.sqrt(apart / sum(ours[name].double().square().sum().item() for name in exact))


def finite(setup: Setup, method: str, precision: str) -> Iterator[Found]:
    """Three steps in a short number format."""
    losses, weights = trained(setup, method, 3, **settings(setup, "resnet18", precision))
    wrong = [name for name, value in weights.items() if not value.isfinite().all()]
    fine = not wrong and all(map(math.isfinite, losses))
    yield Found("losses and weights", "finite" if fine else "not finite", "finite", fine, {"losses": losses})


def unwaited(setup: Setup, method: str) -> Iterator[Found]:
    """Steps in bf16 under torch's own check for waits."""
    setup.need_cuda()
    places = waits(plan(setup, method, **settings(setup, "resnet18", "bf16")).engine([]), 4)
    yield bounded("waits of the host in 4 steps", places.total(), most=0, places=dict(places.most_common()))


def twice(setup: Setup, method: str, backbone: str) -> Iterator[Found]:
    """The same steps in deterministic mode."""
    once, again = (
        trained(setup, method, 3, **settings(setup, backbone, train={"deterministic": True})) for _ in range(2)
    )
    differ = [name for name, value in once[1].items() if not torch.equal(value, again[1][name])]
    same = not differ and once[0] == again[0]
    yield Found("bits", "the same" if same else f"{len(differ)} tensors differ", "the same", same, {"tensors": differ})


for name, side in (("simclr", 32), ("simclr", 224), ("dino", 224), ("swav", 224)):
    one = partial(views, method=name, side=side)
    ROWS.append(Row(f"views {name} {side} px", one, short=name == "simclr"))
for name in METHODS:
    ROWS.append(Row(f"waits {name}", partial(unwaited, method=name), short=name == "simclr"))
for name in METHODS:
    for network in SMALL:
        both = partial(first_steps, method=name, backbone=network)
        ROWS.append(Row(f"as the CPU {name} {network}", both, short=name == "simclr" and network == "vit_tiny"))


# -- several processes ----------------------------------------------------------------------------
@ROWS.add("batch norm over two ranks")
def shared_batch_norm(setup: Setup) -> Iterator[Found]:
    """Two ranks with a half of the images each, and one with all of them."""
    joined = nn.BatchNorm2d(24).to(setup.device)
    for parameter in joined.parameters():
        nn.init.normal_(parameter)
    x = 3 + 2 * torch.randn(32, 24, 14, 14, device=setup.device).contiguous(memory_format=torch.channels_last)
    goal = torch.randn_like(x)

    def half(group: ThreadRank) -> list[Tensor]:
        norm = copy.deepcopy(joined)
        part = x.chunk(2)[group.rank].detach().requires_grad_()
        with dist.shared_statistics(norm), torch.autograd.set_multithreading_enabled(False):
            out = norm(part)
            (out * goal.chunk(2)[group.rank]).sum().backward()
        found = [out, part.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        return [tensor.detach() for tensor in found if tensor is not None]

    ranks = on_ranks(2, half)
    x = x.requires_grad_()
    out = joined(x)
    (out * goal).sum().backward()
    pairs = zip(*ranks, strict=True)
    shared = [torch.cat(pair) if i < 2 else sum(pair) if i < 4 else pair[0] for i, pair in enumerate(pairs)]
    wanted = [out, x.grad, joined.weight.grad, joined.bias.grad, joined.running_mean, joined.running_var]
    names = ("outputs", "gradients of inputs", "of weights", "of biases", "running means", "running variances")
    for what, ours, theirs in zip(names, shared, wanted, strict=True):
        assert isinstance(ours, Tensor)
        assert theirs is not None
        apart = (ours - theirs).abs().max() / theirs.abs().max()
        yield bounded(f"{what} apart", apart.item(), most=1e-4)


@ROWS.add("one process of NCCL")
def nccl(setup: Setup) -> Iterator[Found]:
    """The collectives a run uses, and DDP around a network."""
    backend = "cpu:gloo,cuda:nccl" if setup.cuda else "gloo"
    distributed.init_process_group(backend, rank=0, world_size=1, store=distributed.HashStore())
    try:
        x = torch.arange(8.0, device=setup.device)
        rows, total = torch.empty_like(x), x.clone()
        distributed.all_gather_into_tensor(rows, x)
        distributed.all_reduce(total)
        same = torch.equal(rows, x) and torch.equal(total, x)
        yield Found("all-gather and sum", "the same" if same else "other numbers", "the same", same)
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).to(setup.device)
        images = torch.randn(4, 3, 8, 8, device=setup.device)
        plain(images)
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        for network in (plain, wrapped):
            network(images).square().sum().backward()
        pairs = zip(plain.parameters(), wrapped.parameters(), strict=True)
        apart = max((a.grad - b.grad).abs().max().item() for a, b in pairs if a.grad is not None and b.grad is not None)
        yield bounded("gradients under DDP apart", apart, most=1e-5)
    finally:
        distributed.destroy_process_group()


# -- the same bits --------------------------------------------------------------------------------
for name, network in (("simclr", "resnet18"), ("dino", "vit_tiny"), ("swav", "resnet18")):
    both = partial(twice, method=name, backbone=network)
    ROWS.append(Row(f"deterministic twice {name} {network}", both, short=name == "simclr"))


@ROWS.add("killed and resumed", limit=150, short=False)
def killed(setup: Setup) -> Iterator[Found]:
    """A run that is killed after a checkpoint and resumed, against one that was not."""
    command = [sys.executable, "-m", "akssl_core"]
    sizes = "--backbone resnet18 --image-size 32 --batch-size 64 --set data.size=2048 --set data.test_size=256"
    small = "--backbone resnet_tiny --image-size 16 --batch-size 16 --set data.size=256 --set data.test_size=32"
    flags = setup.pick(sizes, small) + " --epochs 4 --no-report --set train.checkpoint_every=8"
    flags += " --set train.deterministic=true"
    run = [*command, "run", "simclr", "--device", setup.device.type, *flags.split()]
    whole, part = setup.scratch / "whole", setup.scratch / "part"
    for folder in (whole, part):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*run, "--out", str(whole)], check=True, stdout=sys.stderr)
    process = subprocess.Popen([*run, "--out", str(part)], stdout=sys.stderr)
    while process.poll() is None and not list(part.glob("checkpoints/*/model.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    yield Found("the first process ended with", code, str(-signal.SIGKILL), code == -signal.SIGKILL)
    subprocess.run([*command, "resume", str(part)], check=True, stdout=sys.stderr)
    ours, theirs = (load_file(folder / "backbone.safetensors") for folder in (part, whole))
    differ = [name for name, value in theirs.items() if not torch.equal(value, ours[name])]
    found = f"{len(differ)} tensors of {len(theirs)} differ" if differ else "the same"
    yield Found("bits of the weights", found, "the same", not differ, {"tensors": differ})


for name in METHODS:
    for kind in ("bf16", "fp16"):
        one = partial(finite, method=name, precision=kind)
        ROWS.append(Row(f"finite {name} {kind}", one, short=name == "simclr" and kind == "bf16"))


# -- the suite ------------------------------------------------------------------------------------
TESTED = "tests/augment tests/training tests/dist tests/metrics tests/backbone tests/test_nn.py tests/test_optim.py"


def suite(setup: Setup, *, with_gpu: bool) -> Iterator[Found]:
    """The tests of the rooms that compute, in several processes where pytest-xdist is there."""
    visible = {} if with_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    names = setup.pick(TESTED.split(), ["tests/test_schedule.py"])
    parallel = ["-n", "8"] if (os.cpu_count() or 1) > 8 and _has("xdist") else []
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *parallel, "-rfE", *names]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **visible}, capture_output=True, text=True)
    print(done.stdout[-20_000:], done.stderr[-5000:], file=sys.stderr)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    last = (done.stdout.strip() or done.stderr.strip() or "nothing said").splitlines()[-1]
    yield Found("pytest", last[:200], "none fails", done.returncode == 0, {"failed": failed[:100]})


def _has(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


for where in ("with", "without"):
    rooms = partial(suite, with_gpu=where == "with")
    ROWS.append(Row(f"suite {where} the GPU", rooms, limit=150, short=False))

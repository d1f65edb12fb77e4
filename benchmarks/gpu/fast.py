"""How fast steps are, what they wait for, and whether images come fast enough."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from rows import Found, NotHere, Row, Rows, Setup, bounded
from torch import Tensor, nn
from torch.nn import functional as F
from trial import TINY, After, Pace, noise, plan, repeated, timed, traced, train, use_ready_views, waits

import akssl_core
from akssl_core.running.plan import Plan

ROWS = Rows()
NULL_PEAKS = Path(__file__).with_name("null_peaks.json")
"""GiB of the cases on the null device of `tests/cuda`, with torch's own allocator: `make gpu-peaks` counts again."""


@dataclass(frozen=True)
class Case:
    """One recipe as it is published, with the marks it should pass."""

    name: str
    method: str
    backbone: str
    side: int = 224
    batch: int = 128
    share: float | None = None
    """Of the rate from ready views that is left from images on."""
    rate: float | None = None
    """Images a second on an H100."""
    busy: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def plan(self, setup: Setup, data: Any = None, **more: Any) -> Plan:
        """A run of it; without data on images a third larger than the views, or as large where these are small."""
        side, batch = setup.pick((self.side, self.batch), (32, 8))
        canvas = 256 if side == 224 else side
        recipe = "imagenet" if side == 224 else "cifar"
        backbone = setup.pick({"name": self.backbone}, TINY)
        given = {"recipe": recipe, "backbone": backbone, "precision": "bf16", "batch_size": batch, "image_size": side}
        pixels = noise(setup.pick(8, 4) * batch, canvas) if data is None else data
        return plan(setup, self.method, data=pixels, **{**given, **self.settings, **more})


CASES = (
    Case("simclr resnet50", "simclr", "resnet50", share=0.90, rate=1200, busy=90),
    Case("dino vit_small", "dino", "vit_small", share=0.85, rate=750, busy=90),
    Case("simclr resnet18 32 px", "simclr", "resnet18", side=32, batch=256),
    Case("byol resnet50", "byol", "resnet50", share=0.90, busy=90),
    Case("swav resnet50", "swav", "resnet50", share=0.90, busy=90),
    Case("mocov3 vit_small", "mocov3", "vit_small", busy=90),
    Case("barlowtwins resnet50", "barlowtwins", "resnet50", share=0.90, busy=90),
)
MAIN = CASES[0]


# -- steps ----------------------------------------------------------------------------------------
def ready(setup: Setup, case: Case) -> Pace:
    """Steps on views that are made already, from images too small to matter."""
    made = case.plan(setup, noise(setup.pick(8 * case.batch, 32), 16))
    engine = made.engine([])
    use_ready_views(engine, made)
    return timed(setup, engine)


def case(setup: Setup, case: Case) -> Iterator[Found]:
    """One case from ready views, from images, and its views alone."""
    bare = ready(setup, case)
    yield bounded("from ready views", bare.rate, unit="images/s", **bare.numbers)
    made = case.plan(setup)
    engine = made.engine([])
    if setup.cuda:
        torch.cuda.reset_peak_memory_stats()
    ours = timed(setup, engine)
    yield bounded("from images", ours.rate, least=setup.mark(case.rate), unit="images/s", **ours.numbers)
    yield bounded("from images / from ready views", ours.rate / bare.rate, least=setup.mark(case.share))
    if setup.cuda:
        yield peak(setup, case)
    index = torch.arange(engine.batch_size)
    pixels = made.images.fetch(index.tolist()).to(setup.device)
    alone = repeated(setup, len(index), lambda: engine.views(pixels, index, 0))
    yield bounded("views alone", alone.rate, unit="images/s", **alone.numbers)
    if setup.cuda:
        places = waits(engine, 4)
        yield bounded("waits of the host in 4 steps", places.total(), most=0, places=dict(places.most_common()))
        seen = traced(engine, setup.pick(5, 1))
        yield bounded("kernels, copies and fills a step", seen.launches)
        yield bounded("busy share", seen.busy, least=setup.mark(case.busy), unit="%")


def peak(setup: Setup, case: Case) -> Found:
    """The largest memory that was held, beside that on the null device."""
    gib = torch.cuda.max_memory_allocated() / 2**30
    expected = json.loads(NULL_PEAKS.read_text())[case.name]
    return bounded("peak", gib, most=setup.mark(round(1.1 * expected, 2)), unit="GiB", null_device=expected)


for one in CASES[:3]:
    ROWS.append(Row(f"steps {one.name}", partial(case, case=one), limit=90, short=one is MAIN))


# -- feeding --------------------------------------------------------------------------------------
def photos(setup: Setup) -> Path:
    """A folder of JPEG files of the usual size, made once: smooth shapes under some grain."""
    folder = setup.scratch / "photos"
    if not folder.exists():
        folder.mkdir()
        count, (height, width) = setup.pick((2048, (375, 500)), (32, (48, 64)))
        for i in range(64):
            rough = F.interpolate(torch.rand(1, 3, 12, 16), size=(height, width), mode="bicubic")
            picture = (255 * (rough + 0.05 * torch.randn(1, 1, height, width)).clamp(0, 1)).byte()
            data = io.BytesIO()
            Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(data, "JPEG", quality=90)
            for j in range(i, count, 64):
                (folder / f"{j:05}.jpg").write_bytes(data.getvalue())
    return folder


@ROWS.add("decoding", limit=90)
def decoding(setup: Setup) -> Iterator[Found]:
    """JPEG files in memory to the pixels that training keeps, by threads."""
    files = [file.read_bytes() for file in sorted(photos(setup).iterdir())[: setup.pick(512, 16)]]
    side = setup.pick(384, 32)
    for threads in sorted({1, 4, 8, os.cpu_count() or 1}):
        with ThreadPoolExecutor(threads) as pool:
            some = files[: 64 * threads]
            decode = partial(akssl_core.decode_image, channels=3, side=side)
            found = repeated(setup.host, len(some), lambda: list(pool.map(decode, some)), times=2)  # noqa: B023
        yield bounded(f"{threads} threads", found.rate, unit="images/s")


def whole_files(setup: Setup) -> list[Tensor]:
    """The bytes of some of the files."""
    names = sorted(map(str, photos(setup).iterdir()))[: setup.pick(256, 16)]
    return [torchvision.io.read_file(name) for name in names]


@ROWS.add("decoding by torchvision")
def decoding_by_torchvision(setup: Setup) -> Iterator[Found]:
    """The same files, whole, in one thread."""
    files = whole_files(setup)
    one = repeated(setup.host, len(files), lambda: [torchvision.io.decode_jpeg(file) for file in files], times=2)
    yield bounded("decode_jpeg, one thread", one.rate, unit="images/s")


@ROWS.add("nvJPEG")
def nvjpeg(setup: Setup) -> Iterator[Found]:
    """The same files, whole, on the GPU."""
    setup.need_cuda()
    files = whole_files(setup)
    every = repeated(setup, len(files), lambda: torchvision.io.decode_jpeg(files, device=setup.device), times=5)
    yield bounded("decode_jpeg on the GPU", every.rate, unit="images/s")


@ROWS.add("feeding", limit=150)
def feeding(setup: Setup) -> Iterator[Found]:
    """Steps from a folder of files, from a prepared one, and from its pixels in memory."""
    folder, file = photos(setup), setup.scratch / "photos.safetensors"
    if not file.exists():
        akssl_core.prepare(folder, file, image_size=setup.pick(224, 32))
    prepared = MAIN.plan(setup, str(file))
    pixels = prepared.images.fetch(range(setup.pick(1024, 16))).images
    memory = timed(setup, MAIN.plan(setup, pixels).engine([]))
    yield bounded("from memory", memory.rate, unit="images/s", **memory.numbers)
    mapped = timed(setup, prepared.engine([]))
    yield bounded("from a prepared file", mapped.rate, unit="images/s", **mapped.numbers)
    yield bounded("from a prepared file / from memory", mapped.rate / memory.rate, least=setup.mark(0.95))
    files = timed(setup, MAIN.plan(setup, {"name": "folder", "path": str(folder), "cache_gb": 0.0}).engine([]))
    yield bounded("from files", files.rate, unit="images/s", **files.numbers)
    yield bounded("from files / from memory", files.rate / memory.rate)


for one in CASES[3:]:
    ROWS.append(Row(f"steps {one.name}", partial(case, case=one), limit=90, short=False))


# -- rivals and switches --------------------------------------------------------------------------
@ROWS.add("supervised resnet50")
def supervised(setup: Setup) -> Iterator[Found]:
    """Two labelled views in place of self-supervision: what the network alone allows."""
    side, batch, network = setup.pick((224, 128, {"name": "resnet50"}), (32, 8, TINY))
    backbone = plan(setup, "simclr", data=noise(16, 32), image_size=side, batch_size=8, backbone=network).backbone
    model = nn.Sequential(backbone, nn.Linear(backbone.embed_dim, 1000)).to(
        setup.device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    images = torch.randn(2 * batch, 3, side, side, device=setup.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (2 * batch,), device=setup.device)

    def step() -> None:
        with torch.autocast(setup.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found = repeated(setup, batch, step)
    yield bounded("from ready views, two of each image", found.rate, unit="images/s", **found.numbers)


@ROWS.add("kornia loop", short=False)
def kornia(setup: Setup) -> Iterator[Found]:
    """The best loop that a careful user would write by hand, on the same images."""
    if find_spec("kornia") is None:
        raise NotHere("needs kornia")
    from kornia_loop import KorniaLoop

    made = MAIN.plan(setup)
    loop = KorniaLoop(made, made.images.fetch(range(len(made.images))).images)
    found = repeated(setup, loop.engine.batch_size, loop.step)
    yield bounded("from images", found.rate, unit="images/s", **found.numbers)


def switch(setup: Setup, name: str, value: bool) -> Iterator[Found]:
    """The main case with one of torch's switches in one position."""
    precision = "fp32" if name == "TF32" else "bf16"

    def turn() -> None:
        if name == "TF32":
            torch.set_float32_matmul_precision("high" if value else "highest")
            torch.backends.cudnn.allow_tf32 = value
        else:
            torch.backends.cudnn.benchmark = value

    engine = MAIN.plan(setup, precision=precision).engine([])
    train(engine, setup.pick(3, 1), After({0: turn}))  # within a step's own surroundings
    found = timed(setup, engine)
    yield bounded("from images", found.rate, unit="images/s", **found.numbers)


for name in ("cudnn.benchmark", "TF32"):
    for value in (False, True):
        ROWS.append(Row(f"{name} {'on' if value else 'off'}", partial(switch, name=name, value=value), short=False))


@ROWS.add("compile", limit=200, short=False)
def compiled(setup: Setup) -> Iterator[Found]:
    """The main case with `train.compile`."""
    if setup.cuda and find_spec("triton") is None:
        raise NotHere("needs triton")
    found = timed(setup, MAIN.plan(setup, train={"compile": True}).engine([]))
    yield bounded("from images", found.rate, unit="images/s", **found.numbers)

"""What it costs to feed photos: decoding on one core, and batches of which some images are panoramas.

Decoding: our way from the bytes of a JPEG file to a reduced tensor, beside Pillow alone (its decoder at the scale that
suffices, Lanczos), which we used before. Batches: photos of 500 x 375 px and panoramas of 4:1, put into a batch and
cropped once; in a strip, as `Pixels` has them, beside a canvas that holds the largest, as batches were before.
Everything runs on one core; sides take turns, and medians and ratios within a turn are told.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from results import facts, write
from torch import Tensor

from akssl_core import Pixels
from akssl_core.augment.crop import Crops, RandomResizedCrop
from akssl_core.data.convert import stored_side
from akssl_core.data.decode import decode_image
from akssl_core.draws import Draws

VIEW = 224
SIDE = stored_side(VIEW)
PHOTO, PANORAMA = (375, 500), (SIDE, 4 * SIDE)  # height and width
FILES = ((500, 375, "4:2:0"), (640, 480, "4:2:0"), (640, 480, "4:4:4"), (1280, 960, "4:2:0"), (4000, 3000, "4:2:0"))


# -- decoding -------------------------------------------------------------------------------------
def drawn(width: int, height: int, subsampling: str) -> bytes:
    """A JPEG file of smooth shapes and a little noise."""
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    file = io.BytesIO()
    picture = Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=90, subsampling=subsampling)
    return file.getvalue()


def by_pillow(data: bytes) -> Tensor:
    """Decoded and reduced by Pillow alone, (3, h, w)."""
    image: Image.Image = Image.open(io.BytesIO(data))
    factor = SIDE / min(image.size)
    size = image.size
    if factor < 1:
        size = SIDE * image.width // min(image.size), SIDE * image.height // min(image.size)
        image.draft("RGB", (round(image.width * factor), round(image.height * factor)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decoding(repeats: int) -> list[dict[str, object]]:
    """Images a second on one core, by the size of the photo."""
    rows: list[dict[str, object]] = []
    for width, height, subsampling in FILES:
        data = drawn(width, height, subsampling)
        ours, pillow = turns(
            [lambda data=data: decode_image(data, 3, SIDE), lambda data=data: by_pillow(data)], repeats
        )
        rows.append({
            "JPEG": f"{width} x {height}, {subsampling}, {len(data) // 1000} kB",
            "images a second": rate(1, ours),
            "Pillow alone": rate(1, pillow),
            "ratio": ratio(pillow, ours),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


# -- batches --------------------------------------------------------------------------------------
def on_a_canvas(images: list[Tensor]) -> Pixels:
    """Images in the top left corners of a common canvas."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    canvas = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return Pixels(canvas)


def cropped(
    make: Callable[[list[Tensor]], Pixels], images: list[Tensor], crop: RandomResizedCrop, crops: Crops
) -> Tensor:
    """A view of each image, by way of a batch."""
    return crop.apply(make(images), crops)


def batches(batch: int, repeats: int) -> list[dict[str, object]]:
    """Memory of a batch, and how many images a second are put into one and cropped once, by the number of panoramas."""
    rows: list[dict[str, object]] = []
    crop = RandomResizedCrop(VIEW, (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    for panoramas in (0, 1, batch // 8):
        photos = [PHOTO if i % 2 else PHOTO[::-1] for i in range(batch - panoramas)]
        shapes = photos + [PANORAMA if i % 2 == 0 else PANORAMA[::-1] for i in range(panoramas)]
        images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]
        crops = crop.sample(Draws.of(0, 0, torch.arange(batch)), torch.tensor(shapes))
        sides = [partial(cropped, make, images, crop, crops) for make in (Pixels.stack, on_a_canvas)]
        strip, canvas = turns(sides, repeats)
        pixels = sum(image.nbytes for image in images)
        rows.append({
            "batch": batch,
            "panoramas": panoramas,
            "MB of pixels": round(pixels / 1e6, 1),
            "strip MB": round(Pixels.stack(images).images.nbytes / 1e6, 1),
            "canvas MB": round(on_a_canvas(images).images.nbytes / 1e6, 1),
            "strip, images a second": rate(batch, strip),
            "canvas, images a second": rate(batch, canvas),
            "ratio": ratio(canvas, strip),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


# -- turns ----------------------------------------------------------------------------------------
def turns(sides: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each side in each turn; one turn goes before."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for spent, side in zip(seconds, sides, strict=True):
            start = time.perf_counter()
            side()
            if turn:
                spent.append(time.perf_counter() - start)
    return seconds


def rate(images: int, seconds: list[float]) -> float:
    """Images a second."""
    return round(images / statistics.median(seconds), 1)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times as fast ours is."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    machine = facts(repeats=given.repeats, load=os.getloadavg()[0])
    write("feeding-decoding", decoding(given.repeats), machine)
    write("feeding-batches", batches(given.batch, given.repeats), machine)


if __name__ == "__main__":
    main()

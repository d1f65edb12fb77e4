"""Near copies planted among real images, and how many `akssl dedup` finds: recall, precision, seconds and memory.

Copies are those of random images: a JPEG file of quality 50 to 90, resized by 0.5, 0.75, 1.5 or 2 (box, bilinear,
bicubic or Lanczos), cropped to 95 % of both sides anywhere, or 0.7 to 1.3 times as bright; all but the JPEG files are
stored without loss.
A pair is right if it is an image and its copy, or two copies of it. Two originals are wrong, unless their gray levels
differ by 3 at most on average (root mean square, as they are stored): those are counted apart as natural copies. The
backbone is untrained unless a run is named, so that nothing depends on it. Asked for: 0.99 of both. `--images` beyond
what there is are windows of what there is, for time and memory alone. Writes benchmarks/results/duplicates-NAME.json.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import facts, write

import akssl_core
from akssl_core.data import open_source
from akssl_core.plugins.manager import installed

FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
SAME = 3.0  # root mean square of gray levels up to which two originals are one picture
Draw = np.random.Generator


def recompressed(image: Image.Image, draw: Draw) -> Image.Image:
    """What a JPEG file keeps."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(draw.integers(50, 91)))
    return Image.open(io.BytesIO(file.getvalue())).copy()


def resized(image: Image.Image, draw: Draw) -> Image.Image:
    """Smaller or larger, at least 8 px a side."""
    factor = draw.choice([0.5, 0.75, 1.5, 2.0])
    return image.resize(
        (max(8, round(image.width * factor)), max(8, round(image.height * factor))),
        FILTERS[draw.integers(len(FILTERS))],
    )


def cropped(image: Image.Image, draw: Draw) -> Image.Image:
    """A window of 95 % of both sides."""
    across, down = (side - round(0.95 * side) for side in image.size)
    x, y = int(draw.integers(0, across + 1)), int(draw.integers(0, down + 1))
    return image.crop((x, y, image.width - across + x, image.height - down + y))


def brightened(image: Image.Image, draw: Draw) -> Image.Image:
    """Brighter or darker; what passes white is cut off."""
    factor = draw.uniform(0.7, 1.3)
    return image.point(lambda value: min(255, round(value * factor)))


KINDS: dict[str, Callable[[Image.Image, Draw], Image.Image]] = {
    "recompressed": recompressed, "resized": resized, "cropped": cropped, "brightness": brightened,
}  # fmt: skip


def originals(data: str, test: bool, count: int, draw: Draw) -> list[Image.Image]:
    """So many images of a source or a folder, of its test part or of the others; windows of them beyond what it has."""
    source = open_source(data, installed(), None)
    pair = source.probe()
    images = pair[1] if test and pair is not None else source.train()
    found = []
    for place in range(count):
        if place % len(images) == 0:
            order = draw.permutation(len(images))
        pixels = images[int(order[place % len(images)])][0].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if place >= len(images):  # another picture: turned, and of other gray levels
            turned = np.rot90(np.asarray(image), place // len(images))
            image = Image.fromarray(np.ascontiguousarray(turned))
        found.append(image)
    return found


def plant(folder: Path, images: list[Image.Image], copies: int, draw: Draw) -> dict[str, tuple[int, str]]:
    """Write images and copies of some; by name which original each shows, and the kind of copy."""
    known = {}
    for place, image in enumerate(images):
        known[f"{place:06}.png"] = (place, "")
        image.save(folder / f"{place:06}.png", compress_level=1)
    kinds = list(KINDS)
    for number, place in enumerate(draw.permutation(len(images))[:copies].tolist()):
        kind = kinds[number % len(kinds)]
        name = f"copy{number:06}.png"
        known[name] = (place, kind)
        KINDS[kind](images[place], draw).save(folder / name, compress_level=1)
    return known


def judged(
    groups: list[list[str]], known: dict[str, tuple[int, str]], images: list[Image.Image]
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Recall over all copies and by kind, precision, natural copies, and the pairs of originals that are wrong."""
    found, right, natural, wrong = Counter[str](), 0, 0, []
    for names in groups:
        keep, *others = (known[name] for name in names)
        for place, kind in others:
            if place == keep[0]:
                right += 1
                found[kind or keep[1]] += 1
            elif apart(images[place], images[keep[0]]) <= SAME:
                natural += 1
            else:
                wrong.append((keep[0], place))
    planted = Counter(kind for _, kind in known.values() if kind)
    recall = {f"recall, {kind}": round(found[kind] / planted[kind], 4) for kind in planted}
    total = sum(planted.values())
    row = {"planted": total, "recall": round(right / max(1, total), 4), **recall, "natural": natural}
    row |= {"wrong": len(wrong), "precision": round((right + natural) / max(1, right + natural + len(wrong)), 4)}
    return row, wrong


def apart(a: Image.Image, b: Image.Image) -> float:
    """The root mean square of what two images of one size differ by, in gray levels."""
    if a.size != b.size:
        return 255.0
    return float(np.sqrt(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()))


def untrained(folder: Path, channels: int) -> Path:
    """A backbone of random weights, as a run that takes no step worth speaking of leaves one."""
    images = torch.randint(0, 256, (32, channels, 16, 16), dtype=torch.uint8)
    small: dict[str, Any] = {"backbone": "resnet_tiny", "image_size": 32, "epochs": 1, "batch_size": 32}
    akssl_core.run(
        "simsiam", data=images, out=folder, seed=0, report=False, optimizer={"lr": 1e-12}, device="cpu", **small
    )
    return folder


def measure(
    data: str, count: int, copies: int, *, test: bool, run: Path | None, seed: int, show: Path | None
) -> dict[str, Any]:
    """One row: what is found among so many images with so many copies, in which time and memory."""
    draw = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        images = originals(data, test, count, draw)
        there = Path(folder) / "images"
        there.mkdir()
        known = plant(there, images, copies, draw)
        backbone = run or untrained(Path(folder) / "run", 1 if images[0].mode == "L" else 3)
        source = {"name": "folder", "path": str(there), "channels": 1 if images[0].mode == "L" else 3}
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        found = akssl_core.dedup(backbone, data=source)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row, wrong = judged(found.groups, known, images)
    if show is not None:
        sheet(images, wrong, show)
    memory = {"peak MB": round(after / 1024), "more than before MB": round((after - before) / 1024)}
    part = {"data": Path(data).name, "part": "test" if test else "train", "images": found.images}
    return {**part, **row, "seconds": round(seconds, 1), **memory}


def sheet(images: list[Image.Image], pairs: list[tuple[int, int]], file: Path) -> None:
    """The wrong pairs side by side, to be looked at."""
    page = Image.new("RGB", (8 * 140, max(1, -(-len(pairs) // 8)) * 70))
    for n, pair in enumerate(pairs):
        for side, place in enumerate(pair):
            page.paste(images[place].convert("RGB").resize((64, 64)), (n % 8 * 140 + side * 66, n // 8 * 70))
    page.save(file)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", help="source or folder")
    parser.add_argument("--part", choices=("test", "train"), default="test")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000])
    parser.add_argument("--copies", type=int, default=1200)
    parser.add_argument("--run", type=Path, help="a trained run in place of random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=Path, help="picture to write of the wrong pairs")
    parser.add_argument("--out", default="duplicates")
    asked = parser.parse_args(arguments)
    rows = []
    for data in asked.data:
        for count in asked.images:
            shared: dict[str, Any] = {"test": asked.part == "test", "run": asked.run, "seed": asked.seed}
            row = measure(data, count, asked.copies, show=asked.show, **shared)
            print(json.dumps(row), flush=True)
            rows.append(row)
    write(asked.out, rows, facts())


if __name__ == "__main__":
    main()

"""Microseconds a view on one core: ours and kornia (batched), lightly and torchvision v2 (image by image).

Whole SimCLR policies (arXiv 2002.05709: crop, flip, jitter, gray, blur from 64 px, normalise) at 32 and 96 px, and at
224 px from 256 px, and each operation alone with the largest difference from torchvision at equal parameters. Sides
take turns; ratios are taken within a turn. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import facts, write
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from akssl_core import ImageSpec, Pixels, ViewPolicy
from akssl_core.augment.color import HUE, ColorJitter, GaussianBlur, Grayscale, Normalize, Solarize, kernel_size
from akssl_core.augment.crop import RandomResizedCrop
from akssl_core.augment.policy import PolicyTransform, settle
from akssl_core.draws import Draws
from akssl_core.training.hardware import kept_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {32: (32, 256), 96: (96, 64), 224: (256, 32)}  # side of a view: (side of the images, how many)
Side = Callable[[], Any]


def pictures(side: int, count: int) -> Tensor:
    """Smooth random images, (N, 3, side, side) uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)


# -- whole policies -------------------------------------------------------------------------------
def policies(size: int) -> dict[str, Side]:
    """One view of every image, by each library."""
    from kornia_loop import pipeline
    from lightly.transforms import SimCLRTransform

    side, count = SIZES[size]
    images, draws = pictures(side, count), Draws.of(0, 0, torch.arange(count))
    mine = PolicyTransform(SIMCLR, size, ImageSpec(size, 3, MEAN, STD))
    blurred = mine.policy.blur
    torchvisions = torchvision_policy(settle(SIMCLR, size, 3), size)
    kornias = pipeline(mine, MEAN, STD)
    lightlys = SimCLRTransform(input_size=size, gaussian_blur=blurred).transforms[0]
    pil = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    return {
        "ours": lambda: mine(Pixels(images), draws),
        "lightly": lambda: torch.stack([lightlys(image) for image in pil]),
        "torchvision": lambda: torch.stack([torchvisions(image) for image in images]),
        "kornia": lambda: kornias(images.float().div_(255)),
    }


SIMCLR = ViewPolicy(scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)


def torchvision_policy(policy: ViewPolicy, size: int) -> v2.Transform:
    """The same policy of torchvision's transforms."""
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    steps = [
        v2.RandomResizedCrop(size, policy.scale, policy.ratio, antialias=True),
        v2.RandomHorizontalFlip(policy.flip),
        v2.RandomApply([jitter], policy.jitter),
        v2.RandomGrayscale(policy.grayscale),
    ]
    if policy.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size(size), policy.blur_sigma)], policy.blur))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


# -- single operations ----------------------------------------------------------------------------
def operations(size: int) -> dict[str, tuple[Side, Side]]:
    """Ours on the batch, and torchvision's on each image with the same parameters; both return the views."""
    side, count = SIZES[size]
    images, draws = pictures(side, count), Draws.of(0, 0, torch.arange(count))
    views = pictures(size, count).float() / 255
    crop, jitter = RandomResizedCrop(size, (0.08, 1.0), (3 / 4, 4 / 3), 0.5), ColorJitter(1.0, 0.8, 0.8, 0.8, 0.2)
    boxes = crop.sample(draws, torch.tensor([side, side]).expand(count, 2))
    jitters = jitter.sample(draws)
    blur, gray, solarize = GaussianBlur(1.0, kernel_size(size), (0.1, 2.0)), Grayscale(1.0), Solarize(1.0)
    blurs, normalize = blur.sample(draws), Normalize(MEAN, STD)

    def cropped(image: Tensor, box: list[int], flip: bool) -> Tensor:
        top, left, height, width = box
        view = TF.resized_crop(image.float() / 255, top, left, height, width, [size, size], antialias=True)
        return TF.horizontal_flip(view) if flip else view

    def jittered(image: Tensor, factors: list[float], order: list[int]) -> Tensor:
        adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        assert HUE == 3
        for which in order:
            image = adjust[which](image, factors[which])
        return image

    def each(function: Callable[..., Tensor], *rows: Tensor, of: Tensor = views) -> Side:
        lists = [row.tolist() for row in rows]
        return lambda: torch.stack([function(image, *values) for image, *values in zip(of, *lists, strict=True)])

    return {
        "crop and flip": (lambda: crop.apply(Pixels(images), boxes), each(cropped, boxes.boxes, boxes.flip, of=images)),
        "jitter": (lambda: jitter.apply(views.clone(), jitters), each(jittered, jitters.factors, jitters.order)),
        "gray": (
            lambda: gray.apply(views.clone(), gray.sample(draws)),
            each(lambda image: TF.rgb_to_grayscale(image, num_output_channels=3)),
        ),
        "blur": (
            lambda: blur.apply(views.clone(), blurs),
            each(lambda image, sigma: TF.gaussian_blur(image, [blur.kernel] * 2, [sigma] * 2), blurs.sigma),
        ),
        "solarize": (
            lambda: solarize.apply(views.clone(), solarize.sample(draws)),
            each(lambda image: TF.solarize(image, 0.5)),
        ),
        "normalise": (
            lambda: normalize.apply(views),
            each(lambda image: TF.normalize(image, list(MEAN), list(STD))),
        ),
    }


# -- the tables -----------------------------------------------------------------------------------
def seconds(sides: dict[str, Side], repeats: int) -> list[dict[str, float]]:
    """Seconds of each side, turn after turn; the first turn is left out."""
    turns = []
    for _ in range(repeats + 1):
        turn = {}
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            turn[name] = time.perf_counter() - start
        turns.append(turn)
    return turns[1:]


def row(first: dict[str, Any], sides: dict[str, Side], count: int, repeats: int) -> dict[str, Any]:
    """Microseconds a view of each side, and how many times as fast ours is."""
    turns = seconds(sides, repeats)
    medians = {f"{name} us": round(1e6 * statistics.median(t[name] for t in turns) / count, 1) for name in sides}
    others = [name for name in sides if name != "ours"]
    ratios = {f"{name} / ours": round(statistics.median(t[name] / t["ours"] for t in turns), 1) for name in others}
    return {**first, **medians, **ratios}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    whole, single = [], []
    with kept_memory():
        for size in arguments.sizes:
            count = SIZES[size][1]
            whole.append(row({"size": size}, policies(size), count, arguments.repeats))
            print(json.dumps(whole[-1]), flush=True)
            for name, (ours, theirs) in operations(size).items():
                error = float((ours() - theirs()).abs().max())
                sides = {"ours": ours, "torchvision": theirs}
                first = {"size": size, "operation": name, "largest difference": f"{error:.1e}"}
                single.append(row(first, sides, count, arguments.repeats))
                print(json.dumps(single[-1]), flush=True)
    machine = facts(repeats=arguments.repeats)
    write("augment", whole, machine)
    write("augment-operations", single, machine)


if __name__ == "__main__":
    main()

"""Training on JPEG files at 224 px: ours from the folder and from a prepared cache, lightly from the folder.

Five hundred pixels wide drawings are saved as JPEG; the cache is what `akssl data prepare` makes of them. Otherwise as
`throughput.py`: ResNet-18, two views, sides take turns. Needs `pip install -e .[bench]`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from PIL import Image
from plans import plan_for
from results import facts, write
from throughput import Epoch, lightly, measure, ours
from torch import Tensor
from torch.utils.data import Dataset

import akssl_core
from akssl_core.running.result import prepare

WIDTH, HEIGHT = 500, 375  # the usual size of ImageNet's photos


class JpegViews(Dataset[list[Tensor]]):
    """Views of the files of a folder, decoded image by image, as lightly's data set makes them."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        """Views (C, h, w) of one file."""
        views: list[Tensor] = self.transform(Image.open(self.files[index]).convert("RGB"))
        return views


def draw(folder: Path, count: int) -> None:
    """So many JPEG files."""
    images = akssl_core.build("data", "shapes", WIDTH, size=count).train()
    for i in range(count):
        picture = Image.fromarray(images[i][0].permute(1, 2, 0).numpy()).resize((WIDTH, HEIGHT))
        picture.save(folder / f"{i:05}.jpg", quality=90)


def sides(method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Epoch]:
    """Ours and lightly on the files of a folder."""
    batch, size, cache = arguments.batch, arguments.size, folder / "cache.safetensors"
    if not cache.exists():
        prepare(folder, cache, image_size=size)
    plan = plan_for(method, str(cache), "fp32", batch, size)
    return {
        "ours": ours(method, str(cache), "auto", batch, size),
        "ours fp32": ours(method, str(cache), "fp32", batch, size),
        "ours from files": ours(method, {"name": "folder", "path": str(folder), "cache_gb": 0.0}, "auto", batch, size),
        "lightly": lightly(method, plan, lambda transform: JpegViews(folder, transform), batch),
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=["simclr"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="batches an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, (arguments.steps + 1) * arguments.batch)
        for method in arguments.methods:
            row = measure(sides(method, folder, arguments), arguments.steps * arguments.batch, arguments.repeats)
            rows.append({"method": method, "size": arguments.size, "batch": arguments.batch, **row})
            print(json.dumps(rows[-1]), flush=True)
    write("photos", rows, facts(repeats=arguments.repeats, steps=arguments.steps, load=os.getloadavg()[0]))


if __name__ == "__main__":
    main()

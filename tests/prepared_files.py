"""Images to prepare and prepared files to open, for the tests of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from akssl_core.data import Prepared
from akssl_core.data.prepared import PreparedConfig

MODES = (("jpg", "RGB"), ("png", "RGBA"), ("png", "P"), ("jpg", "CMYK"), ("png", "L"), ("webp", "RGB"), ("png", "1"))
BROKEN = {"cat/03.png": "empty", "dog/20.jpg": "not an image"}

SMALL = {"max_unreadable": 0.2, "shard_size": "60kB"}  # settings by which the photos fill several shards


def save(path, size, mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


def opened(path, image_size=None):
    return Prepared(PreparedConfig(path=path), image_size)


def write_photos(path):
    """42 ragged photos of several modes in two classes; two cannot be read, and a folder only looks like one."""
    for i in range(42):
        suffix, mode = MODES[i % len(MODES)]
        save(path / ("cat" if i < 17 else "dog") / f"{i:02}.{suffix}", (20 + 7 * i % 90, 24 + 5 * i % 80), mode, seed=i)
    save(path / "dog" / "long.png", (400, 30), seed=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(path / "dog" / "turned.jpg", (90, 60), seed=91, exif=exif)
    (path / "dog" / "folder.png").mkdir()
    for name in list(BROKEN):
        next((path / name).parent.glob(f"{Path(name).stem}.*")).unlink()
    (path / "cat" / "03.png").write_bytes(b"")
    (path / "dog" / "20.jpg").write_text("text")
    return path


def content(folder):
    """The bytes of each file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder):
    """The names of the files of a folder, in order."""
    return sorted(path.name for path in folder.iterdir())

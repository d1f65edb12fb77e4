"""Folders of drawn images, which several test files read."""

from __future__ import annotations

import numpy as np
from PIL import Image

from akssl_core.data import Folder
from akssl_core.data.folder import FolderConfig


def folder(path, image_size=None, **settings):
    return Folder(FolderConfig(path=path, **settings), image_size)


def save(path, size=(30, 20), mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path

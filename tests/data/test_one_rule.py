"""The same image gives the same numbers by every way in: a backbone is shown the original, resized once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

import akssl_core
from akssl_core import Preprocess, prepare
from akssl_core.data import ImageSpec, open_source
from akssl_core.plugins.manager import Plugins

SIZES = {"noise": (48, 48), "photo": (400, 300), "tall": (90, 700), "panorama": (900, 40), "small": (20, 24)}


class Pictures(Dataset):
    """The files as a torch `Dataset`, as Pillow images or as arrays."""

    def __init__(self, files, form):
        self.files, self.form = files, form

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.form(picture_of(self.files[i]))


def array_of(image):
    return np.asarray(image.convert("RGBA"))


def picture_of(file):
    with Image.open(file) as image:
        image.load()
        return image


@pytest.fixture
def files(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "pictures"
    root.mkdir()
    for name, size in SIZES.items():
        picture = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        picture.save(root / f"{name}.png")
        picture.save(root / f"{name}.jpg", quality=90)
        picture.putalpha(Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8)))
        picture.save(root / f"{name}_alpha.png")
        picture.convert("L").save(root / f"{name}_gray.png")
    return sorted(root.iterdir())


def shown(data, feed, image_size=None):
    images = open_source(data, Plugins(), image_size or feed.size).all()
    twice = [feed.pixels(feed.fetch(images, range(len(images)))) for _ in range(2)]
    assert torch.equal(*twice), "what is kept differs from what was decoded"
    images.fetch(range(len(images)))
    part = images.subset(torch.arange(1, len(images)))
    assert torch.equal(feed.pixels(feed.fetch(part, [2])), twice[0][3:4])
    return twice[0]


@pytest.mark.parametrize("size", [20, 32, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_way_in_shows_the_same(files, tmp_path, size, channels):
    feed = Preprocess.of(ImageSpec(size, channels, (0.5,) * channels, (0.2,) * channels))
    expected = feed([picture_of(file) for file in files])
    assert torch.equal(torch.cat([feed(array_of(picture_of(file))) for file in files]), expected)
    folder = files[0].parent
    for cache_gb in (0.0, 1.0):
        assert torch.equal(shown({"name": str(folder), "cache_gb": cache_gb}, feed), expected)
    for form in (lambda image: image, array_of):
        assert torch.equal(shown(Pictures(files, form), feed), expected)
    for asked in ({"image_size": size}, {"image_size": size, "size": 37}, {"image_size": size, "size": 700}):
        written = prepare(folder, tmp_path / "prepared.safetensors", **asked, overwrite=True)
        found = shown(str(written.path), feed)
        least = 1e-6 if channels == 3 else 0.5 / 255 / 0.2  # colour in the file, and gray is rounded before the resize
        torch.testing.assert_close(found, expected, atol=least, rtol=0)


def test_the_rule_is_one_resize_of_the_original_as_its_words_say(files):
    feed = Preprocess.of(ImageSpec(100, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    assert "shorter side to 114 px (bilinear, antialiased), then the centre" in feed.rule
    photo = next(file for file in files if file.name == "photo.png")
    pixels = torch.from_numpy(np.array(picture_of(photo))).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (114, 152), mode="bilinear", antialias=True)
    by_hand = (small[..., 7:107, 26:126] / 255 - torch.tensor(feed.mean)[:, None, None]) / 0.2
    torch.testing.assert_close(feed(picture_of(photo)), by_hand, atol=1e-6, rtol=0)


def test_a_prepared_file_says_where_squares_of_a_size_are_not_those_of_the_originals(files, tmp_path):
    path = str(prepare(files[0].parent, tmp_path / "small.safetensors", size=48).path)
    for view, is_told in ((28, False), (40, False), (36, True)):
        source = open_source(path, Plugins(), view)
        source.train()
        assert any("not quite those of the originals" in note for note in source.notes) == is_told


def test_features_of_a_run_agree(files, tmp_path):
    folder, photos = files[0].parent, [file for file in files if file.name.startswith("photo")]
    result = akssl_core.run(
        "simsiam", data=str(folder), image_size=32, steps=2, batch_size=8, out=tmp_path / "run", report=False
    )
    by_folder = dict(zip(*reversed(akssl_core.embed(result.run_dir, data=str(folder))[:2]), strict=True))
    by_array, *_ = akssl_core.embed(
        result.run_dir, data=np.stack([array_of(picture_of(f)) for f in photos if "_" not in f.name])
    )
    with torch.no_grad():
        by_image = result.backbone(result.preprocess([picture_of(file) for file in photos]))
    for i, file in enumerate(photos):
        torch.testing.assert_close(torch.as_tensor(by_folder[file.name]), by_image[i], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.as_tensor(by_array),
        by_image[[i for i, f in enumerate(photos) if "_" not in f.name]],
        atol=1e-5,
        rtol=1e-5,
    )

"""Sentences about test images are true: whose they are, and whether the run has trained on them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import akssl_core
from akssl_core import ConfigError


def draw(path, rows):
    for i in rows:
        (path / ("cat" if i % 2 else "dog")).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((14, 14), 10 + i).convert("RGB").save(path / ("cat" if i % 2 else "dog") / f"{i:02}.png")


def test_test_images_that_have_trained_are_told_by_path_and_by_content(tmp_path):
    root = tmp_path / "root"
    draw(root / "train", range(24))
    draw(root / "test", range(24, 34))
    draw(tmp_path / "new", range(34, 44))
    shutil.copytree(root / "test", tmp_path / "copied")
    draw(root / "more", range(50, 54))
    every = {"name": "folder", "path": str(root), "labels": "none"}
    akssl_core.run("simsiam", data=every, image_size=12, steps=1, out=tmp_path / "r", report=False)

    def told(data, **settings):
        found = akssl_core.evaluate(tmp_path / "r", data={"name": "folder", "path": str(data), **settings})
        return [note for note in found.notes if "this run has trained on" in note], found.text

    held_out, text = told(root / "test")
    assert len(held_out) == 1
    assert "one labelled image in five" in text
    own, text = told(root / "train", test=str(root / "test"))
    assert "10 of the 10 test images" in own[0]
    assert "the source's own training and test images" in text
    assert "10 of the 10 test images" in told(root / "train", test=str(tmp_path / "copied"))[0][0]
    assert told(root / "train", test=str(tmp_path / "new"))[0] == []
    given = akssl_core.evaluate(tmp_path / "r", data=root / "train", test_data=root / "test")
    assert "24 training and 10 test images" in given.text
    assert any("10 of the 10 test images" in note for note in given.notes)
    pair = (np.zeros((4, 12, 12, 3), dtype=np.uint8), [0, 1, 0, 1])
    with pytest.raises(ConfigError, match="test_data: it goes with data in files"):
        akssl_core.evaluate(tmp_path / "r", data=pair, test_data=root / "test")

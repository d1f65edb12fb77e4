"""Sentences about test images are true: whose they are, and whether the run has trained on them."""

from __future__ import annotations

import shutil

from PIL import Image

import akssl_core


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

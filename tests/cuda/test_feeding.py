"""Batches on their way to a GPU: nobody waits for them, and they come from pinned memory."""

from __future__ import annotations

import json

import pytest

null_device = pytest.importorskip("null_device", reason="the device that computes nothing is not in this checkout")
pytestmark = pytest.mark.skipif(null_device.missing() is not None, reason=str(null_device.missing()))

CODE = """
import json, sys, torch
from akssl_core.augment.crop import RandomResizedCrop, boxes_of_strip
from akssl_core.data import Loader, TensorImages, Wrapped
from akssl_core.data.folder import Folder, FolderConfig
from akssl_core.draws import Draws
from null_device.counting import counts, waits

class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, i):
        return torch.zeros(3, 30 + i, 40 + 80 * (i % 5 == 0), dtype=torch.uint8)

crop = RandomResizedCrop(32, (0.1, 1.0), (3 / 4, 4 / 3), 0.5)
sets = {
    "folder": (Folder(FolderConfig(path=sys.argv[1]), 32).train(), 0),
    "dataset": (Wrapped(Photos()).train(), 0),
    "workers": (Wrapped(Photos()).train(), 2),
    "memory": (TensorImages(torch.zeros(24, 3, 9, 9, dtype=torch.uint8)), 0),
}
answer = {}
for name, (images, workers) in sets.items():
    loader = Loader(images, 4, device=torch.device("cuda"), workers=workers)
    list(loader.epoch(0))
    before = counts()
    with waits() as places:
        for pixels, index, _ in loader.epoch(1):
            assert pixels.images.is_cuda
            if pixels.sizes is not None:
                crops = crop.sample(Draws.of(0, 0, index), pixels.sizes)
                canvas, _ = boxes_of_strip(pixels, crops)
                assert canvas.is_cuda and canvas.shape[2:] == (*crops.boxes[:, 2:].amax(0),)
    after = counts()
    loader.close()
    answer[name] = {"waits": after["waits"] - before["waits"], "pageable": after["pageable"] - before["pageable"]}
    answer[name]["places"] = places
print(json.dumps(answer))
"""


def test_nobody_waits_for_a_batch(tmp_path):
    from drawn_folders import save

    for i in range(24):
        save(tmp_path / f"{i}.jpg", (40 + 80 * (i % 5 == 0), 30 + i), seed=i)
    found = json.loads(null_device.run("-c", CODE, str(tmp_path)))
    assert found == {name: {"waits": 0, "pageable": 0, "places": {}} for name in found}
    assert list(found) == ["folder", "dataset", "workers", "memory"]

"""What `data` cannot be is told with what it can be."""

from __future__ import annotations

import numpy as np
import pytest

import akssl_core
from akssl_core import DataError
from akssl_core.data import open_source
from akssl_core.plugins.manager import Plugins

IMAGES = np.zeros((8, 12, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("key", ["image", "pixels"])
def test_a_table_with_arrays_is_told_to_be_a_pair(key):
    table = {key: IMAGES, "label": np.arange(8)}
    for use in (lambda: open_source(table, Plugins()), lambda: akssl_core.explain("simsiam", data=table)):
        with pytest.raises(DataError, match=rf"a table \({key}, label\) with arrays .*data=\(images, labels\)"):
            use()


def test_a_data_set_of_hugging_face_is_told_of_its_plugin():
    foreign = type("Dataset", (), {"__module__": "datasets.arrow_dataset"})()
    with pytest.raises(DataError, match=r"save_to_disk\('DIR'\).*'name': 'hf'.*akssl-plugin-hf-datasets"):
        akssl_core.explain("simsiam", data=foreign)


def test_a_result_is_one_line(photos, tmp_path):
    result = akssl_core.run("simsiam", data=photos, steps=1, batch_size=8, out=tmp_path / "r", report=False)
    assert len(repr(result)) < 200 + len(str(tmp_path))
    assert "knn_top1" in repr(result)
    assert str(result.run_dir) in repr(result)

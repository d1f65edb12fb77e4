"""`akssl_core.search` and `akssl search`: the right images by name, from data or features on disk, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import akssl_core
from akssl_core import AksslError
from akssl_core.evaluation import searching
from akssl_core.evaluation.embedding import embed_to_file
from akssl_core.metrics.nearest import nearest


@pytest.fixture
def folder(tmp_path):
    """Twelve photos, flat, and beside them one of them again and a folder of two others."""
    generator = np.random.default_rng(0)
    for i in range(15):
        file = tmp_path / ("photos" if i < 12 else "asked") / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12 + i, 14, 3), np.uint8)).save(file)
    Image.open(tmp_path / "photos" / "4.png").save(tmp_path / "again.png")
    (tmp_path / "asked" / "14.png").write_bytes((tmp_path / "asked" / "14.png").read_bytes()[:90])
    return tmp_path


DATA = {"name": "folder", "max_unreadable": 1.0}


def by_hand(finished, bank, query):
    """Cosine distances (Q, N) in float64, and the names of both."""
    parts = [akssl_core.embed(finished, data={**DATA, "path": str(path)}) for path in (bank, query)]
    a, b = (F.normalize(part.features.double(), dim=1) for part in parts)
    return 1 - b @ a.T, parts[0].ids, parts[1].ids


def test_the_nearest_images_of_a_folder_of_queries(finished, folder):
    found = akssl_core.search(finished, {**DATA, "path": str(folder / "asked")}, data=folder / "photos", k=3)
    expected, names, queries = by_hand(finished, folder / "photos", folder / "asked")
    assert found.queries == queries == ["12.png", "13.png"]
    order = expected.argsort(1)[:, :3]
    assert found.images == [[names[i] for i in row] for row in order.tolist()]
    torch.testing.assert_close(found.distances, expected.gather(1, order).float(), rtol=0, atol=2e-6)
    assert list(found.unreadable) == ["14.png"]
    assert "1 unreadable and left out" in found.text


def test_one_image_finds_itself_first(here, finished, folder):
    code, out, err = here("search", finished, "again.png", "--data", "photos", "--k", "2", "--json")
    assert code == 0, err
    (query,) = json.loads(out)["queries"]
    assert query["query"] == "again.png"
    assert [len(query["nearest"]), query["nearest"][0]["image"]] == [2, "4.png"]
    assert query["nearest"][0]["distance"] < 2e-6
    code, out, err = here("search", finished, "again.png", "--data", "photos", "--k", "2")
    assert out.splitlines()[0].split() == ["query", "rank", "distance", "image"]
    assert out.splitlines()[1].split() == ["again.png", "1", "0.0000", "4.png"]


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_features_on_disk_say_the_same_and_the_data_are_not_read(finished, folder, suffix):
    data, query = folder / "photos", folder / "again.png"
    embed_to_file(finished, folder / f"f.{suffix}", data=data)
    expected = akssl_core.search(finished, query, data=data)
    found = akssl_core.search(finished, query, data="/nowhere", features=folder / f"f.{suffix}")
    assert found.images == expected.images
    assert torch.equal(found.distances, expected.distances)


def test_numbers_where_images_have_no_names(finished, photos, tmp_path):
    found = akssl_core.search(finished, photos[0][5:7], data=photos[0], k=100)
    assert [row[0] for row in found.images] == [5, 6]
    assert found.distances.shape == (2, 64), "all there are"
    embed_to_file(finished, tmp_path / "f.safetensors", data=photos[0])
    assert (
        akssl_core.search(finished, photos[0][5:7], features=tmp_path / "f.safetensors", k=100).images == found.images
    )


@pytest.mark.parametrize("from_file", [False, True])
def test_the_page_shows_queries_and_what_was_found(finished, folder, monkeypatch, from_file):
    monkeypatch.setattr(searching, "ON_A_PAGE", 2)
    monkeypatch.setattr(searching, "TOGETHER", 5)
    embed_to_file(finished, folder / "f.npz", data=folder / "photos")
    more = {"features": folder / "f.npz"} if from_file else {}
    out = folder / "search.html"
    found = akssl_core.search(finished, folder / "photos", data=folder / "photos", k=3, out=out, **more)
    page = out.read_text()
    assert page.count('src="data:image/png;base64,') == 2 * (1 + 3), "queries beyond the bound are in the table alone"
    assert "The first 2 of 12 queries." in page
    for query, near in zip(found.queries[:2], found.images[:2], strict=True):
        assert all(f'alt="{name}"' in page for name in (query, *near))
    assert f"{found.distances[0, 1]:.4f}" in page
    assert found.text.endswith(f"The page: {out}")


def test_a_page_needs_the_data_of_the_features(finished, folder):
    embed_to_file(finished, folder / "f.npz", data=folder / "photos")
    with pytest.raises(AksslError, match=r"has no image '\d+.png', of which there are features. Give the data that"):
        akssl_core.search(
            finished, folder / "again.png", data=folder / "asked", features=folder / "f.npz", out=folder / "s.html"
        )
    assert not (folder / "s.html").exists()


@pytest.mark.parametrize("queries", [1, 40])
def test_few_queries_and_many_find_what_a_product_of_all_finds(queries):
    draw = torch.Generator().manual_seed(0)
    bank, asked = torch.randn(20_000, 24, generator=draw), torch.randn(queries, 24, generator=draw)
    bank[7], bank[8, 3], bank[9, 2] = 0, torch.inf, torch.nan
    cosines = F.normalize(asked.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    cosines[:, 7:10] = 0
    for few in (False, True):
        found, index = nearest(bank, asked, 20_000, few=few)
        torch.testing.assert_close(found, cosines.sort(1, descending=True).values, rtol=0, atol=2e-6)
        torch.testing.assert_close(found, cosines.gather(1, index), rtol=0, atol=2e-6)


def spoilt(folder, finished):
    """Files that are no features of this network."""
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    embed_to_file(finished, folder / "f.npz", data=folder / "photos")
    embed_to_file(finished, folder / "p.npz", data=folder / "photos", patches=True)
    embed_to_file({"source": str(finished), "size": 16}, folder / "fed.safetensors", data=folder / "photos")
    np.savez(folder / "wide.npz", features=np.ones((2, 9), np.float32), ids=np.arange(2))
    save_file({"features": torch.ones(2, 8)}, folder / "plain.safetensors")
    (folder / "cut.npz").write_bytes((folder / "f.npz").read_bytes()[:200])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("agan.png",),
            "query: there is no 'agan.png'. Did you mean 'again.png'? Give an image, or a folder of images.",
        ),
        (("notes.txt",), "is an image: notes.txt (not an image in a known format)"),
        (("empty",), "empty holds no image files"),
        (("again.png", "--k", "0"), "k: expected a whole number from 1"),
        (("again.png", "--out", "no/s.html"), "there is no folder 'no'"),
        (("again.png", "--out", "notes.txt"), "expected a name that ends in .html, as a page's does, got 'notes.txt'"),
        (("again.png", "--data", "photoz"), "Did you mean"),
        (
            ("again.png", "--features", "f.csv"),
            "features: 'f.csv' must end in .safetensors or .npz. Write it with this",
        ),
        (
            ("again.png", "--features", "ff.npz"),
            "features: there is no 'ff.npz'. Did you mean 'f.npz'? Write it with this",
        ),
        (("again.png", "--features", "p.npz"), "has the shape"),
        (
            ("again.png", "--features", "wide.npz"),
            "of another network (9 a row, and this one has 8). Write it with this",
        ),
        (("again.png", "--features", "fed.safetensors"), "of another network (as wide). Write it with this one: akssl"),
        (("again.png", "--features", "plain.safetensors"), "'plain.safetensors' was not written by akssl embed."),
        (("again.png", "--features", "cut.npz"), "'cut.npz' is damaged or was not written by akssl embed"),
    ],
)
def test_bad_input_is_one_line(here, finished, folder, arguments, message):
    spoilt(folder, finished)
    data = () if "--data" in arguments else ("--data", "photos")
    code, out, err = here("search", "finished", *arguments, *data)
    assert (code, out) == (2, ""), err
    assert message in err
    assert err.count("\n") == 1

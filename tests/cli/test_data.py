"""`akssl data`: what the command prints, writes and refuses, and runs that take its file."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from PIL import Image

from akssl_core import run
from akssl_core.config.yaml import read_yaml
from akssl_core.data import Prepared, open_source
from akssl_core.plugins.manager import Plugins

FORECAST = "25 images: about 0.1 MB in 1 file, less than a minute, .* of memory a process\n"
SMALL = ("--image-size", "16", "--batch-size", "8", "--precision", "fp32", "--set", "train.steps=1")


@pytest.fixture
def photos(tmp_path):
    """24 colour images in two classes; one more is empty."""
    generator = torch.Generator().manual_seed(0)
    for i in range(24):
        pixels = torch.randint(0, 256, (20 + i, 40, 3), generator=generator).to(torch.uint8)
        path = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    (tmp_path / "photos" / "cat" / "broken.png").touch()
    return tmp_path / "photos"


def test_prepare_says_what_it_wrote_and_how_to_use_it(here, photos, tmp_path):
    code, out, err = here("data", "prepare", "photos", "--out", "my photos.safetensors")
    assert code == 0
    assert re.fullmatch(FORECAST, err)
    assert out.splitlines() == [
        "my photos.safetensors: 25 images, 0.1 MB, 2 classes, shorter side at most 48 px, 1 unreadable: "
        "cat/broken.png (an empty file)",
        "Train from it: akssl run simsiam --data 'my photos.safetensors'",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my photos.safetensors", "photos"]


def test_a_run_takes_the_file_by_flag_keyword_and_config(here, photos, tmp_path):
    assert here("data", "prepare", "photos", "--out", "p.safetensors", "--size", "18")[0] == 0
    code, _, err = here("run", "simsiam", "--data", "p.safetensors", *SMALL, "--out", "FLAG")
    assert code == 0, err
    config = read_yaml(tmp_path / "FLAG" / "config.yaml")
    assert config["data"] == {"name": "prepared", "path": str(tmp_path / "p.safetensors")}
    assert here("run", "--config", "FLAG/config.yaml", "--out", "AGAIN")[0] == 0
    assert here("resume", "FLAG")[0] == 0
    result = run("simsiam", data=tmp_path / "p.safetensors", config="FLAG/config.yaml", out="PATH", report=False)
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"] for name in ("FLAG", "AGAIN", "PATH")]
    assert losses[0] == losses[1] == losses[2] == result.metrics["loss"]
    assert (tmp_path / "FLAG" / "unreadable.txt").read_text() == "cat/broken.png\tan empty file\n"
    code, out, _ = here("explain", "simsiam", "--data", "p.safetensors")
    assert (code, f"25 images in {tmp_path}/p.safetensors, prepared from photos" in out) == (0, True)


def test_shards_are_told_as_json_and_taken_by_every_command(here, photos, tmp_path):
    shards = ("--out", "p", "--shard-size", "30kB", "--workers", "2", "--json", "--size", "18")
    code, out, err = here("data", "prepare", "photos", *shards)
    assert code == 0, err
    told = json.loads(out)
    assert (told["path"], told["images"], told["classes"]) == ("p", 25, 2)
    assert told["unreadable"] == {"cat/broken.png": "an empty file"}
    assert told["forecast"]["shards"] == told["shards"] == len(list((tmp_path / "p").glob("images-0*"))) > 1
    assert told["forecast"].keys() == {"images", "bytes", "shards", "left", "memory", "minutes"}
    assert here("run", "simsiam", "--data", "p", *SMALL, "--out", "RUN", "--no-report")[0] == 0
    assert read_yaml(tmp_path / "RUN" / "config.yaml")["data"] == {"name": "prepared", "path": str(tmp_path / "p")}
    assert here("data", "prepare", "photos", "--out", "p.safetensors", "--size", "18")[0] == 0
    for words in (("eval", "RUN", "--seeds", "1"), ("embed", "RUN", "--out", "f.npz", "--overwrite"), ("dedup", "RUN"),
                  ("search", "RUN", "photos/cat/01.png")):  # fmt: skip
        said = [here(*words, "--data", data) for data in ("p", "p.safetensors")]
        assert said[0][1] == said[1][1].replace("p.safetensors", "p"), "the same answer as of one file"
        assert said[0][0] == 0, said[0][2]
    assert here("resume", "RUN")[0] == 0
    assert here("explain", "simsiam", "--data", "p")[0] == 0
    assert here("doctor", "simsiam", "--data", "p")[0] in (0, 1)


def test_an_existing_file_is_replaced_by_force_alone(here, photos, tmp_path):
    (tmp_path / "p.safetensors").write_text("mine")
    code, out, err = here("data", "prepare", "photos", "--out", "p.safetensors")
    assert (code, out) == (2, "")
    assert "'p.safetensors' exists already. Replace it with --overwrite" in err
    assert (tmp_path / "p.safetensors").read_text() == "mine"
    assert here("data", "prepare", "photos", "--out", "p.safetensors", "--overwrite")[0] == 0
    assert isinstance(open_source("p.safetensors", Plugins()), Prepared)


def test_settings_and_size_reach_the_source(here, photos):
    arguments = ("--out", "g.safetensors", "--size", "16", "--set", "data.channels=1", "--set", "data.cache_gb=0")
    code, out, err = here("data", "prepare", "photos", *arguments)
    assert code == 0, err
    assert "shorter side at most 16 px" in out
    images = open_source("g.safetensors", Plugins()).all()
    assert images.fetch([0]).images.shape[:3] == (1, 1, 16)


def test_a_source_by_name_keeps_its_split_and_tells_the_recipe(here, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from akssl_core import DatasetSource, TensorImages, hookimpl\n"
        "class Mine(DatasetSource):\n"
        "    '''Noise.'''\n"
        "    name, family, natural_size = 'mine', 'imagenet', 8\n"
        "    def train(self):\n"
        "        return TensorImages(torch.zeros(6, 3, 8, 8, dtype=torch.uint8))\n"
        "@hookimpl\n"
        "def akssl_register(registry):\n"
        "    registry.add(Mine)\n"
    )
    code, out, err = here("data", "prepare", "mine", "--plugin-file", "mine.py", "--out", "m.safetensors")
    assert code == 0, err
    assert (
        out.splitlines()[0] == "m.safetensors: 6 images, 0.0 MB, no classes, shorter side at most 14 px, 0 unreadable"
    )
    assert "--recipe imagenet" in out.splitlines()[1]
    code, out, err = here("data", "prepare", "shapes", "--set", "data.size=20", "--set", "data.test_size=10", "--out",
                          "s.safetensors")  # fmt: skip
    assert code == 0, err
    assert "30 images" in out


BAD = [
    (("prepare", "photos"), "Missing option '--out'"),
    (("prepare", "photoz", "--out", "p.safetensors"), "Did you mean the folder 'photos'?"),
    (("prepare", "shaps", "--out", "p.safetensors"), "Did you mean 'shapes'?"),
    (("prepare", "photos", "--out", "p.bin"), "--out: 'p.bin' must end in .safetensors"),
    (("prepare", "photos", "--out", "no/p.safetensors"), "there is no folder 'no'"),
    (
        ("prepare", "photos", "--out", "p.safetensors", "--size", "4"),
        "size: expected a whole number from 8 to 8192, got 4.",
    ),
    (("prepare", "photos", "--out", "p.safetensors", "--set", "data.chanels=1"), "Did you mean 'channels'?"),
    (("prepare", "photos", "--out", "p.safetensors", "--set", "seed=1"), "--set seed: only settings of the data apply"),
    (("prepare", "photos", "--out", "p.safetensors", "--set", "data.max_unreadable=0"), "photos cannot be read (4.0%"),
    (("prepare", "text.safetensors", "--out", "p.safetensors"), "text.safetensors cannot be read"),
    (("prepare", "photos", "--out", "p", "--shard-size", "big"), "--shard-size: expected a size of files, as 1GB"),
    (
        ("prepare", "photos", "--out", "p", "--workers", "0"),
        "--workers: expected a whole number from 1 to 1024, got 0.",
    ),
    (("prepare", "photos", "--out", "photos"), "--out: 'photos' holds other files (cat)"),
    (("prepare", "photos", "--out", "p", "--set", "data.max_unreadable=0"), "photos cannot be read (4.0%"),
    (("prepar",), "Did you mean 'prepare'?"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_bad_input_is_exit_code_2_and_leaves_no_file(here, photos, tmp_path, arguments, message):
    (tmp_path / "text.safetensors").write_text("text")
    code, out, err = here("data", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "text.safetensors"]


def test_a_damaged_file_stops_a_run_before_it_has_a_folder(here, photos, tmp_path):
    assert here("data", "prepare", "photos", "--out", "p.safetensors")[0] == 0
    data = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(data[: len(data) // 2])
    code, _, err = here("run", "simsiam", "--data", "p.safetensors", "--out", "RUN")
    assert code == 2
    assert err.startswith(f"akssl: data: {tmp_path}/p.safetensors cannot be read: ")
    assert "akssl data prepare SRC" in err
    assert not (tmp_path / "RUN").exists()


def test_stopping_by_hand_leaves_no_file(here, photos, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("akssl_core.rundir.files.TensorStream.append", stop)
    code, out, err = here("data", "prepare", "photos", "--out", "p.safetensors")
    assert (code, out) == (1, "")
    assert re.fullmatch(FORECAST + "akssl: stopped; p.safetensors was not written.\n", err)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_progress_goes_to_stderr(here, photos, monkeypatch):
    monkeypatch.setattr("akssl_core.console.TELL_EVERY", -1.0)
    code, out, err = here("data", "prepare", "photos", "--out", "p.safetensors")
    assert code == 0
    assert re.fullmatch(FORECAST + "image 25/25\n", err)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = here("data", "prepare", "photos", "--out", "p.safetensors", "--overwrite")
    assert code == 0
    assert "25/25" in err
    assert "image 25/25\n" not in err
    assert len(out.splitlines()) == 2

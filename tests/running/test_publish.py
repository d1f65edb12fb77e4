"""`akssl publish`: a folder that other libraries load by its path, with a card that is true and tells of no machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from written_backbones import write_backbone, write_run

import akssl_core
from akssl_core.data import Preprocess
from akssl_core.errors import ConfigError, RunDirError
from akssl_core.exporting import ExportFailed, folder
from akssl_core.reporting.records import TRAINED
from akssl_core.rundir.files import digest

FILES = ["README.md", "config.json", "model.safetensors"]
WITH_TIMM = """
import sys, timm, torch
from PIL import Image
from safetensors.torch import save_file
torch.set_grad_enabled(False)
name, channels = sys.argv[1], int(sys.argv[2])
images = [Image.open(f"{n}.png") for n in range(3)]
model = timm.create_model("local-dir:" + name, pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(torch.stack([prepare(image) for image in images]))
again = timm.create_model("local-dir:" + name, pretrained=True, num_classes=7).eval()  # to be trained further
assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
assert again(torch.zeros(1, channels, *model.pretrained_cfg["input_size"][1:])).shape == (1, 7)
save_file({"features": features.contiguous()}, "features.safetensors")
assert not any(module.startswith("akssl") for module in sys.modules)
"""
WITH_TRANSFORMERS = """
import sys, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel
torch.set_grad_enabled(False)
images = [Image.open(f"{n}.png") for n in range(3)]
prepare, model = AutoImageProcessor.from_pretrained(sys.argv[1]), AutoModel.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "TimmWrapperModel"
save_file({"features": model(**prepare(images, return_tensors="pt")).pooler_output}, "features.safetensors")
assert not any(module.startswith("akssl") for module in sys.modules)
"""
CASES = {
    "photos": ("resnet18", {"size": 96}),
    "gray": ("resnet18", {"size": 80, "channels": 1}),
    "other architecture": ("vit_micro", {"size": 32, "registers": 2, "layer_scale": 0.1}),
    "padded": ("vit_tiny", {"size": 30, "depth": 2, "pool": "mean"}),
}


def alone(code, *words, path):
    """Run code in a process of its own that cannot see akssl, offline."""
    (path / "code.py").write_text(code)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "code.py", *map(str, words)]
    done = subprocess.run(command, cwd=path, env={**own, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return akssl_core.rundir.files.read_tensors(path / "features.safetensors")[0]["features"]


def draw(path, side, channels):
    """Three pictures whose shorter side needs no resize, as files, and as a list."""
    generator, pictures = torch.Generator().manual_seed(1), []
    for n in range(3):
        pixels = torch.randint(0, 256, (side, side + 8, channels), generator=generator, dtype=torch.uint8)
        pictures.append(Image.fromarray(pixels.squeeze(2).numpy()))
        pictures[-1].save(path / f"{n}.png")
    return pictures


@pytest.mark.parametrize("case", CASES)
def test_timm_alone_gives_the_features_of_the_run(tmp_path, case):
    name, settings = CASES[case]
    run = write_run(tmp_path / "run", name, **settings)
    done = akssl_core.publish(run, tmp_path / "out")
    assert sorted(file.name for file in done.path.iterdir()) == FILES
    assert done.difference <= done.tolerance == 1e-4
    own = akssl_core.load_backbone(run)
    channels = own.preprocess.channels
    pictures = draw(tmp_path, own.preprocess.resize, channels)
    expected = own(own.preprocess(pictures)).detach()
    found = alone(WITH_TIMM, "out", channels, path=tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std(0).max() > 1e-3  # the pictures are told apart
    again = akssl_core.load_backbone(done.path)
    assert torch.equal(again(again.preprocess(pictures)), own(own.preprocess(pictures)))
    config = json.loads((done.path / "config.json").read_text())
    assert (config["num_classes"], config["num_features"]) == (0, own.embed_dim)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_alone_gives_the_features_of_the_run(tmp_path):
    run = write_run(tmp_path / "run", "vit_micro", size=32)
    akssl_core.publish(run, tmp_path / "out")
    own = akssl_core.load_backbone(run)
    expected = own(own.preprocess(draw(tmp_path, 32, 3))).detach()
    torch.testing.assert_close(alone(WITH_TRANSFORMERS, "out", path=tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_images_that_are_no_pictures_come_as_tensors(tmp_path):
    done = akssl_core.publish(write_run(tmp_path / "run", "vit_micro", size=32, channels=5), tmp_path / "out")
    assert done.difference <= 1e-4
    assert "float32 tensor (N, 5, 32, 32), normalised" in done.snippet
    assert "pixel_values=images" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_begins_from_the_folder_with_its_licence(here, tmp_path):
    origin = [{"source": f"{tmp_path}/secret/weights.safetensors", "licence": "apache-2.0", "sha256": "ab"}]
    write_run(tmp_path / "run", "vit_micro", size=32, learned_from=origin, config={"data": {"name": "shapes"}})
    akssl_core.publish("run", "out")
    data = {"name": "shapes", "size": 32, "test_size": 16}
    small = {"image_size": 32, "batch_size": 16, "precision": "fp32", "train": {"steps": 1}, "report": False}
    found = akssl_core.run("simsiam", data=data, start="out", out="next", **small)
    (about,) = json.loads(akssl_core.rundir.files.read_texts(found.run_dir / "backbone.safetensors")["learned_from"])
    assert about["licence"] == "apache-2.0"
    features, _, _ = akssl_core.embed("out", data=data)
    assert torch.equal(features, akssl_core.embed("run", data=data).features)
    akssl_core.finetune("out", "c.safetensors", data=data, parts="head")
    assert json.loads(akssl_core.rundir.files.read_texts(tmp_path / "c.safetensors")["learned_from"]) == [
        {**origin[0], "source": "weights.safetensors"}
    ]


# -- the card -------------------------------------------------------------------------------------
def judged(run, protocol="linear", data="shapes"):
    """Leave what `akssl eval` leaves."""
    scores = [
        {"system": TRAINED, "accuracy": 61.4, "low": 60.2, "high": 62.6, "k": None},
        {"system": "raw pixels", "accuracy": 23.0, "low": 22.0, "high": 24.0, "k": None},
    ]
    found = {"scores": scores, "k": None, "answer": "Did it help? Yes.", "interval": "of 95 %", "notes": []}
    table = {
        "format": "akssl-evaluation-1",
        "backbone": digest((run / "backbone.safetensors").read_bytes()),
        "results": {protocol: {data: {"1.0": found}}},
    }
    (run / "evaluation.json").write_text(json.dumps(table))


def test_the_card_says_what_the_run_and_its_evaluation_say(tmp_path):
    origin = [{"source": "timm/some", "licence": "cc-by-nc-4.0", "sha256": "f" * 64}]
    config = {"seed": 3, "data": {"name": "folder", "path": str(tmp_path / "private" / "birds")}}
    config |= {"start": {"source": str(tmp_path / "private" / "first")}, "train": {"batch_size": 50}}
    about = {"images": 1234, "classes": 7}
    final = {"knn_top1": 55.5, "knn_raw_pixels": 20.5}
    manifest = {"trained_with_labels": False, "data": about, "final": final, "verdict": "healthy"}
    run = write_run(tmp_path / "run", "vit_micro", size=32, learned_from=origin, config=config, manifest=manifest)
    (run / "metrics.jsonl").write_text('{"step": 40, "epoch": 1.0, "loss": 1.0}\n')
    judged(run, data=f"{tmp_path}/private/birds, tested on {tmp_path}/private/more birds")
    akssl_core.publish(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for said in (
        "trained by toy", "without labels", "birds, 1234 images of 7 classes", "2000 in 40 steps",
        "| began from | first |", "create_model('local-dir:out'", "AutoModel.from_pretrained('out')",
        "| 100 % | 61.4 \\[60.2, 62.6\\] | 23.0 \\[22.0, 24.0\\] |", "birds, tested on more birds", "Did it help? Yes.",
        "Interval: of 95 %", "| knn\\_top1 | 55.5 |", "timm/some: licence cc-by-nc-4.0", "not for",
        "load_backbone('out')",
    ):  # fmt: skip
        assert said in card, said
    assert "private" not in card
    assert not any("private" in (tmp_path / "out" / name).read_bytes().decode(errors="ignore") for name in FILES)


def test_names_from_anywhere_are_text(tmp_path):
    manifest = {"method": "evil|<script>alert(1)</script>\n# heading"}
    run = write_run(tmp_path / "run", "vit_micro", size=32, manifest=manifest)
    judged(run, data="[link](http://x)\n| a |")
    akssl_core.publish(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card
    assert "[link]" not in card
    assert "\n# heading" not in card
    assert "No weights of others" in card


def test_scores_of_earlier_weights_are_not_shown(tmp_path):
    run = write_run(tmp_path / "run", "vit_micro", size=32)
    judged(run)
    write_backbone(run, "vit_micro", size=32, depth=2)
    akssl_core.publish(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "61.4" not in card
    assert "None: nothing was measured." in card


# -- what is refused ------------------------------------------------------------------------------
def test_what_timm_does_not_have(here, tmp_path):
    write_run(tmp_path / "tiny", "resnet_tiny")
    write_run(tmp_path / "small", "resnet18", size=32)  # with the stem for small images, which no name stands for
    write_run(tmp_path / "both", "vit_micro", pool="both")
    for name, backbone in {"tiny": "resnet_tiny", "small": "resnet18", "both": "vit_micro"}.items():
        code, out, err = here("publish", name, "--to", "out")
        assert (code, out) == (2, "")
        assert f"no network such as this {backbone} by name" in err
        assert f"akssl export {name} --to FORMAT" in err
    assert not (tmp_path / "out").exists()


def test_ones_own_network(tmp_path):
    class Own(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    write_run(tmp_path / "run", "", module=Own())
    with pytest.raises(ConfigError, match=r"this backbone is your own Own.*akssl_core.export"):
        akssl_core.publish(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize(
    ("run", "to", "message"),
    [
        ("nowhere", "out", r"nowhere"),
        ("begun", "out", r"The run has not finished yet. Go on with it: akssl resume begun"),
        ("run", "nowhere/out", "there is no folder 'nowhere'"),
        ("run", "a.txt", "'a.txt' is a file"),
        ("run", "mine", r"'mine' holds other files \('thesis.tex'\)"),
        ("run", "run", r"'run' holds other files"),
        ("run", "old", r"'old' exists already. Replace it with --overwrite"),
    ],
)
def test_bad_input_is_told_and_loses_nothing(here, tmp_path, run, to, message):
    write_run(tmp_path / "run", "vit_micro")
    for name, file in {"begun": "manifest.json", "mine": "thesis.tex", "old": "README.md"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "a.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, RunDirError), match=message):
        akssl_core.publish(run, to)
    code, out, err = here("publish", run, "--to", to)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting_replaces_what_was_published_alone(here, tmp_path):
    write_run(tmp_path / "run", "vit_micro", size=32)
    (tmp_path / "out").mkdir()  # an empty one is no obstacle
    code, out, err = here("publish", "run", "--to", "out")
    assert (code, err) == (0, "")
    assert "(allowed 0.0001)" in out
    (tmp_path / "out" / "README.md").write_text("mine")
    code, out, _ = here("publish", "run", "--to", "out", "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["files"] == FILES
    assert (tmp_path / "out" / "README.md").read_text() != "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert here("publish", "run", "--to", "out", "--overwrite")[0] == 2
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_that_nobody_published_is_never_replaced(here, tmp_path):
    write_run(tmp_path / "run", "vit_micro")
    (tmp_path / "of_folders" / "README.md").mkdir(parents=True)
    (tmp_path / "of_folders" / "README.md" / "mine.txt").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("of_folders", "model"):
        code, _, err = here("publish", "run", "--to", name, "--overwrite")
        assert (code, err.count("\n")) == (2, 1)
        assert f"'{name}' was not written by akssl publish" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_comes_while_it_is_proved_stays(here, tmp_path, monkeypatch, there):
    write_run(tmp_path / "run", "vit_micro")
    proves = akssl_core.running.publish.compare

    def busy(*words):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine.txt").write_text("mine")
        return proves(*words)

    if there:
        (tmp_path / "out").mkdir()
    monkeypatch.setattr(akssl_core.running.publish, "compare", busy)
    code, _, err = here("publish", "run", "--to", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds other files ('mine.txt')" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_place_that_cannot_be_written(here, tmp_path, monkeypatch):
    write_run(tmp_path / "run", "vit_micro")
    made = akssl_core.running.publish.Path.mkdir

    def refused(self, *words, **named):
        if self.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        made(self, *words, **named)

    monkeypatch.setattr(akssl_core.running.publish.Path, "mkdir", refused)  # root may write anywhere
    code, _, err = here("publish", "run", "--to", "out")
    assert (code, err) == (2, "akssl: --to: cannot write out: Permission denied. Choose another place.\n")


def test_timm_is_asked_for_with_its_command(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "timm" else find(name, *a))
    with pytest.raises(ConfigError, match=r"timm needs timm, .*pip install 'akssl-core\[export\]'"):
        akssl_core.publish(write_run(tmp_path / "run", "vit_micro"), tmp_path / "out")


@pytest.mark.parametrize("spoil", ["weights", "normalisation"])
def test_what_is_not_proved_does_not_appear(tmp_path, monkeypatch, spoil):
    run = write_run(tmp_path / "run", "vit_micro", size=32)
    (tmp_path / "out").mkdir()
    if spoil == "weights":
        made = folder.Folder.make

        def make(self, backbone):
            state = {name: tensor * 1.01 for name, tensor in backbone.export_state().items()}
            monkeypatch.setattr(type(backbone), "export_state", lambda self: state)
            return made(self, backbone)

        monkeypatch.setattr(folder.Folder, "make", make)
    else:
        known = folder.config_of

        def config_of(backbone):
            found = known(backbone)
            return {**found, "pretrained_cfg": {**found["pretrained_cfg"], "mean": [0.0] * 3}}

        monkeypatch.setattr(akssl_core.running.publish, "config_of", config_of)
    with pytest.raises(ExportFailed, match="features differ by up to"):
        akssl_core.publish(run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (96, 110), (96, 111), (33, 47), (8, 8), (500, 571), (61, 67)])
def test_timm_resizes_to_the_same_side(size, resize):
    import math

    share = folder._share(Preprocess(size, 3, (0.0,) * 3, (1.0,) * 3, resize))
    assert math.floor(size / share) == resize

"""The doctor finds each planted fault, and nothing where there is none."""

from __future__ import annotations

import json

import pytest
import torch
from on_trial import on_trial
from safetensors.torch import save_file
from synthetic_run import CONFIG, FINAL, MANIFEST, ROWS, pictures, row, write_run
from torch import nn

from akssl_core import TokenBackbone
from akssl_core.errors import PluginError, RunDirError
from akssl_core.examining import RULES, Machine, examine_plan, examine_run
from akssl_core.plugins.first_party import METHODS
from akssl_core.plugins.installed import version
from akssl_core.plugins.manager import Plugins, installed
from akssl_core.running.layers import collect

GIB = 2**30
ROOMY = Machine(cores=8, gpus=0, memory=64 * GIB, disk=100 * GIB)
SHAPES = {"name": "shapes", "size": 2000, "test_size": 200}


@pytest.fixture(scope="module")
def plugins():
    return Plugins()


def noise(count=64, channels=3, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator).to(torch.uint8)


def labels(*counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3).requires_grad_(False)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


STILL = {"scale": [1, 1], "ratio": [1, 1], "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
DECAY = {"start": 0.3, "warmup": 15}
RAMP = {"start": 0.04, "end": 0.07, "over": 30}
PLANTED = {
    "refused": ("mocov2", {"options": {"queue_size": 100}}),
    "advice: a hot teacher": ("dino", {"options": {"teacher_temperature": 0.5}}),
    "advice: a queue larger than the data": ("mocov2", {"options": {"queue_size": 12800}}),
    "advice: more prototypes than samples": ("swav", {"options": {"prototypes": 3000}}),
    "advice: a target that stays": ("byol", {"options": {"momentum": 1.0}}),
    "advice: more features than images tell": ("barlowtwins", {"options": {"out_dim": 60000, "hidden_dim": 8}}),
    "batch-does-not-divide": ("simsiam", {"devices": 3}),
    "stem-for-large-images": ("simsiam", {"backbone": {"name": "resnet18", "stem": "imagenet"}}),
    "batch-norm-with-few-images": ("simsiam", {"batch_size": 8}),
    "rate-too-high": ("simsiam", {"optimizer": {"lr": 30}}),
    "decay-too-strong": ("simsiam", {"optimizer": {"weight_decay": 0.5}}),
    "no-warmup": ("simsiam", {"batch_size": 1024}),
    "schedule-longer-than-the-run": ("dino", {"options": {"teacher_temperature": RAMP}, "epochs": 5}),
    "slow-copy-too-slow": ("byol", {"options": {"momentum": 0.9999}}),
    "few-steps": ("simsiam", {"steps": 50}),
    "frozen-backbone": ("simsiam", {"backbone": Frozen()}),
    "few-rows": ("simsiam", {"batch_size": 16, "epochs": 2, "train": {"log_every": 500}}),
    "rare-checkpoints": ("simsiam", {"batch_size": 16, "epochs": 25, "train": {"checkpoint_every": 10**6}}),
    "few-images": ("simsiam", {"data": noise()}),
    "batch-of-most-images": ("simsiam", {"data": noise(), "batch_size": 32}),
    "duplicate-images": ("simsiam", {"data": noise(32).repeat(4, 1, 1, 1)}),
    "blank-images": ("simsiam", {"data": torch.cat([noise(), torch.full((8, 3, 16, 16), 7, dtype=torch.uint8)])}),
    "gray-images-in-color": ("simsiam", {"data": noise(channels=1).repeat(1, 3, 1, 1)}),
    "color-left-out": ("simsiam", {"data": noise(channels=1)}),
    "size-far-from-the-images": ("simsiam", {"data": noise(), "image_size": 64}),
    "view-smaller-than-a-patch": ("dino", {"backbone": {"name": "vit_tiny", "patch_size": 16}}),
    "tiny-crops": ("simsiam", {"augmentation": {"scale": [0.01, 1.0]}}),
    "views-all-alike": ("simsiam", {"augmentation": STILL}),
    "one-class": ("simsiam", {"data": (noise(), labels(64))}),
    "unbalanced-classes": ("simsiam", {"data": (noise(), labels(50, 14))}),
    "few-labels-of-a-class": ("simsiam", {"data": (noise(), labels(30, 30, 4))}),
    "workers-without-use": ("simsiam", {"workers": 2}),
    "more-workers-than-cores": ("simsiam", {"workers": 9}),
    "more-processes-than-devices": ("simsiam", {"devices": 16}),
    "fp16-on-a-cpu": ("simsiam", {"precision": "fp16"}),
    "large-images-on-a-cpu": ("simsiam", {"data": noise(8), "image_size": 160, "batch_size": 4}),
    "recipe-for-small-images": ("simsiam", {"data": noise(64, side=224), "image_size": 32}),
}


def found(plugins, method, machine=ROOMY, **settings):
    given = {"data": SHAPES, "device": "cpu", "precision": "fp32", **settings}
    return examine_plan(collect(method, None, given, plugins), plugins, found=machine)


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_fault_is_found(planted, plugins):
    name, _, about = planted.partition(": ")
    method, settings = PLANTED[planted]
    findings = {one.rule: one for one in found(plugins, method, **settings)}
    assert name in findings, list(findings)
    assert findings[name].evidence
    assert findings[name].cause
    assert findings[name].cure
    if about:
        assert f"method.{next(iter(settings['options']))}" in findings[name].evidence


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        ("simclr", {"batch_size": 16}, "the learning rate 0.006 of the recipe's batch of 128, which nothing scales"),
        ("simsiam", {"optimizer": {"lr": DECAY}, "epochs": 20}, "optimizer.lr.warmup: 15 epochs in a run of 20"),
        ("simsiam", {"optimizer": {"name": "sgd"}, "backbone": "vit_tiny"}, "sgd for vit_tiny, a transformer"),
    ],
)
def test_what_is_warned_of_before_a_run_is_advice(method, settings, told, plugins):
    findings = {one.rule: one for one in found(plugins, method, **settings)}
    assert told in findings["advice"].evidence


@pytest.mark.parametrize("devices", [1, 4])
def test_batch_norms_in_groups_see_one_group_whatever_the_number_of_processes(devices, plugins):
    options = {"bn_splits": 8, "queue_size": 64}
    findings = {one.rule: one for one in found(plugins, "mocov2", batch_size=64, options=options, devices=devices)}
    assert findings["batch-norm-with-few-images"].evidence == "batch norms see 8 images at a time."


@pytest.mark.parametrize("rule", ["memory-too-small", "disk-too-small"])
def test_a_machine_that_is_too_small_is_found(rule, plugins):
    small = Machine(cores=8, gpus=0, memory=10 * 2**20, disk=2**20)
    assert {rule} <= {one.rule for one in found(plugins, "simsiam", machine=small)}


@pytest.mark.parametrize(
    ("device", "gpus", "cuda", "cause", "cure"),
    [
        ("cpu", 1, "13.0", "train.device is cpu (user).", "leave it out, for torch sees a GPU"),
        ("cpu", 0, "13.0", "train.device is cpu (user).", "take a machine with a GPU"),
        ("cpu", 0, None, "train.device is cpu (user).", "take a machine with a GPU"),
        ("auto", 0, None, "this torch was built without CUDA.", "install a torch with CUDA"),
        ("auto", 0, "13.0", "torch was built with CUDA 13.0 and finds no GPU", "nvidia-smi"),
    ],
)
def test_large_images_on_a_cpu_have_the_cause_of_their_case(device, gpus, cuda, cause, cure, plugins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = Machine(cores=8, gpus=gpus, memory=64 * GIB, disk=100 * GIB, cuda=cuda)
    settings = {**PLANTED["large-images-on-a-cpu"][1], "device": device}
    findings = {one.rule: one for one in found(plugins, "simsiam", machine=machine, **settings)}
    assert findings["large-images-on-a-cpu"].cause.startswith(cause)
    assert cure in findings["large-images-on-a-cpu"].cure


@pytest.mark.parametrize(("cuda", "hip", "built"), [("13.0", None, "13.0"), (None, "6.4", "6.4"), (None, None, None)])
def test_the_machine_knows_what_torch_was_built_with(cuda, hip, built, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert Machine.here(torch.device("cpu"), tmp_path).cuda == built


def test_files_that_are_no_images_are_found(plugins, tmp_path):
    from PIL import Image

    for i, image in enumerate(noise(20)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    rules = {one.rule: one for one in found(plugins, "simsiam", data=str(tmp_path), batch_size=4)}
    assert "bad.png" in rules["unreadable-images"].evidence


def fitting(*backbones):
    """Every method with each of the backbones that it takes; None: its own."""
    kinds = {backbone: installed().get("backbone", backbone or "vit_tiny") for backbone in backbones}
    takes = {method: installed().get("method", method).accepts for method in sorted(METHODS)}
    return [
        (method, backbone) for method in takes for backbone in backbones if issubclass(kinds[backbone], takes[method])
    ]


def suited(method, backbone):
    """A backbone with what the default recipe of a method over patches sets of its own."""
    kind = installed().get("method", method)
    if backbone is None or kind.accepts is not TokenBackbone:
        return backbone
    return {**kind.recipes["default"]["backbone"], "name": backbone}


@pytest.mark.parametrize(("method", "backbone"), fitting(None, "resnet18", "vit_tiny"))
def test_nothing_is_found_in_the_default_recipes(method, backbone, plugins):
    assert found(plugins, on_trial(method), backbone=suited(method, backbone)) == []


@pytest.fixture(scope="module")
def large():
    """Unlike images of 224 px."""
    return noise(1200, side=14).repeat_interleave(16, 2).repeat_interleave(16, 3)


@pytest.mark.parametrize(("method", "backbone"), fitting("resnet18", "vit_tiny"))
def test_at_224_px_nothing_is_found_but_the_missing_gpu(method, backbone, plugins, large):
    settings = {"data": large, "image_size": 224, "recipe": "default", "epochs": 40}
    settings["backbone"] = suited(method, backbone)
    assert [one.rule for one in found(plugins, on_trial(method), **settings)] == ["large-images-on-a-cpu"]


def test_every_rule_before_a_run_has_a_planted_fault():
    planted = {name.partition(": ")[0] for name in PLANTED} | {
        "memory-too-small",
        "disk-too-small",
        "unreadable-images",
    }
    assert {rule.name for rule in RULES if rule.kind == "plan"} <= planted


def test_an_unknown_method_is_wrong_input(plugins):
    with pytest.raises(PluginError, match="simsiam"):
        found(plugins, "simsiamm")


# -- run folders ----------------------------------------------------------------------------------
def whole(path, **changes):
    """A folder in which nothing is wrong."""
    versions = {name: version(name) for name in ("torch", "torchvision", "akssl-core")}
    folder = write_run(path / "run", **{"tensors": pictures(), "versions": versions, **changes})
    save_file({"w": torch.zeros(1)}, folder / "backbone.safetensors")
    from akssl_core.rundir.checkpoints import CheckpointState
    from akssl_core.rundir.folder import RunDir

    state = CheckpointState(30, settings=CONFIG)
    (folder / "checkpoints").mkdir()
    RunDir.open(folder).save_checkpoint({"w": torch.zeros(1)}, {"w": torch.zeros(1)}, state, keep=2)
    return folder


def rows(count=16, **columns):
    return [row(2 * i + 2, **{k: f(i) if callable(f) else f for k, f in columns.items()}) for i in range(count)]


def remove(name):
    return lambda folder: (folder / name).unlink()


def damage(folder):
    file = next((folder / "checkpoints").glob("*/model.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def cut(folder):
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:5], "{broken", *lines[5:]]))


def forget(folder):
    import shutil

    shutil.rmtree(folder / "checkpoints" / "00000030")


DIAGNOSIS = {"verdict": "not learning", "evidence": "it stands still.", "cause": "c.", "cure": "d."}
FOLDERS = {
    "killed": {"status": "running"},
    "failed": {"status": "failed", "error": "out of memory"},
    "stopped": {"status": "stopped", "error": "by SIGTERM"},
    "collapsed-or-stuck": {"diagnosis": DIAGNOSIS},
    "collapsed-or-stuck: by its rows": {"rows": rows(backbone_step=0.0), "status": "finished"},
    "not-a-number": {"rows": [*ROWS[:-1], {**ROWS[-1], "loss": None}]},
    "damaged-checkpoint": damage,
    "damaged-backbone": lambda folder: (folder / "backbone.safetensors").write_bytes(b"cut"),
    "lost-settings": lambda folder: (folder / "config.yaml").write_text("seed: 7\n"),
    "no-checkpoint": forget,
    "missing-files": remove("backbone.safetensors"),
    "missing-files: origins": remove("provenance.json"),
    "damaged-rows": cut,
    "damaged-rows: none": {"rows": []},
    "damaged-rows: an empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "unreadable-run": remove("config.yaml"),
    "below-a-baseline": {"final": {**FINAL, "knn_top1": 31.0}},
    "plateau": {"rows": rows(knn_top1=lambda i: 40.0 if i < 8 else 39.0)},
    "plateau: of the loss": {"rows": rows(loss=lambda i: 5.0 - i if i < 4 else 1.0)},
    "loss-rises": {"rows": rows(loss=lambda i: abs(i - 5) + 1.0)},
    "rank-falls": {"rows": rows(rankme=lambda i: 100.0 / (i + 1))},
    "slow-loading": {"rows": rows(time_load=0.6)},
    "slow-probes": {"rows": rows(time_evaluate=0.7)},
    "unreadable-files": lambda folder: (folder / "unreadable.txt").write_text("a.png\tcut short\n"),
    "other-versions": {"versions": {**MANIFEST["versions"], "torch": "1.0"}},
}


@pytest.mark.parametrize("planted", FOLDERS)
def test_each_fault_of_a_folder_is_found(planted, tmp_path):
    fault = FOLDERS[planted]
    folder = whole(tmp_path, **(fault if isinstance(fault, dict) else {}))
    if callable(fault):
        fault(folder)
    findings = {one.rule: one for one in examine_run(folder)}
    assert planted.partition(": ")[0] in findings, findings
    assert all(one.evidence and one.cause and one.cure for one in findings.values())
    assert not any("RUN_DIR" in one.cure for one in findings.values()), "a cure can be copied as it stands"


def test_nothing_is_found_in_a_whole_folder(tmp_path):
    assert examine_run(whole(tmp_path)) == []


def test_a_run_that_is_going_on_is_not_called_killed(tmp_path):
    from akssl_core.rundir.folder import RunDir

    folder = whole(tmp_path, status="running")
    held = RunDir.open(folder)
    held.lock()
    assert "killed" not in {one.rule for one in examine_run(folder)}
    held.unlock()
    assert "killed" in {one.rule for one in examine_run(folder)}


def test_every_rule_of_a_folder_has_a_planted_fault():
    assert {rule.name for rule in RULES if rule.kind == "run"} <= {name.partition(": ")[0] for name in FOLDERS}


def test_a_folder_without_a_run_is_wrong_input(tmp_path):
    with pytest.raises(RunDirError, match="holds no run"):
        examine_run(tmp_path)


# -- the command ----------------------------------------------------------------------------------
FEW = ("--set", "data.size=1500", "--set", "data.test_size=100", "--precision", "fp32", "--device", "cpu")


def test_the_command_is_silent_where_nothing_is_wrong(here):
    code, out, _ = here("doctor", "simsiam", *FEW)
    assert (code, out) == (0, "simsiam: nothing was found.\n")


def test_the_command_tells_evidence_cause_and_cure_and_exits_with_1(here):
    code, out, _ = here("doctor", "dino", "simsiam", *FEW, "--batch-size", "8")
    assert code == 1
    assert "- batch-norm-with-few-images: batch norms see 8 images at a time.\n  cause: " in out
    assert "\nsimsiam: " in out


def test_the_command_prints_json(here, tmp_path):
    folder = whole(tmp_path, status="failed", error="out of memory")
    code, out, _ = here("doctor", folder, "--json")
    records = json.loads(out)
    assert code == 1
    assert [record["rule"] for record in records] == ["failed"]
    assert set(records[0]) == {"target", "rule", "evidence", "cause", "cure"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simsiamm"], "Did you mean 'simsiam'"),
        (["nowhere"], "Nor is there a folder 'nowhere'. A run is named as runs/NAME."),
        (["first"], "Did you mean 'runs/first'?"),
        (["simsiam", "--backbone", "resnet81"], "no backbone named 'resnet81'. Did you mean 'resnet18'?"),
        (["no/such/folder"], "holds no run"),
        (["simsiam", "--set", "nothing"], "--set"),
        (["simsiam", "--set", "train.epoch=3"], "epoch"),
    ],
)
def test_wrong_input_exits_with_2(arguments, said, here, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    code, _, err = here("doctor", *arguments)
    assert code == 2
    assert said in err


def test_nothing_trains_and_nothing_is_written(here, tmp_path):
    here("doctor", "simsiam", *FEW)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_a_run_that_was_cannot_heed_are_refused(here, tmp_path):
    whole(tmp_path)
    code, out, err = here("doctor", f"{tmp_path}/run", "--epochs", 3)
    assert (code, out) == (2, "")
    assert "run is a run that was, and train.epochs would change nothing there. Leave it out, or name a METHOD." in err

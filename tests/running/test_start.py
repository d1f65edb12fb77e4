"""Runs that begin from weights: what they take over, what they train, going on, and files that are no weights."""

from __future__ import annotations

import argparse
import json
import pickle

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from whole_runs import Stop, losses, same

import akssl_core
from akssl_core import cli
from akssl_core.backbone.weights import load_weights
from akssl_core.errors import AksslError, ConfigError
from akssl_core.exporting.weights import UNKNOWN
from akssl_core.rundir.folder import read_tensors
from akssl_core.running.explain import explain
from akssl_core.running.launch import resume, run
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan

SHORT = {"epochs": 2, "report": False, "train": {"checkpoint_every": 4}}


@pytest.fixture
def first(start, tmp_path):
    """A run folder to begin from."""
    return start("first", **SHORT).run_dir


def weights(run_dir):
    return read_tensors(run_dir / "backbone.safetensors")[0]


def plan_of(toys, photos, **settings):
    return make_plan(collect("toy", None, {"data": photos, **settings}, toys), toys)


@pytest.mark.parametrize("form", ["folder", "file", "table"])
def test_backbone_and_teacher_begin_from_the_weights_of_a_run(first, toys, photos, form):
    source = {"folder": first, "file": first / "backbone.safetensors", "table": {"source": str(first)}}[form]
    plan = plan_of(toys, photos, start=source, seed=5)
    for network in (plan.backbone, plan.method.teacher.backbone):
        assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in weights(first).items())
    assert plan.random is not None
    assert not torch.equal(plan.random.conv.weight, plan.backbone.conv.weight)
    assert "start: 7 tensors loaded as they are, 0 unaccounted for" in plan.notes
    assert plan.spec.start.source == str(source if form != "table" else first)
    assert plan.image.mean == akssl_core.load_backbone(first, plugins=toys).preprocess.mean
    assert not plan.warnings


def test_network_and_normalisation_are_those_of_the_weights_unless_the_user_says_otherwise(first, toys, photos):
    found = explain("toy", data=photos, start=first, plugins=toys)
    assert found.origins["backbone.name"] == "rule: that of the weights in first"
    assert found.origins["start.mean"] == "rule: that of the weights in first"
    plan = plan_of(toys, photos, start={"source": str(first), "mean": [0.1] * 3, "std": [0.2] * 3})
    assert plan.image.mean == (0.1, 0.1, 0.1)
    with pytest.raises(ConfigError, match="the weights are not those of this backbone"):
        plan_of(toys, photos, start=first, backbone="resnet_tiny")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"mean": [0.5], "std": [0.2] * 3}, r"start.mean: the images have 3 channels, and 1 numbers were given"),
        ({"mean": [0.5] * 3, "std": [0.2] * 4}, r"start.std: the images have 3 channels, and 4 numbers"),
        ({"mean": []}, r"start.mean: the images have 3 channels, and 0 numbers"),
    ],
)
def test_a_normalisation_of_the_users_has_a_number_for_each_channel(first, toys, photos, told, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(toys, photos, start={"source": str(first), **told})


@pytest.fixture
def plain(toys, tmp_path):
    """A file of weights of which nothing but the shapes is known."""
    network = toys.get("backbone", "resnet_tiny")
    spec = akssl_core.ImageSpec(32, 3, (0.5,) * 3, (0.5,) * 3)
    save_file(network(network.Config(), spec).state_dict(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def test_the_weights_own_normalisation_is_averaged_for_other_channels(plain, toys, photos):
    known = {"image_mean": [0.25, 0.5, 0.75], "image_std": [0.125, 0.25, 0.375]}
    (plain.parent / "config.json").write_text(json.dumps(known))
    gray = photos[0][:, :1], photos[1]
    plan = plan_of(toys, gray, start=plain)
    assert (plan.image.mean, plan.image.std) == ((0.5,), (0.25,))
    again = plan_of(toys, gray, start=plan.spec.start.model_dump())
    assert again.image.mean == (0.5,), "config.yaml keeps the three numbers of the weights"


def test_half_a_normalisation_is_refused(plain, toys, photos):
    with pytest.raises(ConfigError, match="both start.mean and start.std, or neither"):
        plan_of(toys, photos, start={"source": str(plain), "std": [0.2] * 3})


def test_the_untrained_baseline_is_a_random_network(start, first, monkeypatch):
    seen = []
    score = akssl_core.training.watch.Probe.encoder_scores
    monkeypatch.setattr(
        akssl_core.training.watch.Probe,
        "encoder_scores",
        lambda self, encoder, device: seen.append(encoder.conv.weight.clone()) or score(self, encoder, device),
    )
    start("second", start=first, **SHORT)
    assert not torch.equal(seen[0], weights(first)["conv.weight"])


def stop():
    raise Stop


def test_a_started_run_goes_on_without_its_source(start, first, toys, photos, at_step, tmp_path):
    whole = start("whole", start=first, **SHORT)
    at_step(6, stop)
    with pytest.raises(Stop):
        start("stopped", start=first, **SHORT)
    (first / "backbone.safetensors").unlink()
    resumed = resume(tmp_path / "stopped", data=photos, plugins=toys, report=False)
    assert same(whole.run_dir, resumed.run_dir)
    assert losses(whole) == losses(resumed)


def test_before_its_first_checkpoint_a_run_begins_from_its_source_again(
    start, first, toys, photos, at_step, tmp_path, monkeypatch
):
    whole = start("whole", start=first, **SHORT)
    at_step(2, stop)
    monkeypatch.chdir(first.parent)
    with pytest.raises(Stop):
        start("stopped", start=first.name, **SHORT)
    monkeypatch.chdir("/")
    resumed = resume(tmp_path / "stopped", data=photos, plugins=toys, report=False)
    assert same(whole.run_dir, resumed.run_dir)


def test_a_backbone_says_from_whose_weights_it_was_begun(start, first, plain, toys, photos, at_step, tmp_path):
    def told(run_dir):
        return json.loads(read_tensors(run_dir / "backbone.safetensors")[1]["learned_from"])

    given = {"source": str(plain), "mean": [0.4] * 3, "std": [0.2] * 3}
    at_step(6, stop)
    with pytest.raises(Stop):
        start("begun", start=given, **SHORT)
    plain.unlink()
    begun = resume(tmp_path / "begun", data=photos, plugins=toys, report=False).run_dir
    (one,) = told(begun)
    assert (one["source"], one["licence"], len(one["sha256"])) == (str(plain), UNKNOWN, 64)
    assert told(start("own", start=first, **SHORT).run_dir) == []
    (next_one,) = told(start("next", start=begun, **SHORT).run_dir)
    assert (next_one["source"], next_one["licence"]) == (str(begun), UNKNOWN)


# -- files of other origin --------------------------------------------------------------------------
def test_a_plain_file_names_its_network_by_its_shapes_and_is_warned_of(plain, toys, photos, tmp_path):
    plan = plan_of(toys, photos, start=plain)
    assert plan.backbone.name == "resnet_tiny"
    assert [text for text in plan.warnings if "Set start.mean and start.std" in text]
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}')
    plan = plan_of(toys, photos, start=plain)
    assert plan.image.mean == (0.4, 0.5, 0.6)
    assert not plan.warnings


def test_a_file_of_an_unknown_network_is_refused_with_those_that_were_tried(toys, photos, tmp_path):
    save_file({"a.b": torch.ones(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match=r"does not say of which network.*'a.b'.*--backbone: .*resnet18"):
        plan_of(toys, photos, start=tmp_path / "odd.safetensors")


def bad(tmp_path, first):
    whole = (first / "backbone.safetensors").read_bytes()
    for name, data in {"cut": whole[:-9], "empty": b"", "text": b"hello", "huge": b"\xff" * 64}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.pth").write_bytes(pickle.dumps({}))
    return {name: tmp_path / f"{name}.safetensors" for name in ("cut", "empty", "text", "huge", "gone")} | {
        "folder": tmp_path / "folder", "pickle": tmp_path / "x.pth", "name": "resnet17", "unpublished": "resnet18",
        "empty name": "",
    }  # fmt: skip


def test_what_is_no_weights_is_one_line_and_leaves_no_folder(first, toys, photos, tmp_path):
    words = {"pickle": "Convert it once: akssl convert", "name": "Did you mean 'resnet18'", "gone": "there is no '",
             "unpublished": "no published weights of resnet18"}  # fmt: skip
    for name, source in bad(tmp_path, first).items():
        with pytest.raises(AksslError, match=words.get(name, "start|safetensors")) as found:
            run("toy", data=photos, plugins=toys, start=source, out=tmp_path / "none")
        assert "\n" not in str(found.value), name
    assert not (tmp_path / "none").exists()


def test_the_command_ends_with_2_and_one_line(here, tmp_path):
    (tmp_path / "text.safetensors").write_bytes(b"hello")
    for source in ("text.safetensors", "gone.safetensors", "x.pth"):
        code, _, words = here("explain", "simsiam", "--start", source)
        assert code == 2
        assert words.startswith("akssl: ")
        assert words.count("\n") == 1


# -- pickles ------------------------------------------------------------------------------------------
class Harm:
    """A pickle that leaves a trace when it is read by something that runs what it says."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_file_of_torch_is_converted_once(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"state_dict": {"a.weight": shared, "b.weight": shared.T}, "epoch": 3}
    torch.save(state, tmp_path / "x.pth")
    found = CliRunner().invoke(
        cli.akssl, ["convert", str(tmp_path / "x.pth"), "--out", str(tmp_path / "x.safetensors")]
    )
    assert found.exit_code == 0, found.output
    assert "2 tensors; left out: epoch" in found.output
    tensors, _ = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["state_dict.b.weight"], shared.T)
    with pytest.raises(ConfigError, match="exists already"):
        akssl_core.convert(tmp_path / "x.pth", tmp_path / "x.safetensors")


def test_of_a_training_checkpoint_the_network_is_what_a_run_begins_with(tmp_path):
    network, other = (
        akssl_core.build("backbone", "resnet_tiny", akssl_core.ImageSpec(32, 3, (0.5,) * 3, (0.5,) * 3))
        for _ in range(2)
    )
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    pair = {f"module.encoder_{one}.{name}": value for one in "qk" for name, value in network.state_dict().items()}
    torch.save({"state_dict": pair, "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "x.pth")
    assert akssl_core.convert(tmp_path / "x.pth", tmp_path / "x.safetensors").left_out == ("optimizer", "epoch")
    tensors, _ = read_tensors(tmp_path / "x.safetensors")
    assert tensors.keys() == {f"state_dict.{name}" for name in pair}
    load_weights(tensors, other)


def test_of_several_networks_and_of_a_wrong_prefix_is_told_before_a_backbone_is_asked_for(here, tmp_path):
    state = akssl_core.build(
        "backbone", "resnet_tiny", akssl_core.ImageSpec(32, 3, (0.5,) * 3, (0.5,) * 3)
    ).state_dict()
    save_file(
        {f"{one}.{name}": value.clone() for one in ("a", "b") for name, value in state.items()},
        tmp_path / "ab.safetensors",
    )
    for more, words in (
        ((), "start: the file holds 2 networks that fit, whose keys begin with 'a.', 'b.'"),
        (("--set", "start.prefix=c"), "start: no tensor of the file begins with the prefix 'c'"),
    ):
        code, _, err = here("explain", "simsiam", "--start", "ab.safetensors", *more)
        assert (code, words in err) == (2, True), err


@pytest.mark.parametrize(
    "state",
    [
        torch.ones(3),
        {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        {"__metadata__": torch.ones(1)},
        {"a": torch.eye(3).to_sparse()},
        {"a": torch.ones(2, dtype=torch.complex128)},
        {"a": torch.ones(2, device="meta")},
        {"a": {}},
    ],
    ids=["alone", "twice", "header", "sparse", "complex", "meta", "none"],
)
def test_what_cannot_be_converted_is_refused_in_a_line(tmp_path, state):
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="convert: ") as found:
        akssl_core.convert(tmp_path / "x.pth", tmp_path / "out.safetensors")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_no_state_dict_is_told_once_with_what_to_do(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace()}, tmp_path / "named.pth")
    save_file({"a": torch.ones(1)}, tmp_path / "done.safetensors")
    words = {"whole.pth": r"model\.state_dict\(\)", "named.pth": r"values \(argparse\.Namespace\)",
             "done.safetensors": "--start takes", ".": "is no file",
             "gone.pth": "does not exist"}  # fmt: skip
    for name, expected in words.items():
        with pytest.raises(ConfigError, match=expected) as found:
            akssl_core.convert(tmp_path / name, tmp_path / "out.safetensors")
        assert str(found.value).count("convert: ") == 1, name


def test_a_hostile_pickle_runs_nothing(tmp_path):
    torch.save({"weight": torch.ones(1), "harm": Harm(tmp_path / "trace")}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Harm(tmp_path / "trace")))
    (tmp_path / "z.pth").write_bytes(json.dumps({}).encode())
    for name in ("x.pth", "y.pth", "z.pth", "gone.pth"):
        with pytest.raises(ConfigError, match="convert: ") as found:
            akssl_core.convert(tmp_path / name, tmp_path / "out.safetensors")
        assert "\n" not in str(found.value)
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "out.safetensors").exists()

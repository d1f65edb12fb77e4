"""Adaptation: mixtures of start and trained weights, the choice between them, and what a run folder then holds."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from whole_runs import AKSSL, Stop

import akssl_core
from akssl_core.errors import AksslError, ConfigError
from akssl_core.rundir.folder import RunDir, read_tensors
from akssl_core.running import adaptation, process
from akssl_core.running.adapt import adapt
from akssl_core.running.adaptation import Mixtures, chosen, mixed
from akssl_core.running.launch import resume
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from akssl_core.training.watch import Probe, Scored

NAN = float("nan")
SHORT = {"epochs": 2, "report": False, "precision": "fp32", "train": {"checkpoint_every": 4}}


@pytest.fixture
def first(start):
    """A run folder to begin from."""
    return start("first", **SHORT).run_dir


@pytest.fixture
def adapted(toys, first, photos, tmp_path):
    """Adapts the first run's weights to other images, in a folder of a given name."""
    images, labels = photos
    other = (images.roll(3, dims=3), labels)

    def begin(name="adapted", **settings):
        return adapt(first, **{"data": other, "out": tmp_path / name, "plugins": toys, **SHORT, **settings})

    begin.data = other
    return begin


def weights(run_dir, name="backbone"):
    return read_tensors(run_dir / f"{name}.safetensors")[0]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plan_of(toys, first, data, **settings):
    given = {"data": data, "start": {"source": str(first), "keep": "best"}, **settings}
    return make_plan(collect("toy", None, given, toys), toys)


# -- mixtures -------------------------------------------------------------------------------------
@pytest.fixture
def mixtures(toys, first, photos):
    plan = plan_of(toys, first, photos)
    start = {name: tensor.clone() for name, tensor in plan.backbone.state_dict().items()}
    trained = {name: tensor + 1 for name, tensor in start.items()}
    probe = Probe(plan.held, plan.images, plan.preprocess, plan.spec.evaluate)
    return Mixtures(start, trained, plan.backbone, plan, probe, torch.device("cpu"))


def test_a_mixture_is_weighted_by_its_share_and_counters_stay_whole(mixtures):
    start, trained = mixtures.start, mixtures.trained
    half = mixed(start, trained, 0.25)
    assert torch.allclose(half["conv.weight"], start["conv.weight"] + 0.25)
    assert torch.equal(half["bn.running_mean"], trained["bn.running_mean"])
    assert half["bn.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(mixed(start, trained, 1)["conv.weight"], trained["conv.weight"])
    same = mixed(start, start, 0.3)
    assert all(torch.equal(same[name], start[name]) for name in start)


def test_the_start_comes_back_to_the_bit_with_its_own_statistics(mixtures):
    mixtures.take(0.5)
    assert not equal(mixtures.encoder.state_dict(), mixtures.start)
    mixtures.take(0)
    assert equal(mixtures.encoder.state_dict(), mixtures.start)


def test_statistics_of_a_mixture_are_those_of_the_training_images(mixtures):
    mixtures.take(0.5)
    plan, encoder = mixtures.plan, mixtures.encoder
    pixels = plan.preprocess.pixels(plan.preprocess.fetch(plan.images, range(len(plan.images))))
    outputs = encoder.conv(pixels)
    assert torch.allclose(encoder.bn.running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(encoder.bn.running_var, outputs.var((0, 2, 3)), rtol=1e-4)
    assert encoder.bn.momentum == 0.1


def test_images_to_choose_by_are_neither_trained_on_nor_those_of_the_test(toys, first, photos):
    plan, before = plan_of(toys, first, photos), make_plan(collect("toy", None, {"data": photos}, toys), toys)
    names = [{images.id_of(i) for i in range(len(images))} for images in (plan.images, plan.held, before.images)]
    assert names[0] | names[1] == names[2]
    assert not names[0] & names[1]
    bank, queries = plan.images, plan.held
    test = {plan.source.probe()[1].id_of(i) for i in range(len(plan.source.probe()[1]))}
    assert not test & ({bank.id_of(i) for i in range(len(bank))} | {queries.id_of(i) for i in range(len(queries))})
    assert f"{len(plan.held)} images are held out of training, to choose weights by (start.keep)" in plan.notes
    assert before.held is None


# -- the choice -----------------------------------------------------------------------------------
def judged(right, of=400):
    return Scored({"knn_top1": right / of}, right=torch.arange(of) < right)


@pytest.mark.parametrize(
    ("right", "kept"),
    [
        ((200, 201, 203, 202, 190), 0.0),
        ((200, 230, 250, 240, 180), 0.5),
        ((200, 230, 230, 230, 230), 0.25),
        ((200, 150, 100, 50, 40), 0.0),
        ((200, 199, 198, 240, 260), 1.0),
    ],
    ids=["not surely better", "the best", "of equals the nearest to the start", "worse", "trained"],
)
def test_a_mixture_is_kept_only_if_it_is_surely_better(right, kept):
    shares = adaptation.SHARES
    found = chosen({share: judged(count) for share, count in zip(shares, right, strict=True)}, k=20)
    assert found.kept == kept
    assert [row.share for row in found.mixtures] == list(shares)
    assert "is kept" in found.answer
    assert found.answer.startswith("The start") == (kept == 0)
    gains = {row.share: row.gain_low for row in found.mixtures if row.share}
    assert kept == 0 or gains[kept] > 0


@pytest.mark.parametrize(
    ("rank", "verdict", "kept"),
    [(9.0, "healthy", 0.5), (4.0, "healthy", 0), (9.0, "collapsed", 0), (NAN, "healthy", 0)],
)
def test_without_labels_the_middle_is_kept_if_its_features_are_sound(rank, verdict, kept):
    tried = {share: Scored({"rankme": 10.0}) for share in adaptation.SHARES}
    tried[0.5] = Scored({"rankme": rank}, verdict)
    found = chosen(tried, k=20)
    assert found.kept == kept
    assert found.answer.startswith("The middle" if kept else "The start")
    assert [row.rankme for row in found.mixtures][1] == 10


# -- whole runs -----------------------------------------------------------------------------------
def test_what_is_kept_is_the_backbone_and_the_others_lie_beside_it(adapted, toys, first):
    result = adapted(report=True)
    told = json.loads((result.run_dir / "adaptation.json").read_text())
    assert told == result.adaptation
    assert result.adaptation["answer"] in result.text
    assert equal(weights(result.run_dir, "start"), weights(first))
    trained = akssl_core.load_backbone(result.run_dir / "adapted.safetensors", plugins=toys)
    kept = mixed(weights(first), trained.export_state(), told["kept"])
    assert torch.equal(weights(result.run_dir)["conv.weight"], kept["conv.weight"])
    assert equal(result.backbone.export_state(), weights(result.run_dir))
    page = (result.run_dir / "report.html").read_text()
    assert "<h2>Adaptation</h2>" in page
    assert result.adaptation["answer"] in page
    assert f"{result.record()['adaptation']['kept']}" == f"{told['kept']}"


def test_ruined_weights_give_way_to_the_start(adapted, toys, first, monkeypatch):
    method = toys.get("method", "toy")
    monkeypatch.setattr(method, "after_step", lambda self, now: self.backbone.conv.weight.data.zero_())
    result = adapted()
    assert result.adaptation["kept"] == 0
    assert equal(weights(result.run_dir), weights(first))
    assert not weights(result.run_dir, "adapted")["conv.weight"].any()


@pytest.mark.parametrize("when", ["trains", "chooses"])
def test_an_adaptation_that_was_killed_ends_as_an_unbroken_one(adapted, toys, at_step, monkeypatch, tmp_path, when):
    def stop(*_, **__):
        raise Stop

    whole = adapted("whole")
    with monkeypatch.context() as patch:
        if when == "chooses":
            patch.setattr(adaptation, "chosen", stop)
        else:
            at_step(5, stop)
        with pytest.raises(Stop):
            adapted("killed")
    again = resume(tmp_path / "killed", data=adapted.data, plugins=toys, report=False)
    assert again.adaptation == whole.adaptation
    for name in ("backbone", "start", "adapted"):
        assert equal(weights(again.run_dir, name), weights(whole.run_dir, name))


def test_probes_on_the_way_look_at_the_images_to_choose_by(adapted, monkeypatch):
    seen = []
    recorder = process.Recorder
    monkeypatch.setattr(process, "Recorder", lambda **given: seen.append(given["probe"]) or recorder(**given))
    result = adapted()
    (probe,) = seen
    assert f"on {len(probe.queries)} images held out of training" in result.adaptation["answer"]


def test_images_without_labels_are_adapted_to(adapted):
    result = adapted(data=adapted.data[0], report=True)
    assert result.adaptation["kept"] in (0, 0.5)
    assert "no labels, so no accuracy" in result.adaptation["how"]
    assert "alignment" in result.text
    assert "knn_top1" not in result.adaptation["mixtures"][0]


@pytest.mark.parametrize("text", ["", "[]", '{"kept": 0, "answer": "", "mixtures": [{"share": null}]}', '{"kept": 0}'])
def test_a_damaged_record_of_the_choice_is_told_in_a_line(adapted, text):
    run_dir = adapted().run_dir
    (run_dir / "adaptation.json").write_text(text)
    with pytest.raises(AksslError, match=r"adaptation.json is damaged") as found:
        akssl_core.report(run_dir)
    assert "\n" not in str(found.value)


def test_a_run_that_keeps_what_it_trained_holds_nothing_out(start, first):
    result = start("plain", start=first, **SHORT)
    assert result.adaptation is None
    assert not list(result.run_dir.glob("*ad*pt*"))
    assert "adaptation" not in result.text


# -- what was asked for ---------------------------------------------------------------------------
def test_the_method_is_that_of_the_weights_or_one_that_suits_them(adapted, first, tmp_path):
    result = adapted()
    told = json.loads((result.run_dir / "provenance.json").read_text())
    assert told["method.name"] == "rule: it trained the weights in first"
    assert told["start.keep"] == "rule: adapt gives back the best"


def test_settings_of_a_method_that_is_not_named_are_of_that_of_the_weights(adapted):
    result = adapted(method={"out_dim": 3})
    config = RunDir.open(result.run_dir).read_config()
    assert (config["method"]["name"], config["method"]["out_dim"]) == ("toy", 3)


def test_weights_of_an_unknown_method_are_trained_by_one_that_is_installed(small_run, tmp_path):
    tensors = weights(small_run)
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "plain.safetensors")
    name, reason = suited(tmp_path / "plain.safetensors", {"name": "resnet_tiny", "widths": [4, 4, 8, 8]})
    assert (name, reason.split(", ")[0]) == ("simclr", "the first installed of simclr")
    name, reason = suited(tmp_path / "plain.safetensors", "vit_tiny")
    assert (name, reason.rpartition(", ")[2]) == ("dino", "for transformers")


def suited(source, backbone):
    from akssl_core.plugins.manager import installed
    from akssl_core.running.adapt import suited_method

    given = {"start": {"source": str(source), "keep": "best"}, "backbone": backbone}
    return suited_method(collect(None, None, given, installed()), installed())


TINY = (
    "--data", "shapes", "--set", "data.size=40", "--set", "data.test_size=16", "--image-size", "12", "--epochs", "1",
    "--batch-size", "16", "--precision", "fp32", "--device", "cpu", "--no-report", "--json", "--out",
)  # fmt: skip


def test_the_command_prints_the_evidence_as_json(finished, here, tmp_path):
    code, out, err = here("adapt", "finished", *TINY, "new")
    assert code == 0, err
    told = json.loads(out)
    assert told["adaptation"] == json.loads((tmp_path / "new" / "adaptation.json").read_text())
    assert told["metrics"]["knn_start"] == RunDir.open(tmp_path / "new").manifest.baselines["knn_start"]
    assert told["run_dir"] == "new"
    code, _, err = here("adapt", "finished", *TINY, "new")
    assert (code, "already holds a run" in err) == (2, True)


def test_two_processes_choose_together(finished, tmp_path):
    command = [*AKSSL, "adapt", "finished", "--devices", "2", *TINY, "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)["adaptation"]["kept"]
    trained = weights(tmp_path / "two", "adapted")
    names = [name for name, tensor in trained.items() if tensor.is_floating_point() and "running" not in name]
    expected = mixed(weights(finished), trained, kept)
    assert all(torch.equal(weights(tmp_path / "two")[name], expected[name]) for name in names)


def test_wrong_input_is_told_in_a_line_and_leaves_no_folder(adapted, tmp_path, photos, here):
    images, _ = photos
    for words, settings in {
        "no images to adapt to": {"data": None},
        "too few to hold some out": {"data": images[:9]},
        "start: expected a table": {"start": "x"},
    }.items():
        with pytest.raises(AksslError, match=words) as found:
            adapted("none", **settings)
        assert "\n" not in str(found.value)
    with pytest.raises(ConfigError, match="there is no"):
        akssl_core.adapt("gone.safetensors", data=images, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    code, _, err = here("adapt", "gone.safetensors", "--data", "shapes")
    assert (code, err.count("\n")) == (2, 1), err

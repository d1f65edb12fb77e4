"""The first steps of a run that begins from weights: new heads learn alone, parts are frozen, rates are lower."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from whole_runs import Stop, losses, same

import akssl_core
from akssl_core import Backbone, Features, Keys
from akssl_core.errors import ConfigError
from akssl_core.nn import EMA
from akssl_core.rundir.folder import read_tensors
from akssl_core.running.explain import explain
from akssl_core.running.launch import resume
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from akssl_core.training.callback import Callback

SHORT = {"report": False, "train": {"checkpoint_every": 1, "keep": 99}}  # 3 epochs of 6 steps
ALONE = 5 / 6  # epochs: 5 steps


class Wide(Backbone):
    """A network of two blocks with a dropout, which shows whether it is in evaluation mode."""

    name = "wide"
    embed_dim = 6

    def __init__(self, config, image):
        super().__init__(config, image)
        self.stem = nn.Conv2d(image.channels, 6, 3, stride=2)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)) for _ in range(2)))
        self.drop = nn.Dropout(0.5)

    def features(self, images):
        return Features(self.drop(self.blocks(self.stem(images))).mean((2, 3)))


@pytest.fixture
def first(start):
    """A run folder to begin from."""
    return start("first", epochs=1, report=False).run_dir


@pytest.fixture
def begun(start, first):
    """Begins a run of 3 epochs from it, with settings of the start."""

    def begin(name="second", more=None, **settings):
        return start(name, epochs=3, start={"source": str(first), **settings}, **{**SHORT, **(more or {})})

    return begin


def models(result, path="checkpoints"):
    """The tensors of a method by the steps done."""
    folders = sorted((result.run_dir / path).iterdir())
    return {int(folder.name.rpartition("-")[2]): read_tensors(folder / "model.safetensors")[0] for folder in folders}


def plan_of(toys, photos, **settings):
    return make_plan(collect("toy", None, {"data": photos, **settings}, toys), toys)


# -- heads first ------------------------------------------------------------------------------------
def test_the_backbone_stays_with_its_statistics_while_heads_learn(begun, first):
    given = read_tensors(first / "backbone.safetensors")[0]
    states = models(begun(warm_heads=ALONE))
    for step in range(1, 6):
        for network in ("backbone", "teacher.backbone"):
            own = {name: states[step][f"{network}.{name}"] for name in given}
            assert all(torch.equal(own[name], tensor) for name, tensor in given.items()), (step, network)
    assert not torch.equal(states[1]["projector.0.weight"], states[2]["projector.0.weight"])
    assert torch.equal(states[6]["backbone.conv.weight"], given["conv.weight"])  # the rate begins at 0
    assert not torch.equal(states[6]["backbone.bn.running_mean"], given["bn.running_mean"])
    assert not torch.equal(states[7]["backbone.conv.weight"], given["conv.weight"])


def test_slow_copies_are_exact_again_at_its_end(begun):
    states = models(begun(warm_heads=ALONE))
    head, slow = "projector.0.weight", "teacher.projector.0.weight"
    assert not torch.equal(states[4][head], states[4][slow])
    assert torch.equal(states[5][head], states[5][slow])
    assert not torch.equal(states[7][head], states[7][slow])


def test_the_optimizer_knows_nothing_of_the_backbone_until_then(begun):
    result = begun(warm_heads=ALONE)
    known = {
        step: {name.partition(".")[0] for name in read_tensors(folder / "optimizer.safetensors")[0]}
        for step, folder in enumerate(sorted((result.run_dir / "checkpoints").iterdir()), 1)
    }
    assert known[5] == {"projector"}
    assert known[6] == {"projector", "backbone"}


@pytest.mark.parametrize("step", [3, 5, 6, 9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_run_killed_before_at_and_after_its_end_goes_on_to_the_same_bits(
    begun, toys, photos, at_step, tmp_path, step, optimizer
):
    def stop():
        raise Stop

    more = {"optimizer": optimizer}
    whole = begun("whole", more, warm_heads=ALONE)
    at_step(step, stop)
    with pytest.raises(Stop):
        begun("stopped", more, warm_heads=ALONE)
    resumed = resume(tmp_path / "stopped", data=photos, plugins=toys, report=False)
    assert same(whole.run_dir, resumed.run_dir)
    assert losses(whole) == losses(resumed)


def test_dropout_of_a_backbone_is_off_and_its_graph_is_not_kept(toys, photos, first):
    class Seen(Callback):
        """Notes modes and gradients after each step."""

        def __init__(self):
            self.steps = []

        def on_step(self, engine, terms):
            part = engine.method.backbone
            needs = [parameter.requires_grad for parameter in part.parameters()]
            self.steps.append((any(module.training for module in part.modules()), any(needs)))

    toys.registry.owner = "test"
    toys.registry.add(Wide)
    seen = Seen()
    plan = plan_of(toys, photos, backbone="wide", epochs=1)
    plan.spec = plan.spec.model_copy(update={"start": akssl_core.settings.StartSpec(source="x", warm_heads=0.5)})
    plan.engine([seen]).fit()
    assert seen.steps == [(False, False)] * 2 + [(True, True)] * 4


def test_a_first_convolution_for_other_channels_learns_with_the_heads(toys, photos, start, first, monkeypatch):
    monkeypatch.setattr(toys.get("backbone", "toy"), "keys", property(lambda self: Keys(first="conv.weight")))
    gray = (photos[0][:, :1], photos[1])
    given = plan_of(toys, photos, start=str(first)).backbone.state_dict()
    result = start("gray", data=gray, epochs=3, start={"source": str(first), "warm_heads": 1}, **SHORT)
    states = models(result)
    assert torch.equal(states[6]["backbone.bn.weight"], given["bn.weight"])
    assert not torch.equal(states[1]["backbone.conv.weight"], states[6]["backbone.conv.weight"])
    settings = akssl_core.config.yaml.read_yaml(result.run_dir / "config.yaml")
    assert settings["start"]["warm_with"] == ["conv.*"]


# -- frozen for good ----------------------------------------------------------------------------------
def test_frozen_parts_get_no_update_no_decay_and_keep_their_statistics(begun, first):
    given = read_tensors(first / "backbone.safetensors")[0]
    more = {"optimizer": {"name": "adamw", "weight_decay": 0.5}}
    result = begun("frozen", more, warm_heads=0, freeze=["bn.*"])
    states = models(result)
    for name in ("bn.weight", "bn.bias", "bn.running_mean"):
        assert torch.equal(states[18][f"backbone.{name}"], given[name])
        assert torch.equal(states[18][f"teacher.backbone.{name}"], given[name])
    assert not torch.equal(states[18]["backbone.conv.weight"], given["conv.weight"])


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["cnv.*"], r"start\.freeze: 'cnv\.\*' matches no parameter of ToyBackbone\. Did you mean 'conv'"),
        (["conv.weihgt"], "Did you mean 'conv.weight'"),
        (["*"], "nothing of the backbone would be trained"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(toys, photos, first, patterns, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(toys, photos, start={"source": str(first), "freeze": patterns})


# -- rates and rules ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 1.0), ("adamw", 0.3), ("lars", 0.3)])
def test_the_rate_is_lower_from_weights_by_the_optimizers_kind(toys, photos, first, optimizer, factor):
    usual = explain("toy", data=photos, optimizer={"name": optimizer}, plugins=toys)
    found = explain("toy", data=photos, optimizer={"name": optimizer}, start=first, plugins=toys)
    rate = found.spec.optimizer.config.lr.start
    assert rate == pytest.approx(factor * usual.spec.optimizer.config.lr.start)
    assert ("trained ones" in found.origins.get("optimizer.lr.start", found.origins.get("optimizer.lr", ""))) == (
        factor != 1
    )
    own = explain("toy", data=photos, optimizer={"name": optimizer, "lr": 0.7}, start=first, plugins=toys)
    assert own.spec.optimizer.config.lr.start == 0.7


def test_heads_learn_alone_for_a_tenth_of_the_run_unless_the_user_says_otherwise(toys, photos, first):
    found = explain("toy", data=photos, epochs=20, start=first, plugins=toys)
    assert found.spec.start.warm_heads == 2.0
    assert found.origins["start.warm_heads"].startswith("rule: new heads learn alone for 12 steps")
    assert any("in the first 12 steps heads learn alone" in note for note in found.notes)
    assert any("slow copies are made exact ones" in note for note in found.notes)
    off = explain("toy", data=photos, epochs=20, start={"source": str(first), "warm_heads": 0}, plugins=toys)
    assert off.spec.start.warm_heads == 0.0
    assert not any("heads learn alone" in note for note in off.notes)


# -- statistics ---------------------------------------------------------------------------------------
def test_statistics_are_measured_at_the_start_and_at_the_end(begun, first):
    given = read_tensors(first / "backbone.safetensors")[0]
    result = begun(warm_heads=1, statistics="measure")
    states = models(result)
    for network in ("backbone", "teacher.backbone"):
        assert not torch.equal(states[1][f"{network}.bn.running_mean"], given["bn.running_mean"])
        assert torch.equal(states[1][f"{network}.bn.running_mean"], states[1]["backbone.bn.running_mean"])
    kept = read_tensors(result.run_dir / "backbone.safetensors")[0]
    assert torch.equal(kept["conv.weight"], states[18]["backbone.conv.weight"])
    assert not torch.equal(kept["bn.running_mean"], states[18]["backbone.bn.running_mean"])


def test_a_slow_copy_becomes_exact():
    fast = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    slow = EMA(akssl_core.Schedule(start=0.9), net=fast)
    with torch.no_grad():
        for tensor in fast.state_dict().values():
            tensor.add_(1)
    slow.catch_up()
    assert all(torch.equal(tensor, fast.state_dict()[name]) for name, tensor in slow.net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in slow.parameters())

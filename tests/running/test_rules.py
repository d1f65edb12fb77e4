"""What a method decides by the size of the data, and what it refuses before anything is trained."""

from __future__ import annotations

import pytest
from conftest import ToyMethod
from drawn_folders import save
from pydantic import Field

import akssl_core
from akssl_core import Choice, ConfigError, Schema, hookimpl
from akssl_core.config.schema import validate
from akssl_core.running import rules
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan


class Sized(ToyMethod):
    """A toy with a memory that may not be larger than the data, and a limit it cannot go beyond."""

    name = "sized"
    recipes = {"default": {**ToyMethod.recipes["default"], "method": {"memory": 5000}}}
    seen = []

    class Config(ToyMethod.Config):
        """Settings of the toy."""

        memory: int = Field(1000, ge=0, description="images remembered")
        limit: int = Field(9999, description="largest memory")

    @classmethod
    def choose(cls, config, facts):
        cls.seen.append(facts)
        if config.memory > facts.images:
            return {"memory": Choice(facts.images, f"at most the {facts.images} training images")}
        return {}

    @classmethod
    def check(cls, config, facts):
        if config.memory > config.limit:
            raise ConfigError(f"method.memory: {config.memory} is over method.limit {config.limit}; use less.")
        return [f"method.memory: {config.memory} exceeds the {facts.images} images"] * (config.memory > facts.images)


@pytest.fixture
def sized(toys):
    class Plugin:
        @hookimpl
        def akssl_register(self, registry):
            registry.add(Sized)

    toys.register(Plugin(), "sized")
    return toys


def plan(plugins, photos, **settings):
    settings = {"data": photos, "precision": "fp32", **settings}
    return make_plan(collect("sized", None, settings, plugins), plugins)


def test_a_methods_choice_replaces_defaults_and_recipes_and_keeps_its_reason(sized, photos):
    ready = plan(sized, photos)
    assert ready.method.config.memory == 51
    assert ready.provenance["method.memory"] == "rule: at most the 51 training images"
    assert ready.warnings == []


@pytest.mark.parametrize("settings", [{"options": {"memory": 300}}, {"method": {"name": "sized", "memory": 300}}])
def test_what_the_user_set_is_never_replaced_but_warned_of(sized, photos, settings):
    method = settings.pop("method", "sized")
    ready = make_plan(collect(method, None, {"data": photos, "precision": "fp32", **settings}, sized), sized)
    assert ready.method.config.memory == 300
    assert ready.provenance["method.memory"] == "user"
    assert ready.warnings == ["method.memory: 300 exceeds the 51 images"]
    assert "warning: method.memory: 300 exceeds the 51 images" in ready.notes


def test_a_choice_survives_the_way_through_config_yaml(sized, photos):
    first = plan(sized, photos).spec.table()
    first.pop("data")
    again = make_plan(collect(None, first, {"data": photos}, sized), sized)
    assert again.method.config.memory == 51
    assert again.provenance["method.memory"] == "config"


def test_a_methods_refusal_comes_before_a_folder(sized, photos, tmp_path):
    with pytest.raises(ConfigError, match="300 is over method.limit 100; use less"):
        akssl_core.run("sized", data=photos, options={"memory": 300, "limit": 100}, out=tmp_path / "run", plugins=sized)
    assert not (tmp_path / "run").exists()


def test_warnings_reach_the_caller(sized, photos, tmp_path):
    with pytest.warns(UserWarning, match="300 exceeds the 51 images"):
        akssl_core.run(
            "sized", data=photos, epochs=1, options={"memory": 300}, out=tmp_path / "run", report=False, plugins=sized
        )


def test_the_facts_are_those_of_the_run(sized, photos):
    Sized.seen.clear()
    plan(sized, photos, epochs=3, batch_size=16, train={"accumulate": 2}, image_size=10)
    (facts,) = Sized.seen
    assert (facts.images, facts.batch_size, facts.forward_size, facts.epochs) == (51, 16, 8, 3)
    assert (facts.image_size, facts.views) == (10, {"global": 2})
    Sized.seen.clear()
    plan(sized, photos, epochs=30, batch_size=16, steps=1)
    assert Sized.seen[0].epochs == pytest.approx(1 / 3)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 4, "train": {"accumulate": 4}}])
def test_one_image_a_forward_pass_is_refused_where_there_are_batch_norms(sized, photos, settings):
    least = 2 * settings.get("train", {}).get("accumulate", 1)
    with pytest.raises(ConfigError, match=f"need at least 2 images a forward pass.*Use --batch-size {least} or more"):
        plan(sized, photos, **settings)


def test_a_loss_setting_given_to_the_method_is_sent_one_level_down():
    with pytest.raises(ConfigError, match="unknown setting 'epsilon'. Did you mean 'loss.epsilon'"):
        validate(WithLoss.Config, {"epsilon": 1}, registry=Losses())


def test_settings_of_an_unnamed_component_are_those_of_the_default():
    config = validate(WithLoss.Config, {"loss": {"epsilon": 0.25}}, registry=Losses())
    assert (config.loss.name, config.loss.config.epsilon) == ("small", 0.25)


class SmallLoss(akssl_core.Loss):
    """A loss with a setting."""

    name = "small"

    class Config(Schema):
        """Its setting."""

        epsilon: float = Field(0.5, gt=0, description="softness")

    def forward(self, z):
        return z.mean()


class Losses:
    """A registry of that loss."""

    def get(self, kind, name):
        assert (kind, name) == ("loss", "small")
        return SmallLoss


class WithLoss(ToyMethod):
    """A method that refers to it."""

    class Config(Schema):
        """A reference."""

        loss: akssl_core.LossRef = akssl_core.LossRef.field("small", description="compares")


@pytest.mark.parametrize(("devices", "here", "threads", "reason"), [(1, None, 12, ""), (5, None, 2, ", shared by 5"),
                                                                 (1, "4", 3, ", shared by 4")])  # fmt: skip
def test_the_cores_of_a_process_decode(sized, tmp_path, monkeypatch, devices, here, threads, reason):
    for i in range(8):
        save(tmp_path / f"{i}.jpg", seed=i)
    monkeypatch.setattr(rules, "usable_cores", lambda: 12)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    ready = plan(sized, str(tmp_path))
    assert ready.spec.train.workers == ready.loader().images.decoder.threads == (12 if here is None else threads)
    chosen = rules.readers(ready.images, max(devices, int(here or 1)))
    assert chosen.value == threads
    assert chosen.reason.startswith(f"threads that decode, one for each of the 12 usable cores{reason}")


def test_what_lies_ready_needs_no_workers(sized, photos):
    ready = plan(sized, photos)
    assert ready.spec.train.workers == 0
    assert ready.provenance["train.workers"] == "rule: reading needs no further processes unless you ask for them"
    assert plan(sized, photos, workers=2).loader().workers == 2

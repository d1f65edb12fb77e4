"""Layers of settings: what wins, who decided, and what nobody decided."""

from __future__ import annotations

import pytest
import torch

from akssl_core.config.schema import leaves
from akssl_core.errors import ConfigError, DataError
from akssl_core.running.estimate import forecast
from akssl_core.running.layers import collect, layer
from akssl_core.running.plan import make_plan
from akssl_core.settings import Layers, dotted, merged, sections


def plan(toys, photos, method="toy", config=None, **settings):
    settings = {"data": photos, "precision": "fp32", **settings}
    return make_plan(collect(method, config, settings, toys), toys)


def test_later_layers_win_and_each_leaf_keeps_who_set_it():
    layers = Layers()
    layers.put({"train": {"epochs": 1, "batch_size": 2}}, "recipe")
    layers.put({"train": {"epochs": 5}}, "user")
    assert layers.values == {"train": {"epochs": 5, "batch_size": 2}}
    assert layers.origin == {"train.epochs": "user", "train.batch_size": "recipe"}


def test_another_component_drops_the_settings_of_the_old_one():
    layers = Layers()
    layers.put({"optimizer": {"name": "lars", "lr": 0.3, "eta": 0.002}}, "recipe")
    layers.put({"optimizer": {"name": "adamw"}}, "user")
    assert layers.values["optimizer"] == {"name": "adamw"}
    assert "optimizer.eta" not in layers.origin
    layers.put({"optimizer": "adamw"}, "user")
    layers.put({"optimizer": {"weight_decay": 0.1}}, "user")
    assert layers.values["optimizer"] == {"name": "adamw", "weight_decay": 0.1}


def test_a_number_for_the_learning_rate_keeps_the_recipes_shape():
    layers = Layers()
    layers.put({"optimizer": {"name": "sgd", "lr": {"start": 0.3, "warmup": 10}}}, "recipe")
    layers.put({"optimizer": {"lr": 0.1}}, "user")
    assert layers.values["optimizer"]["lr"] == {"start": 0.1, "warmup": 10}
    assert layers.origin["optimizer.lr.start"] == "user"


def test_settings_of_one_origin_are_merged_as_those_of_several_are():
    lars = {"optimizer": {"name": "lars", "eta": 0.002}, "data": "shapes"}
    assert merged({"data": "shapes"}, {"data": {"size": 9}}) == {"data": {"name": "shapes", "size": 9}}
    assert merged({"data": {"size": 9}}, {"data": "shapes"}) == {"data": {"name": "shapes", "size": 9}}
    assert merged(lars, {"optimizer": "adamw"})["optimizer"] == {"name": "adamw"}
    assert merged(lars, {"optimizer": {"lr": 1}})["optimizer"] == {"name": "lars", "eta": 0.002, "lr": 1}
    images = object()
    assert merged({"data": images}, {"seed": 1})["data"] is images, "an object is never copied"


def test_flat_keywords_go_to_their_sections():
    found = sections({"epochs": 3, "train": {"steps": 9}, "options": {"out_dim": 5}, "method": "toy", "seed": 4})
    assert found == {"train": {"epochs": 3, "steps": 9}, "method": {"out_dim": 5, "name": "toy"}, "seed": 4}


@pytest.mark.parametrize(("name", "near"), [("optimiser", "optimizer"), ("trian", "train"), ("epoch", "epochs")])
def test_an_unknown_section_offers_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"unknown setting '{name}'. Did you mean '{near}'"):
        sections({name: 1})


def test_dotted_paths_nest_and_refuse_to_go_through_a_value():
    assert dotted([("a.b", 1), ("a.c.d", 2)]) == {"a": {"b": 1, "c": {"d": 2}}}
    with pytest.raises(ConfigError, match="'b' was set to a value before"):
        dotted([("a.b", 1), ("a.b.c", 2)])


def test_every_leaf_of_a_resolved_run_has_an_origin(toys, photos, tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 4\nmethod: {name: toy, out_dim: 6}\noptimizer: {momentum: 0.5}\n")
    p = plan(toys, photos, method=None, config=tmp_path / "c.yaml", seed=3)
    origin = p.provenance
    assert set(origin) == {path for path, _ in leaves(p.spec.table())}
    assert origin["train.epochs"] == "config file c.yaml"
    assert origin["method.out_dim"] == "config file c.yaml"
    assert origin["optimizer.lr.start"] == "recipe 'default' of toy"
    assert origin["seed"] == "user"
    assert origin["optimizer.momentum"] == "config file c.yaml"
    assert origin["optimizer.nesterov"] == "default"
    assert origin["train.image_size"].startswith("rule: ")


def test_a_resolved_run_resolves_to_itself(toys, photos):
    first = plan(toys, photos, epochs=2)
    again = make_plan(collect(None, first.spec.table(), {"data": photos}, toys), toys)
    assert again.spec == first.spec


def test_the_recipe_follows_the_family_of_the_data_unless_the_user_says(toys, photos):
    assert plan(toys, photos).spec.recipe == "default"
    given = collect("toy", None, {"data": "cifar10"}, toys)
    layers = layer(given, toys)
    assert layers.values["recipe"] == "cifar"
    assert layers.origin["recipe"] == "rule: cifar10 is cifar data"
    asked = plan(toys, photos, recipe="cifar", backbone="toy", batch_size=16)
    assert (asked.spec.recipe, asked.spec.optimizer.name) == ("cifar", "lars")
    with pytest.raises(ConfigError, match="toy has no recipe .imagnet.*Known: default, cifar"):
        plan(toys, photos, recipe="imagnet")


def test_batch_size_of_a_recipe_gives_way_to_few_images_and_the_users_does_not(toys, photos):
    images = photos[0][:20]
    p = plan(toys, images)
    assert p.spec.train.batch_size == 4
    assert p.provenance["train.batch_size"] == "rule: at least four batches from 20 images"
    assert plan(toys, images, batch_size=16).spec.train.batch_size == 16
    with pytest.raises(DataError, match="50"):
        plan(toys, images, batch_size=50)


def test_odd_batches_over_micro_batches_are_refused_with_the_nearest(toys, photos):
    with pytest.raises(ConfigError, match="must be a multiple of processes x train.accumulate = 4; 12 is"):
        plan(toys, photos, batch_size=14, train={"accumulate": 4})


def test_views_must_match_the_augmentation(toys, photos):
    with pytest.raises(ConfigError, match="toy does not use 'local' views; multicrop offers 2 global and 6 local"):
        plan(toys, photos, augmentation="multicrop")


def test_a_method_over_patches_refuses_a_convnet(toys, photos):
    from akssl_core import TokenBackbone
    from akssl_core.config.schema import Component

    method: type[Component] = toys.get("method", "toy")
    masked = type("Masked", (method,), {"name": "masked", "accepts": TokenBackbone})
    toys.registry.add(masked)
    with pytest.raises(ConfigError, match="masked needs a backbone over patch tokens; ToyBackbone is not one"):
        plan(toys, photos, method="masked")


def test_objects_stand_beside_the_settings(toys, photos):
    p = plan(toys, photos, backbone=torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Flatten()), image_size=12)
    assert p.spec.backbone.name == "custom"
    assert p.backbone.embed_dim == 5 * 100
    assert p.has_objects


@pytest.mark.parametrize("bad", [object(), 5, {1, 2}])
def test_data_of_an_unknown_kind_lists_what_can_be_given(toys, bad):
    with pytest.raises(DataError, match="a folder, a torch Dataset"):
        make_plan(collect("toy", None, {"data": bad}, toys), toys)


def test_no_method_lists_what_is_installed(toys, photos):
    with pytest.raises(ConfigError, match="method: none was named. Installed: toy"):
        plan(toys, photos, method=None)


def test_the_forecast_names_steps_and_the_effective_rate(toys, photos):
    told = dict(forecast(plan(toys, photos, epochs=3, batch_size=16, optimizer={"lr_per": 8})))
    assert told["peak learning rate"] == "0.1 (setting 0.05 x 2)"
    assert told["optimizer steps"].endswith("an epoch)")

"""Layers of settings: what wins, who decided, and what nobody decided."""

from __future__ import annotations

import pytest
import torch
from conftest import ToyMethod

from akssl_core import Now
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


@pytest.mark.parametrize("order", [1, -1])
def test_a_component_is_named_beside_its_own_settings(order):
    given = [("method.loss", "dcl"), ("method.loss.temperature", 0.2)]
    assert dotted(given[::order]) == {"method": {"loss": {"name": "dcl", "temperature": 0.2}}}


def test_every_leaf_of_a_resolved_run_has_an_origin(toys, photos, tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 4\nmethod: {name: toy, out_dim: 6}\noptimizer: {momentum: 0.5}\n")
    p = plan(toys, photos, method=None, config=tmp_path / "c.yaml", seed=3)
    origin = p.provenance
    assert set(origin) == {path for path, _ in leaves(p.spec.table())}
    assert origin["train.epochs"] == "config file c.yaml"
    assert origin["method.out_dim"] == "config file c.yaml"
    assert origin["optimizer.lr.warmup"] == "recipe 'default' of toy"
    assert origin["seed"] == "user"
    assert origin["optimizer.momentum"] == "config file c.yaml"
    assert origin["optimizer.nesterov"] == "default"
    assert origin["train.image_size"].startswith("rule: ")
    alone = plan(toys, photos, augmentation="pair").provenance
    assert (alone["augmentation.name"], alone["augmentation.count"]) == ("user", "default")


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
    one_view = {"name": "views", "groups": {"global": {"count": 1}}}
    cure = "--set augmentation.name=views --set augmentation.groups.global.count=2"
    with pytest.raises(ConfigError, match=rf"toy takes 2 'global' views; views offers 1 global\..*: {cure}"):
        plan(toys, photos, augmentation=one_view)
    one_view["groups"]["global"]["count"] = 2
    assert plan(toys, photos, augmentation=one_view).facts.views == {"global": 2}


def test_labels_and_test_images_in_files_go_with_images_in_files(toys, photos):
    for name in ("labels", "test_data"):
        with pytest.raises(ConfigError, match=f"{name}: it goes with data in files"):
            plan(toys, photos, **{name: "table.csv"})


def test_what_a_recipe_sets_of_its_backbone_is_told_where_another_is_named(toys, photos):
    recipes = {"default": {"backbone": {"name": "vit_micro", "pool": "mean", "depth": 2}}}
    toys.registry.add(type("Pooled", (toys.get("method", "toy"),), {"name": "pooled", "recipes": recipes}))

    def told(**settings):
        found = plan(toys, photos, method="pooled", **settings).notes
        return [note for note in found if note.startswith("warning: backbone:")]

    assert told() == told(backbone={"name": "vit_micro", "pool": "cls"}) == told(backbone="toy") == []
    (text,) = told(backbone={"name": "vit_tiny", "depth": 3})
    assert text.endswith("vit_tiny lacks what recipe 'default' sets of vit_micro: --set backbone.pool=mean")


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
    with pytest.raises(DataError, match="a folder or table, a torch Dataset"):
        make_plan(collect("toy", None, {"data": bad}, toys), toys)


def test_no_method_lists_what_is_installed(toys, photos):
    with pytest.raises(ConfigError, match="method: none was named. Installed: toy"):
        plan(toys, photos, method=None)


def test_the_forecast_names_steps_and_the_effective_rate(toys, photos):
    told = dict(forecast(plan(toys, photos, epochs=3, batch_size=16, optimizer={"lr_per": 8})))
    assert told["peak learning rate"] == "0.1 (setting 0.05 x 2)"
    assert told["optimizer steps"].endswith("an epoch)")


# -- transformers and convolutions ----------------------------------------------------------------
@pytest.fixture
def families(toys):
    """The toy with recipes for both kinds of backbone."""
    large = {"train": {"image_size": 224, "epochs": 100, "batch_size": 16}}
    adamw = {"name": "adamw", "lr": {"start": 1e-3}, "weight_decay": 0.3}
    recipes = {
        "default": ToyMethod.recipes["default"],
        "plain": {"backbone": {"name": "toy"}, "optimizer": {"name": "lars", "lr": 0.3}, **large},
        "plain_vit": {"backbone": {"name": "vit_tiny"}, "optimizer": adamw, **large},
        "tokens": {"backbone": {"name": "vit_tiny"}, "optimizer": adamw},
        "tokens_boosted": {"backbone": {"name": "vit_tiny"}, "optimizer": adamw},
        "tokens_plain": {"backbone": {"name": "toy"}, "optimizer": {"name": "lars", "lr": 0.3}},
    }
    toys.registry.add(type("Families", (ToyMethod,), {"name": "families", "recipes": recipes}))
    return toys


@pytest.mark.parametrize(
    ("recipe", "backbone", "used", "optimizer"),
    [
        ("plain", "vit_tiny", "plain_vit", "adamw"),
        ("plain", "toy", "plain", "lars"),
        ("plain", None, "plain", "lars"),
        ("tokens", "toy", "tokens_plain", "lars"),
        ("tokens", "vit_small", "tokens", "adamw"),
        ("tokens_boosted", "toy", "tokens_boosted", "adamw"),
    ],
)
def test_a_recipe_follows_the_kind_of_the_backbone(families, recipe, backbone, used, optimizer):
    settings = {"recipe": recipe, "data": "shapes"} | ({"backbone": backbone} if backbone else {})
    layers = layer(collect("families", None, settings, families), families)
    assert (layers.values["recipe"], layers.values["optimizer"]["name"]) == (used, optimizer)
    if used != recipe:
        assert layers.origin["recipe"] == f"rule: '{recipe}' of families for {backbone}"
    if backbone:
        assert layers.values["backbone"]["name"] == backbone


def test_a_transformer_under_a_recipe_for_convolutions_gets_an_adaptive_optimizer(toys, photos):
    p = plan(toys, photos, backbone="vit_tiny", epochs=30)
    assert (p.spec.optimizer.name, p.spec.optimizer.config.lr.start, p.spec.optimizer.config.lr_per) == (
        "adamw",
        5e-4,
        256,
    )
    assert p.spec.optimizer.config.lr.warmup == 1
    assert p.provenance["optimizer.name"] == "rule: recipe 'default' is for convolutions, vit_tiny is a transformer"
    assert plan(toys, photos, backbone="vit_tiny", epochs=2).spec.optimizer.config.lr.warmup == 0.2
    assert plan(toys, photos, backbone="vit_tiny", optimizer={"lr": 1e-3}).spec.optimizer.config.lr.start == 1e-3
    again = make_plan(collect(None, p.spec.table(), {"data": photos}, toys), toys)
    assert again.spec == p.spec
    asked = plan(toys, photos, backbone="vit_tiny", optimizer={"name": "sgd", "lr": 0.1}, epochs=90)
    assert asked.spec.optimizer.name == "sgd"
    assert [w for w in asked.warnings if w.startswith("optimizer: sgd for vit_tiny, a transformer")]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_that_nothing_scales_follows_a_batch_that_gives_way(toys, photos, optimizer):
    recipe = {"backbone": {"name": "toy"}, "optimizer": {"name": optimizer, "lr": 0.04}, "train": {"batch_size": 64}}
    toys.registry.add(type("Rated", (ToyMethod,), {"name": "rated", "recipes": {"default": recipe}}))
    p = plan(toys, photos[0][:64], method="rated")
    assert p.spec.train.batch_size == 16
    expected = 0.01 if optimizer == "sgd" else 0.02
    assert p.spec.optimizer.config.lr.start == pytest.approx(expected)
    assert p.facts.peak_rate == pytest.approx(expected)
    assert p.provenance["optimizer.lr"].startswith("rule: ")
    assert plan(toys, photos[0][:64], method="rated", optimizer={"lr": 0.3}).spec.optimizer.config.lr.start == 0.3
    scaled = plan(toys, photos[0][:64], method="rated", optimizer={"lr_per": 64})
    assert scaled.spec.optimizer.config.lr.start == 0.04


def test_rates_that_do_not_suit_the_run_are_warned_of_before_it(toys, photos):
    images = photos[0].repeat(60, 1, 1, 1)
    late = plan(toys, images, batch_size=16, train={"steps": 250}, optimizer={"lr": {"start": 1.0, "warmup": 40}})
    assert any(text.startswith("optimizer.lr.warmup: 40 epochs in a run of") for text in late.warnings)
    assert late.facts.peak_rate == pytest.approx(late.spec.optimizer.config.lr(Now(250, len(images) // 16, 250)))
    far = plan(toys, images, batch_size=4, epochs=4)
    assert any("under the learning rate 0.05 of the recipe's batch of 16" in text for text in far.warnings)
    assert plan(toys, images, batch_size=4, epochs=4, optimizer={"lr_per": 16}).warnings == []
    assert plan(toys, images, batch_size=16, epochs=4).warnings == []


@pytest.mark.parametrize(("natural", "told"), [(32, False), (64, False), (256, True)])
def test_large_images_are_told_which_recipe_was_made_for_them(families, natural, told):
    images = torch.randint(0, 256, (24, 3, natural, natural), dtype=torch.uint8)
    p = make_plan(collect("families", None, {"data": images, "precision": "fp32", "epochs": 1}, families), families)
    assert p.spec.recipe == "default"
    notes = [note for note in p.notes if "'plain' was made for images of 224 px" in note and "--recipe plain" in note]
    assert len(notes) == told
    chosen = {"data": images, "precision": "fp32", "epochs": 1, "recipe": "default"}
    asked = make_plan(collect("families", None, chosen, families), families)
    assert not [note for note in asked.notes if note.startswith("recipe:")]


def test_local_views_of_a_transformer_are_whole_patches_or_it_is_said(toys, photos):
    views = {"global": 2, "local": range(9)}
    toys.registry.add(type("Crops", (ToyMethod,), {"name": "crops", "views": views}))
    settings = {"method": "crops", "backbone": "vit_tiny", "image_size": 32}
    p = plan(toys, photos, augmentation="multicrop", **settings)
    assert p.augmentation.groups()[1].size == 12
    assert not [note for note in p.notes if "padded" in note]
    p = plan(toys, photos, augmentation={"name": "multicrop", "local_size": 13}, **settings)
    assert "vit_tiny: local views are padded from 13 to 16 px, whole patches" in p.notes


def test_a_method_is_told_of_the_backbone_before_it_chooses(toys, photos):
    told = []

    class Curious(ToyMethod):
        name = "curious"

        @classmethod
        def choose(cls, config, facts):
            told.append(facts)
            return {}

    toys.registry.add(Curious)
    settings = {"method": "curious", "image_size": 30}
    images = photos[0][:, :1]
    p = plan(toys, images, backbone={"name": "vit_tiny", "patch_size": 8}, **settings)
    assert p.facts is told[-1]
    assert (p.facts.channels, p.facts.backbone, p.facts.embed_dim, p.facts.tokens) == (1, "vit", 192, (4, 4))
    plan(toys, photos, backbone="resnet18", **settings)
    assert (told[-1].channels, told[-1].backbone, told[-1].embed_dim, told[-1].tokens) == (3, "resnet", 512, None)
    plan(toys, photos, backbone=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2700, 7)), **settings)
    assert (told[-1].backbone, told[-1].embed_dim, told[-1].tokens) == ("custom", 7, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_budget_follows_the_hardware(toys, precision):
    images = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    p = plan(toys, images, precision=precision)
    full, few = 200, 67
    assert p.spec.train.epochs == (few if precision == "fp32" else full)
    assert (f"--epochs {full}" in p.provenance["train.epochs"]) == (precision == "fp32")

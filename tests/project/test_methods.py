"""What holds for every installed method, whatever it computes."""

from __future__ import annotations

import inspect

import pytest
import torch
from on_trial import on_trial

import akssl_core
from akssl_core import Now, ViewPolicy
from akssl_core.backbone.resnet import ResNetTiny
from akssl_core.config.schema import leaves
from akssl_core.data import Pixels
from akssl_core.data.base import Batch
from akssl_core.draws import Draws
from akssl_core.nn import StepState
from akssl_core.plugins.first_party import LOSSES, METHODS
from akssl_core.plugins.manager import Plugins, installed
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan

NARROW = {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}
NARROW_TOKENS = {"name": "vit_tiny", "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
SCREEN = 30  # lines


def narrow(method):
    """A small backbone of a kind that the method takes."""
    return NARROW if issubclass(ResNetTiny, installed().get("method", method).accepts) else NARROW_TOKENS


@pytest.fixture
def plan(request, photos):
    """A run of a method on a few images, ready to start."""
    settings = {
        "data": photos[0],
        "backbone": narrow(request.param),
        "batch_size": 16,
        "precision": "fp32",
        "epochs": 2,
    }
    return make_plan(collect(on_trial(request.param), None, settings, installed()), installed())


each_method = pytest.mark.parametrize("plan", sorted(METHODS), indirect=True)


def batch(plan):
    """One batch as the engine would give it, without labels."""
    index = torch.arange(16)
    return Batch(plan.augmentation(plan.images.fetch(index.tolist()), Draws.of(0, 0, index)), index)


def test_all_methods_and_their_losses_are_installed():
    fresh = Plugins()  # the process-wide one may hold what other tests have registered
    assert {method.name for method in akssl_core.methods(plugins=fresh)} == set(METHODS)
    assert {component.name for component, _ in fresh.registry.components("loss")} == set(LOSSES)


@each_method
def test_a_step_needs_no_label_and_reports_the_spread_of_its_projections(plan):
    terms = plan.method.step(batch(plan), Now(0, 4, 8))
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    assert terms["loss"].requires_grad
    assert not plan.method.collapses or 0 <= terms["z_std_ratio"] < 1.1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_step_on_views_smaller_than_the_image(name, photos):
    """Choices are for the patches of a view, of which there are fewer than of the image."""
    settings = {"data": photos[0], "backbone": narrow(name), "batch_size": 16, "precision": "fp32", "epochs": 2}
    settings |= {"image_size": 32, "augmentation": {"size": 0.75}}
    smaller = make_plan(collect(on_trial(name), None, settings, installed()), installed())
    assert smaller.facts.image_size == 24
    assert smaller.facts.tokens in (None, (6, 6))
    assert smaller.method.backbone.image.size == 32
    assert smaller.method.step(batch(smaller), Now(0, 4, 8))["loss"].isfinite()


@each_method
def test_a_step_fits_on_one_screen(plan):
    assert len(inspect.getsource(type(plan.method).step).splitlines()) <= SCREEN


@each_method
def test_every_tensor_is_stored_once(plan):
    places = [tensor.data_ptr() for tensor in plan.method.state_dict().values() if tensor.numel()]
    assert len(places) == len(set(places))


def slow_state(method):
    """Every tensor that moves only after a step, by name; running statistics belong to forward passes."""
    owners = {name: part for name, part in method.named_modules() if isinstance(part, StepState)}
    tensors = {f"{o}.{n}": t for o, part in owners.items() for n, t in part.state_dict(keep_vars=True).items()}
    return {name: t for name, t in tensors.items() if "running_" not in name and "num_batches" not in name}


@each_method
def test_a_forward_pass_moves_no_slow_state(plan):
    before = {name: tensor.clone() for name, tensor in slow_state(plan.method).items()}
    plan.method.train()
    plan.method.step(batch(plan), Now(5, 4, 8))["loss"].backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in slow_state(plan.method).items())


@each_method
def test_slow_state_keeps_its_storage(plan):
    before = {name: tensor.data_ptr() for name, tensor in slow_state(plan.method).items()}
    plan.method.train()
    plan.method.step(batch(plan), Now(5, 4, 8))["loss"].backward()
    for module in plan.method.modules():
        if isinstance(module, StepState):
            module.after_step(Now(5, 4, 8))
    assert {name: tensor.data_ptr() for name, tensor in slow_state(plan.method).items()} == before


@each_method
def test_every_setting_of_a_method_can_be_given(plan, photos):
    """The resolved settings of a run, given by hand, are the settings of the next."""
    table = plan.spec.table()["method"]
    given = {"data": photos[0], "backbone": narrow(table["name"]), "batch_size": 16, "epochs": 2}
    again = make_plan(collect(table, None, given, installed()), installed())
    assert dict(leaves(again.spec.table()["method"])) == dict(leaves(table))


@each_method
def test_every_setting_has_a_meaning(plan):
    fields = type(plan.method).Config.model_fields
    assert all(field.description for field in fields.values())


@each_method
def test_every_method_names_its_paper_and_three_recipes(plan):
    assert "arxiv.org/abs/" in type(plan.method).paper
    assert {"default", "cifar", "imagenet"} <= type(plan.method).recipes.keys()
    ours = {"default", "fast"}
    assert type(plan.method).published.keys() == type(plan.method).recipes.keys() - ours, "each other has a source"


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("recipe", ["default", "cifar", "imagenet"])
def test_every_recipe_starts(name, recipe, photos):
    """Each recipe on a few small images: what does not fit them is chosen anew, and nothing is refused.

    SwAV's rate for a batch of 4096 alone is told, which belongs to that batch and is not scaled.
    """
    settings = {"data": photos[0], "recipe": recipe, "backbone": narrow(name), "image_size": 12, "precision": "fp32"}
    ready = make_plan(collect(on_trial(name), None, settings, installed()), installed())
    assert ready.spec.recipe == ("imagenet_resnet" if (name, recipe) == ("dino", "imagenet") else recipe)
    told = ["optimizer.lr"] if (name, recipe) == ("swav", "imagenet") else []
    others = [text for text in ready.warnings if " lacks what recipe " not in text]
    assert [text.partition(":")[0] for text in others] == told
    own = type(ready.method).recipes[ready.spec.recipe].get("backbone", {}).keys() - {"name"}
    assert len(ready.warnings) == len(others) or own, "told only where the recipe sets something"


def test_views_are_float32():
    draws = Draws.of(0, 0, torch.arange(4))
    pixels = Pixels(torch.zeros(4, 3, 12, 12, dtype=torch.uint8))
    policy = akssl_core.build("augmentation", "pair", akssl_core.ImageSpec(12, 3, (0.5,) * 3, (0.25,) * 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = policy(pixels, draws)
    assert {view.dtype for view in views["global"]} == {torch.float32}
    assert issubclass(type(policy.config), ViewPolicy)

"""Checks of settings: unknown ones are refused, known ones have a meaning and an effect, and data may vary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import torch

from ..config.schema import Ref, Schema, leaves
from ..data import Pixels
from ..draws import Draws
from ..errors import AksslError, ConfigError
from ..method import Headline
from ..schedule import Schedule
from ..settings import dotted, merged
from .check import NotApplicable, expect, fail, few, rule
from .subject import ComponentSubject, MethodSubject, Ready, Trace

SHORT: dict[str, Any] = {"train": {"steps": 8}}  # two epochs of the toy data


@rule("method", cure="derive Config from akssl_core.Schema, and take no **kwargs")
def unknown_setting_is_refused(subject: MethodSubject) -> None:
    """A setting that does not exist is refused, with the nearest one that does."""
    refuses_unknown(lambda: subject.plan(options={"no_such_setting": 1}))


def refuses_unknown(build: Any) -> None:
    """Fail unless building with the setting `no_such_setting` is refused."""
    try:
        build()
    except ConfigError as error:
        expect("no_such_setting" in str(error), f"the refusal does not name the setting: {error}")
    else:
        fail("the setting 'no_such_setting' was accepted and ignored")


@rule(
    "method", cure="give each Field a description, the class a docstring, paper = '...' and recipes = {'default': ...}"
)
def settings_are_described(subject: MethodSubject) -> None:
    """Every setting says what it means, and the method names its paper and a default recipe."""
    describe_settings(subject)
    expect(bool(subject.component.paper), "the class names no paper (paper = 'authors, title, year, link')")
    expect("default" in subject.component.recipes, "there is no recipe 'default'")


@rule("method", cure="set headline to the protocol of akssl eval by which the paper compares: knn, linear or finetune")
def headline_is_a_protocol(subject: MethodSubject) -> None:
    """The method is judged by a protocol that there is."""
    known = get_args(Headline)
    expect(
        subject.component.headline in known, f"headline is {subject.component.headline!r}, none of {', '.join(known)}"
    )


@rule("method", cure="name terms of step in `where`, lower bound first, and say what is meant, why and what to do")
def landmarks_are_of_terms(subject: MethodSubject) -> None:
    """Every landmark bounds terms that the step logs, and has a meaning, a cause and a cure."""
    at = subject.ready()
    for landmark in subject.component.landmarks(at.plan.spec.method.config, at.plan.facts):
        _expect_terms(at, "landmark", landmark.where)
        expect(bool(landmark.where), "a landmark bounds no term")
        expect(all(low <= high for low, high in landmark.where.values()), f"bounds out of order: {landmark.where}")
        expect(all((landmark.meaning, landmark.cause, landmark.cure)), f"a landmark explains too little: {landmark}")


@rule("method", cure="name terms of step, and say in words how they move in a healthy run")
def curves_are_of_terms(subject: MethodSubject) -> None:
    """Every curve that the method describes is that of a term which the step logs, and is described in words."""
    at = subject.ready()
    described = subject.component.curves(at.plan.spec.method.config, at.plan.facts)
    _expect_terms(at, "curve", described)
    for name, curve in described.items():
        expect(bool(curve.shape.strip()), f"the curve of '{name}' has no shape in words")
        expect(all(map(math.isfinite, curve.lines.values())), f"a line of '{name}' is not finite: {curve.lines}")


def _expect_terms(at: Ready, what: str, names: Iterable[str]) -> None:
    terms = at.terms()
    unknown = sorted(set(names) - terms.keys())
    expect(not unknown, f"a {what} is about '{few(unknown)}', and step logs {', '.join(terms)}")


@rule("method", cure="read the setting where it belongs, or remove it")
def every_setting_acts(subject: MethodSubject) -> None:
    """Every setting changes something: the network, the loss, what is learned, or what is decided."""
    plan = subject.plan(**SHORT)
    table = plan.spec.table()["method"]
    reference = subject.train(plan)
    idle = []
    for name, candidates in _variations(subject.component.Config, plan.spec.method.config):
        if _acts(subject, name, candidates, table, reference) is False:
            idle.append(name)
    expect(not idle, f"no value of these changes a run: {few(idle)}")


def _acts(
    subject: MethodSubject, name: str, candidates: list[Any], table: Mapping[str, Any], reference: Trace
) -> bool | None:
    """Whether another value of one setting changes a short run; None when every other value is refused."""
    tried = None
    for value in candidates:
        try:
            options = merged({"method": table}, {"method": dotted([(name, value)])})["method"]
            plan = subject.plan(options=options, **SHORT)
            if plan.spec.table()["method"] == table:
                continue  # the same value in another form
            trace = subject.train(plan)
        except (AksslError, ValueError):
            continue
        if not trace.same(reference):
            return True
        tried = False
    return tried


def _variations(schema: type[Schema], config: Any, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Each setting by its path, with other values that it might take."""
    for name, field in schema.model_fields.items():
        value, path = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Ref):
            yield from _variations(type(value.config), value.config, f"{path}.")
        elif isinstance(value, Schedule):
            yield path, [{"start": x} for x in _numbers(value.start)]
        elif isinstance(value, Schema):
            yield from _variations(type(value), value, f"{path}.")
        elif found := _other_values(field.annotation, value):
            yield path, found


def _other_values(annotation: Any, value: Any) -> list[Any]:
    """Values unlike this one that its type allows."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [choice for choice in args if choice != value]
    if value is None:
        kinds = [arg for arg in args if arg is not type(None)] if origin is not None else []
        return [x for kind in kinds for x in ([12, 20] if kind is int else [0.5, 2.0] if kind is float else [])]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [x for x in (value * 2, value // 2, value + 1, value - 1, value * 4, value + 16) if x != value]
    if isinstance(value, float):
        return _numbers(value)
    return [None] if origin in (Union,) and type(None) in args else []


def _numbers(value: float) -> list[float]:
    """Numbers on both sides of one, some of them between 0 and 1."""
    near = (value * 2, value / 2, value * 10, value / 10, 0.5, 0.9, 0.25, 0.0, 1.0)
    return [x for x in near if x != value and math.isfinite(x)]


@rule("method", cure="adjust what depends on the data in Method.choose, refuse what cannot work in Method.check")
def every_recipe_starts(subject: MethodSubject) -> None:
    """Every recipe starts on a few small images, and what does not fit them is chosen anew or refused in words."""
    for name in subject.component.recipes:
        try:
            plan = subject.plan(recipe=name, batch_size=None, backbone=subject.backbone)
        except AksslError as error:
            fail(f"recipe '{name}' does not start: {error}")
        used = plan.spec.recipe  # or the one beside it for such a backbone: imagenet_resnet for imagenet
        expect(used == name or used.startswith(name + "_"), f"recipe '{name}' was not used, but '{used}'")


@rule("method", cure="take channels and sizes from the tensors, and widths from backbone.embed_dim")
def any_channels_and_sizes(subject: MethodSubject) -> None:
    """Images of any number of channels and any size from 8 px can be trained on."""
    for channels, size in ((1, 16), (3, 8), (5, 24), (3, 40)):
        subject.trains(f"{channels} channels of {size} px", channels=channels, size=size, train={"steps": 2})


@rule("method", cure="choose queue and batch in Method.choose, refuse the rest in Method.check with a ConfigError")
def any_batch_size(subject: MethodSubject) -> None:
    """Every batch size trains, or is refused before training with the size that works."""
    for batch in (2, 6, 10, 48):
        subject.trains(f"a batch of {batch}", refused=AksslError, batch_size=batch, train={"steps": 3})


@rule("method", cure="draw one set of parameters per image (Draws), never one for the batch")
def views_are_drawn_per_image(subject: MethodSubject) -> None:
    """Each image and each view of the default recipe is drawn with parameters of its own."""
    plan = subject.plan()
    draws_per_image(plan.augmentation, plan.images.fetch([0] * 8).images)


def draws_per_image(augmentation: Any, images: Any) -> None:
    """Copies of one image must become different views."""
    views = augmentation(Pixels(images), Draws.of(0, 0, torch.arange(len(images))))
    for name, group in views.items():
        first = group[0]
        alike = sum(torch.equal(first[0], first[i]) for i in range(1, len(first)))
        expect(alike < len(first) - 1, f"copies of one image got the same '{name}' view: one draw for the whole batch")
        for i in range(1, len(group)):
            expect(
                not torch.equal(first, group[i]), f"views 0 and {i} of '{name}' are the same: one draw for all views"
            )


def describe_settings(subject: MethodSubject | ComponentSubject) -> None:
    """Checks that hold for the settings of every component."""
    bare = [name for name, field in subject.component.Config.model_fields.items() if not field.description]
    expect(not bare, f"settings without a description: {few(bare)}")
    expect(bool((subject.component.__doc__ or "").strip()), "the class has no docstring")


def varied(subject: ComponentSubject) -> list[tuple[str, list[Any]]]:
    """Other values of every setting of a component that is no method."""
    config = subject.build().config
    names = {path for path, _ in leaves(config.model_dump(mode="json"))}
    if not names:
        raise NotApplicable("the component has no settings")
    return list(_variations(type(config), config))

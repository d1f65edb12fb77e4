"""Checks of a method's step: what the loss depends on, where gradients go, number formats, labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Views
from ..errors import AksslError
from ..method import Method
from ..nn import EMA, Frozen, StepState
from ..optim import OptimizerConfig, parameter_groups
from ..schedule import Now
from .check import NotApplicable, expect, fail, few, rule
from .subject import BATCH, MethodSubject, Waiting, backward, toy_images

LEARN = 24  # steps after which views of one image must attract each other
UNLABELLED = "leave out labels of -1 (cross_entropy(..., ignore_index=-1)), or refuse them in Method.check"
EXACT = 1e-4  # relative difference of a loss that does not compute in half precision


@rule(
    "method",
    cure="return {'loss': loss, ...} with loss.ndim == 0 from step, computed in float32 and connected to the backbone",
)
def terms_are_scalars(subject: MethodSubject) -> None:
    """A step returns a scalar float32 'loss' that can be minimised, and scalar terms beside it."""
    terms = subject.ready().terms()
    expect("loss" in terms, f"step returned {sorted(terms)}, without 'loss'")
    for name, term in terms.items():
        expect(isinstance(term, Tensor) and term.ndim == 0, f"'{name}' is not a scalar tensor")
        expect(bool(term.isfinite()), f"'{name}' is {term.item()} on ordinary images")
    loss = terms["loss"]
    expect(loss.dtype == torch.float32, f"the loss is {loss.dtype}")
    expect(loss.requires_grad, "the loss has no gradient: everything was detached")


@rule(
    "method",
    cure="look for a detach() or no_grad() too early; freeze what is not trained (EMA does), remove what is not used",
)
def gradient_reaches_every_parameter(subject: MethodSubject) -> None:
    """Every trainable parameter, the backbone's among them, gets a gradient that is not zero."""
    at = subject.ready()
    optimizer, waiting = at.sgd(0.01), Waiting(at.method)
    for step in range(3):  # a layer that starts at zero lets gradients through from the second step on
        optimizer.zero_grad()
        at.backward(at.batch(step))
        waiting.look()
        optimizer.step()
        at.move()
    waiting.none_left()


@rule("method", cure="hold a target in akssl_core.nn.EMA, and compute it under torch.no_grad() or detach it")
def targets_get_no_gradient(subject: MethodSubject) -> None:
    """Targets, queues and centres get no gradient, and no optimizer ever moves them."""
    at = subject.ready()
    at.backward()
    method, rates = at.method, at.plan.spec.optimizer.config
    slow = {id(p) for module in method.modules() if isinstance(module, EMA) for p in module.parameters()}
    for name, p in method.named_parameters():
        expect(p.requires_grad or p.grad is None, f"{name} is frozen and got a gradient")
        expect(id(p) not in slow or not p.requires_grad, f"{name} belongs to a slow copy and is trained")
    assert isinstance(rates, OptimizerConfig)
    groups = parameter_groups(method, method.param_rules(), rates)
    trained = [name for group in groups for name in group["names"]]
    expect(
        len(trained) == len(set(trained)),
        f"in two groups: {few(sorted({name for name in trained if trained.count(name) > 1}))}",
    )


@rule("method", cure="use each view of batch.views; look for one that is encoded twice in place of another")
def every_view_matters(subject: MethodSubject) -> None:
    """The loss depends on every view that the method asks for."""
    at = subject.ready()
    batch, other = at.batch(0), at.batch(100)
    before = at.loss(batch)
    for name, group in batch.views.items():
        for i in range(len(group)):
            views = Views({key: list(value) for key, value in batch.views.items()})
            views[name][i] = other.views[name][i]
            after = at.loss(replace(batch, views=views))
            expect(abs(after - before) > 1e-7 * max(1.0, abs(before)), f"view {i} of '{name}' changes nothing")


@rule(
    "method",
    cure="look for a sign (minimise the distance, maximise the likeness), or for targets that belong to other rows",
)
def views_of_one_image_attract(subject: MethodSubject) -> None:
    """After a few steps, views of one image give a lower loss than views of different images."""
    at = subject.ready(train={"steps": LEARN, "log_every": LEARN}, epochs=LEARN * BATCH // 64)
    if len(at.batch().views.all()) < 2:
        raise NotApplicable("the method takes one view")
    subject.train(at.plan)
    shift = torch.arange(BATCH).roll(BATCH // 2)
    pairs = [[at.loss(at.batch(i, partners=others), i) for i in range(200, 206)] for others in (None, shift)]
    same, different = (sum(losses) / len(losses) for losses in pairs)
    expect(
        same < different,
        f"after {LEARN} steps the loss is {same:.4g} for views of one image, {different:.4g} otherwise",
    )


@rule("method", cure="look for a gradient that is turned round, cut off or scaled to nothing on its way")
def a_small_step_lowers_the_loss(subject: MethodSubject) -> None:
    """A small step against the gradient lowers the loss of the same batch."""
    at = subject.ready()
    method, batch = at.method, at.batch(7, noise=0.5)
    start = copy.deepcopy(method.state_dict())
    losses = []
    for lr in (1e-1, 1e-2, 1e-3, 1e-4):
        method.load_state_dict(start)
        method.zero_grad()
        before = at.terms(batch)["loss"]
        backward(before)
        at.forget_pushed()
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=lr)
        after = at.loss(batch)
        if after < before.item():
            return
        losses.append(f"{before.item():.6g} -> {after:.6g} at lr {lr:g}")
    fail("the loss rises: " + ", ".join(losses))


@rule(
    "method",
    cure="put the formula into a akssl_core.Loss, or call .float() and torch.autocast(..., enabled=False) around it",
)
def loss_computes_in_float32(subject: MethodSubject) -> None:
    """Under mixed precision everything behind the layers, the loss above all, computes in float32."""
    at = subject.ready()
    with _exact_layers(at.method):
        exact = at.loss(at.batch())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = at.loss(at.batch())
    gap = abs(mixed - exact) / max(abs(exact), 1e-3)
    expect(gap < EXACT, f"with exact layers the loss is {exact:.6g} in float32 and {mixed:.6g} under bf16 autocast")


@contextmanager
def _exact_layers(method: Method) -> Iterator[None]:
    """The layers of torch compute in float32 whatever autocast does around them."""
    networks = [method, *(part.module for part in method.modules() if isinstance(part, Frozen))]
    parts = [part for network in networks for part in network.modules()]
    layers = [m for m in parts if type(m).__module__.startswith("torch.nn.modules") and m._parameters]

    def exact(layer: nn.Module) -> Any:
        inner = type(layer).forward

        def forward(x: Tensor, *rest: Any, **named: Any) -> Any:
            with torch.autocast("cpu", enabled=False):
                return inner(layer, x.float(), *rest, **named)

        return forward

    for layer in layers:
        layer.forward = exact(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@rule("method", cure="say uses_labels = True where step reads batch.label, and nowhere else")
def labels_are_read_as_told(subject: MethodSubject) -> None:
    """Labels reach the loss of a method that says `uses_labels`, and of no other; an image may be without one."""
    at = subject.ready()
    known, told = torch.arange(BATCH) % at.plan.facts.classes, subject.component.uses_labels
    labels = (known, known.roll(1)) if told else (None, known, known * 0)
    found = [at.loss(replace(at.batch(), label=label)) for label in labels]
    losses = " and ".join(f"{loss:.6g}" for loss in found)
    expect(told or len(set(found)) == 1, f"the loss follows labels, and nothing says uses_labels: {losses}")
    expect(
        not told or len(set(found)) == 2, f"the method says uses_labels, and other labels give the same loss: {losses}"
    )
    if not told:
        return
    images, known = toy_images()
    given = {"data": (images, known.where(torch.arange(len(known)) % 2 == 0, -1)), "train": {"steps": 2}}
    subject.trains("labels of which half are missing (-1)", refused=AksslError, cure=UNLABELLED, **given)


@rule("method", cure="move state in after_step alone, and let the engine call it")
def state_moves_once_a_step(subject: MethodSubject) -> None:
    """Slow state moves once an optimizer step, however many micro-batches the step has."""
    micro = 2 if subject.component.accumulates else 1
    plan = subject.plan(train={"accumulate": micro, "steps": 3}, batch_size=micro * BATCH)
    calls: dict[str, list[Now]] = {}
    for name, module in plan.method.named_modules():
        if isinstance(module, StepState | Method):
            noted, inner = calls.setdefault(name or type(module).__name__, []), module.after_step
            object.__setattr__(
                module, "after_step", lambda now, noted=noted, inner=inner: (noted.append(now), inner(now))
            )
    subject.train(plan)
    wrong = {name: len(noted) for name, noted in calls.items() if len(noted) != 3}
    expect(not wrong, f"after_step in 3 steps of {micro} micro-batches: {wrong}")

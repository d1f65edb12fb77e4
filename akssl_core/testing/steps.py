"""Checks of a method's step: what the loss depends on, where gradients go, ranks and number formats."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import dist
from ..data import Batch, Views
from ..method import Method
from ..nn import EMA, StepState
from ..optim import parameter_groups
from ..running.plan import Plan
from ..schedule import Now
from .check import NotApplicable, expect, fail, rule
from .ranks import ThreadRank, on_ranks
from .subject import BATCH, MethodSubject, backward, middle, seeded_step

LEARN = 24  # steps after which views of one image must attract each other
CLOSE = 1e-3  # relative difference that float32 sums in another order may grow to in three steps
EXACT = 1e-4  # relative difference of a loss that does not compute in half precision


def _moved(method: Method, now: Now) -> None:
    """Let all slow state move, as the engine does after a step."""
    for module in method.modules():
        if isinstance(module, StepState | Method):
            module.after_step(now)


def _step(subject: MethodSubject, plan: Plan, batch: Batch, seed: int = 0) -> float:
    """The loss of a batch, without gradients and in training mode."""
    plan.method.train()
    with torch.no_grad():
        return float(seeded_step(plan.method, batch, middle(plan), seed)["loss"])


@rule(
    "method",
    cure="return {'loss': loss, ...} with loss.ndim == 0 from step, computed in float32 and connected to the backbone",
)
def terms_are_scalars(subject: MethodSubject) -> None:
    """A step returns a scalar float32 'loss' that can be minimised, and scalar terms beside it."""
    plan = subject.plan()
    terms = seeded_step(plan.method.train(), subject.batch(plan), middle(plan))
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
    plan = subject.plan()
    method, now = plan.method.train(), middle(plan)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    waiting = {name for name, p in method.named_parameters() if p.requires_grad}
    for step in range(3):  # a layer that starts at zero lets gradients through from the second step on
        optimizer.zero_grad()
        backward(seeded_step(method, subject.batch(plan, step), now)["loss"])
        for name, p in method.named_parameters():
            if p.grad is not None:
                expect(bool(p.grad.isfinite().all()), f"the gradient of {name} is not finite")
                if p.grad.abs().max() > 0:
                    waiting.discard(name)
        optimizer.step()
        _moved(method, now)
    expect(not waiting, f"no gradient in three steps: {_few(sorted(waiting))}")


@rule("method", cure="hold a target in akssl_core.nn.EMA, and compute it under torch.no_grad() or detach it")
def targets_get_no_gradient(subject: MethodSubject) -> None:
    """Targets, queues and centres get no gradient, and no optimizer ever moves them."""
    plan = subject.plan()
    method = plan.method.train()
    backward(seeded_step(method, subject.batch(plan), middle(plan))["loss"])
    slow = {id(p) for module in method.modules() if isinstance(module, EMA) for p in module.parameters()}
    for name, p in method.named_parameters():
        expect(p.requires_grad or p.grad is None, f"{name} is frozen and got a gradient")
        expect(id(p) not in slow or not p.requires_grad, f"{name} belongs to a slow copy and is trained")
    rates: Any = plan.spec.optimizer.config
    groups = parameter_groups(method, method.param_rules(), rates)
    trained = [name for group in groups for name in group["names"]]
    expect(len(trained) == len(set(trained)), f"in two groups: {_few(_twice(trained))}")


@rule("method", cure="use each view of batch.views; look for one that is encoded twice in place of another")
def every_view_matters(subject: MethodSubject) -> None:
    """The loss depends on every view that the method asks for."""
    plan = subject.plan()
    batch, other = subject.batch(plan, 0), subject.batch(plan, 100)
    before = _step(subject, plan, batch)
    for name, group in batch.views.items():
        for i in range(len(group)):
            views = Views({key: list(value) for key, value in batch.views.items()})
            views[name][i] = other.views[name][i]
            after = _step(subject, plan, Batch(views, batch.index))
            expect(abs(after - before) > 1e-7 * max(1.0, abs(before)), f"view {i} of '{name}' changes nothing")


@rule(
    "method",
    cure="look for a sign (minimise the distance, maximise the likeness), or for targets that belong to other rows",
)
def views_of_one_image_attract(subject: MethodSubject) -> None:
    """After a few steps, views of one image give a lower loss than views of different images."""
    plan = subject.plan(train={"steps": LEARN, "log_every": LEARN}, epochs=LEARN * BATCH // 64)
    if sum(len(group.transforms) for group in plan.augmentation.groups()) < 2:
        raise NotApplicable("the method takes one view")
    subject.train(plan)
    shift = torch.arange(BATCH).roll(BATCH // 2)
    pairs = [
        [_step(subject, plan, subject.batch(plan, seed, partners=partners), seed) for seed in range(200, 206)]
        for partners in (None, shift)
    ]
    same, different = (sum(losses) / len(losses) for losses in pairs)
    expect(
        same < different,
        f"after {LEARN} steps the loss is {same:.4g} for views of one image, {different:.4g} otherwise",
    )


@rule("method", cure="look for a gradient that is turned round, cut off or scaled to nothing on its way")
def a_small_step_lowers_the_loss(subject: MethodSubject) -> None:
    """A small step against the gradient lowers the loss of the same batch."""
    plan = subject.plan()
    method, batch, now = plan.method.train(), subject.batch(plan, 7, noise=0.5), middle(plan)
    start = copy.deepcopy(method.state_dict())
    losses = []
    for lr in (1e-1, 1e-2, 1e-3, 1e-4):
        method.load_state_dict(start)
        method.zero_grad()
        before = seeded_step(method, batch, now)["loss"]
        backward(before)
        _forget_pushed(method)
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=lr)
        after = _step(subject, plan, batch)
        _forget_pushed(method)
        if after < before.item():
            return
        losses.append(f"{before.item():.6g} -> {after:.6g} at lr {lr:g}")
    fail("the loss rises: " + ", ".join(losses))


@rule(
    "method",
    cure="compare rows of all ranks: akssl_core.dist.gather for rows, dist.mean for statistics, inside the loss",
)
def two_processes_are_one(subject: MethodSubject) -> None:
    """Two processes with half of the batch each give the loss, gradients and state of one with all of it."""
    plan = subject.plan()
    method = plan.method.train()
    if not method.shared_batch_norm:
        _still_norms(method)
    batches = _batches_without_draws(subject, plan, method)
    copies = [copy.deepcopy(method) for _ in range(2)]
    whole = _several_steps(method, batches, middle(plan))

    def of_rank(rank: ThreadRank) -> dict[str, Tensor]:
        with dist.shared_statistics(copies[rank.rank]):
            return _several_steps(copies[rank.rank], [_half(batch, rank.rank) for batch in batches], middle(plan))

    halves = on_ranks(2, of_rank)
    mean = {
        name: (halves[0][name] + halves[1][name]) / 2 if name.startswith("loss") else halves[0][name] for name in whole
    }
    _expect_close(mean, whole, "between one process and two")


@rule("method", cure="say accumulates = False, the default, where rows of a batch are compared with each other")
def micro_batches_are_one_batch(subject: MethodSubject) -> None:
    """A method that says `accumulates` has the loss, gradients and state of the whole batch in two micro-batches."""
    plan = subject.plan()
    method = _still_norms(plan.method.train())
    if not method.accumulates:
        raise NotApplicable("the method does not say accumulates = True, so train.accumulate is refused")
    batches = _batches_without_draws(subject, plan, method)
    parts = copy.deepcopy(method)
    whole = _several_steps(method, batches, middle(plan))
    _expect_close(
        _several_steps(parts, batches, middle(plan), micro=2), whole, "between one batch and two micro-batches"
    )


def _batches_without_draws(subject: MethodSubject, plan: Plan, method: Method) -> list[Batch]:
    """Batches for a comparison of layouts, which a step that draws random numbers cannot pass."""
    batches = [subject.batch(plan, seed) for seed in range(3)]
    start = copy.deepcopy(method.state_dict())
    first, second = (seeded_step(method, batches[0], middle(plan), seed)["loss"].item() for seed in (0, 1))
    method.load_state_dict(start)
    _forget_pushed(method)
    if first != second:
        raise NotApplicable("the step draws random numbers, which differ between layouts")
    return batches


def _expect_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    for name, expected in wanted.items():
        gap = float((found[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3))
        expect(gap < CLOSE, f"{name} differs by {gap:.2g} of its size {where}")


def _half(batch: Batch, which: int) -> Batch:
    """The first or the second half of a batch."""
    share = slice(which * len(batch) // 2, (which + 1) * len(batch) // 2)
    views = Views({name: [view[share] for view in group] for name, group in batch.views.items()})
    return Batch(views, batch.index[share])


def _several_steps(method: Method, batches: Sequence[Batch], now: Now, *, micro: int = 1) -> dict[str, Tensor]:
    """Losses, gradients and state of some steps in one or two micro-batches, gradients averaged as DDP does."""
    found = {}
    for i, batch in enumerate(batches):
        method.zero_grad()
        losses = []
        for part in [batch] if micro == 1 else [_half(batch, 0), _half(batch, 1)]:
            losses.append(method(part, now)["loss"] / micro)
            backward(losses[-1])
        found[f"loss of step {i}"] = torch.stack(losses).sum().detach()
        with torch.no_grad():
            for name, p in method.named_parameters():
                if p.grad is not None:
                    p.grad = dist.mean(p.grad)
                    found[f"gradient of {name} in step {i}"] = p.grad.clone()
                    p.sub_(p.grad / p.grad.norm().clamp(min=1), alpha=0.05)
        _moved(method, now)
    return found | {f"state {n}": t.detach().clone() for n, t in method.state_dict().items() if t.is_floating_point()}


def _still_norms(method: Method) -> Method:
    """The method with batch norms that use fixed statistics: those of a half batch are others, and no fault."""
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return method


def _forget_pushed(method: Method) -> None:
    """Drop what a forward pass has pushed into queues and centres, as an evaluation would."""
    for module in method.modules():
        for value in vars(module).values() if isinstance(module, StepState) else ():
            if isinstance(value, list):
                value.clear()


@rule(
    "method",
    cure="put the formula into a akssl_core.Loss, or call .float() and torch.autocast(..., enabled=False) around it",
)
def loss_computes_in_float32(subject: MethodSubject) -> None:
    """Under mixed precision everything behind the layers, the loss above all, computes in float32."""
    plan = subject.plan()
    method, batch, now = plan.method.train(), subject.batch(plan), middle(plan)
    with torch.no_grad(), _exact_layers(method):
        exact = float(seeded_step(method, batch, now)["loss"])
        _forget_pushed(method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = float(seeded_step(method, batch, now)["loss"])
    gap = abs(mixed - exact) / max(abs(exact), 1e-3)
    expect(gap < EXACT, f"with exact layers the loss is {exact:.6g} in float32 and {mixed:.6g} under bf16 autocast")


@contextmanager
def _exact_layers(method: Method) -> Iterator[None]:
    """The layers of torch compute in float32 whatever autocast does around them."""
    layers = [m for m in method.modules() if type(m).__module__.startswith("torch.nn.modules") and m._parameters]

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


@rule("method", cure="do not read batch.label in step")
def labels_are_never_read(subject: MethodSubject) -> None:
    """Labels never reach the loss: without them, with them and with wrong ones it is the same."""
    if subject.component.uses_labels:
        raise NotApplicable("the method says that it reads labels (uses_labels)")
    plan = subject.plan()
    method, batch, now = plan.method.train(), subject.batch(plan), middle(plan)
    found = []
    with torch.no_grad():
        for label in (None, torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH)):
            found.append(float(seeded_step(method, Batch(batch.views, batch.index, label), now)["loss"]))
            _forget_pushed(method)
    expect(
        len(set(found)) == 1, f"the loss is {found[0]:.6g} without labels, {found[1]:.6g} and {found[2]:.6g} with some"
    )


@rule("method", cure="move state in after_step alone, and let the engine call it")
def state_moves_once_a_step(subject: MethodSubject) -> None:
    """Slow state moves once an optimizer step, however many micro-batches the step has."""
    micro = 2 if subject.component.accumulates else 1
    plan = subject.plan(train={"accumulate": micro, "steps": 3}, batch_size=micro * BATCH)
    calls: dict[str, int] = {}
    for name, module in plan.method.named_modules():
        if isinstance(module, StepState | Method):
            _count(module, name or type(module).__name__, calls)
    subject.train(plan)
    wrong = {name: count for name, count in calls.items() if count != 3}
    expect(not wrong, f"after_step in 3 steps of {micro} micro-batches: {wrong}")


def _count(module: Any, name: str, calls: dict[str, int]) -> None:
    inner = module.after_step
    calls[name] = 0

    def counting(now: Now) -> None:
        calls[name] += 1
        inner(now)

    object.__setattr__(module, "after_step", counting)


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _few(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more

"""Checks of losses: known values, float32, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import AksslError
from ..loss import KnownValue
from .check import NotApplicable, expect, rule
from .setting_checks import varied
from .subject import ComponentSubject, backward

STEP = 1e-2  # by which an argument moves to find a slope
SLOPE = 0.05  # relative difference of a slope that float32 and the curvature of a loss allow


def _known(subject: ComponentSubject) -> tuple[KnownValue, ...]:
    known = tuple(subject.component.known_values())
    if not known:
        raise NotApplicable("the loss declares no known_values()")
    return known


def _each(args: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The arguments of a call with every tensor of floats changed."""
    if isinstance(args, Tensor):
        return change(args) if args.is_floating_point() else args
    return type(args)(_each(item, change) for item in args) if isinstance(args, list | tuple) else args


def _noisy(args: Any, seed: int = 0) -> Any:
    """The arguments with noise, so that nothing is at an exact minimum."""
    generator = torch.Generator().manual_seed(seed)
    return _each(args, lambda x: x + 0.1 * torch.rand(x.shape, generator=generator))


def _leaves(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _each(args, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


@rule(
    "loss",
    cure="compare sign, factors, means and masks with the paper's equation; declare known_values() if there are none",
)
def known_values_are_met(subject: ComponentSubject) -> None:
    """The loss has the values that follow from its formula by hand."""
    for number, known in enumerate(_known(subject)):
        got = float(subject.build(**known.settings)(*known.args))
        gap = abs(got - known.value)
        expect(gap <= known.tolerance, f"known value {number}: {got:.7g} instead of {known.value:.7g}")


@rule("loss", cure="derive from akssl_core.Loss and define forward, which is called in float32")
def loss_computes_in_float32(subject: ComponentSubject) -> None:
    """The loss computes in float32, whatever autocast and its inputs are."""
    known = _known(subject)[0]
    args = _noisy(known.args)
    half = _each(args, Tensor.bfloat16)
    exact = float(subject.build(**known.settings)(*_each(half, Tensor.float)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = subject.build(**known.settings)(*half)
    expect(mixed.dtype == torch.float32, f"under autocast the loss is {mixed.dtype}")
    gap = abs(float(mixed) - exact)
    expect(gap <= 1e-5 * max(abs(exact), 1.0), f"{float(mixed):.7g} under autocast, {exact:.7g} in float32")


@rule("loss", cure="detach targets alone; guard roots and divisions by zero")
def gradients_are_finite(subject: ComponentSubject) -> None:
    """At least one argument gets a gradient, and every gradient is finite, at exact matches too."""
    for known in _known(subject):
        for args in (known.args, _noisy(known.args)):
            fresh = _copies(args)
            loss = subject.build(**known.settings)(*fresh)
            expect(loss.ndim == 0 and bool(loss.isfinite()), f"the loss is {loss}")
            expect(loss.requires_grad, "no argument gets a gradient")
            loss.backward()
            grads = [leaf.grad for leaf in _leaves(fresh) if leaf.grad is not None]
            expect(all(bool(grad.isfinite().all()) for grad in grads), "a gradient is not finite")
    expect(any(float(grad.abs().max()) > 0 for grad in grads), "every gradient is zero")


def _copies(args: Any) -> Any:
    """The arguments with tensors that collect gradients."""
    return _each(args, lambda x: x.detach().clone().requires_grad_())


@rule(
    "loss",
    cure="detach whole arguments that are targets, nothing else, and gather with akssl_core.dist.gather; a loss that "
    "detaches a part of an argument on purpose says partly_detached = True",
)
def gradients_are_those_of_the_formula(subject: ComponentSubject) -> None:
    """The gradient of every argument that gets one is the slope of the loss, found by moving the argument a little."""
    known = _known(subject)
    if subject.component.partly_detached:
        raise NotApplicable("the loss detaches a part of an argument on purpose (partly_detached)")
    for number, one in enumerate(known):
        loss, args = subject.build(**one.settings), _copies(_noisy(one.args, seed=7))
        backward(loss(*args))
        for place, leaf in enumerate(_leaves(args)):
            if leaf.grad is None or not leaf.grad.abs().max() > 0:
                continue  # a target
            slope, expected = _slope(loss, args, leaf), (leaf.grad * _direction(leaf)).sum().item()
            allowed = SLOPE * max(abs(slope), abs(expected), 0.01 * leaf.grad.norm().item()) + 1e-4
            expect(
                abs(slope - expected) <= allowed,
                f"known value {number} with noise, tensor {place}: the loss changes by {slope:.4g} along a direction "
                f"in which its gradient says {expected:.4g}",
            )


def _direction(leaf: Tensor) -> Tensor:
    """A fixed random direction of unit length."""
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3))
    unit: Tensor = direction / direction.norm()
    return unit


def _slope(loss: Any, args: Any, leaf: Tensor) -> float:
    """How fast the loss changes when one argument moves along its direction."""
    values: list[float] = []
    with torch.no_grad():
        for sign in (1, -1):
            leaf.add_(_direction(leaf), alpha=sign * STEP)
            values.append(loss(*args).item())
            leaf.sub_(_direction(leaf), alpha=sign * STEP)
    return (values[0] - values[1]) / (2 * STEP)


@rule("loss", cure="use the setting in forward, or remove it")
def every_setting_acts(subject: ComponentSubject) -> None:
    """Every setting changes the loss."""
    known = _known(subject)
    for name, candidates in varied(subject):
        idle = [_same_loss(subject, known, name, value) for value in candidates]
        expect(False in idle or (None in idle and True not in idle), f"no other value of '{name}' changes the loss")


def _same_loss(subject: ComponentSubject, known: tuple[KnownValue, ...], name: str, value: Any) -> bool | None:
    """Whether another value of a setting leaves the loss as it is; None where it is refused."""
    try:
        other = subject.build(**{name: value})
    except AksslError:
        return None
    usual = subject.build()
    return all(float(usual(*_noisy(k.args))) == float(other(*_noisy(k.args))) for k in known)

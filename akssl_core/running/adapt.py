"""Going on from weights with images of one's own, and the best of what there was, what was trained, and between."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backbone import Backbone, TokenBackbone, WrappedBackbone
from ..config.schema import validate
from ..errors import ConfigError
from ..method import Method
from ..plugins.first_party import TO_ADAPT, TO_ADAPT_TOKENS, install
from ..plugins.manager import Plugins, installed
from ..settings import Given, merged, table_of
from .launch import run_given
from .layers import collect
from .result import Result
from .start import begin


def adapt(
    source: str | Path,
    *,
    data: Any = None,
    method: str | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    budget: str | float | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: str | None = None,
    report: bool = True,
    plugins: Plugins | None = None,
    **settings: Any,
) -> Result:
    """Go on training from weights with other images, and give back what is surely better than they were, or them.

    A run with `start=source` and `start.keep=best`. Some images are held out of training; by them the weights at the
    start, the trained ones and mixtures of both (WiSE-FT, arXiv 2109.01903) are compared. `result.adaptation` is the
    evidence, and `adaptation.json` in the run folder.

    Args:
        source: a run folder, a `.safetensors` file, or the name of a backbone that has published weights.
        data: the images to adapt to, as `run` takes them.
        method: how to train. Default: the method that trained the weights, else one that suits their network.
        out: the run folder. Default: a new one under `runs/`.
        budget: the time of all training steps, as for `run`.
        config: a YAML file or a table with any of the settings of `run`.
        overwrite: replace a run that `out` already holds.
        resume: "auto": go on with the run that `out` already holds, if it is the one asked for.
        report: write report.html.
        plugins: another plugin manager than the process-wide one.
        **settings: any other setting of `run`.

    Raises:
        AksslError: there are no such weights or data, or a setting is wrong; no folder is left behind.
    """
    plugins = plugins or installed()
    own = {**table_of("start", settings.get("start") or {}), "source": str(source)}
    given = collect(method, config, {**settings, "start": own, "data": data}, plugins)
    if not any("data" in layer for _, layer in given.layers):
        raise ConfigError("data: no images to adapt to were named. Give a folder or a source: --data DIR.")
    layers = [("rule: adapt gives back the best", {"start": {"keep": "best"}}), *given.layers]
    if not any("name" in table_of("method", layer.get("method") or {}) for _, layer in layers):
        name, reason = suited_method(given, plugins)
        layers.insert(0, (f"rule: {reason}", {"method": {"name": name}}))
    given = Given(layers, given.objects)
    return run_given(given, plugins, out=out, budget=budget, overwrite=overwrite, resume=resume, report=report)


def suited_method(given: Given, plugins: Plugins) -> tuple[str, str]:
    """The method to go on with from the weights of a request, and the reason.

    Raises:
        ConfigError: there are no such weights, or no method for them is installed.
    """
    begun, given = begin(given, plugins)
    assert begun is not None
    kind = _network(given, plugins)
    if begun.method and _serves(begun.method, kind, plugins):
        return begun.method, f"it trained the weights in {os.path.basename(begun.spec.source)}"
    tokens = issubclass(kind, TokenBackbone)
    names, network = (TO_ADAPT_TOKENS, "transformers") if tokens else (TO_ADAPT, "convolutions")
    for name in names:
        if _serves(name, kind, plugins):
            return name, f"the first installed of {', '.join(names)}, for {network}"
    raise ConfigError(f"method: none that suits {kind.name} is installed. Name one, or: {install(names[0])}.")


def _network(given: Given, plugins: Plugins) -> Any:
    """The class of the backbone that is asked for."""
    module = given.objects.get("backbone")
    if module is not None:
        return type(module) if isinstance(module, Backbone) else WrappedBackbone
    asked = merged(*({"backbone": layer["backbone"]} for _, layer in given.layers if "backbone" in layer))
    return plugins.get("backbone", asked["backbone"]["name"])


def _serves(name: str, backbone: Any, plugins: Plugins) -> bool:
    """Whether a method is installed, trains such a backbone and asks for no setting of its own."""
    if not plugins.provides("method", name):
        return False
    method: Any = plugins.get("method", name)
    assert issubclass(method, Method)
    try:
        validate(method.Config, {}, registry=plugins)
    except ConfigError:
        return False
    return issubclass(backbone, method.accepts) and not method.uses_labels

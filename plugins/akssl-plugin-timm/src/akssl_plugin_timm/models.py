"""From the name of a timm model to the component that builds it."""

from __future__ import annotations

import functools
import re
from difflib import get_close_matches

import timm

from akssl_core import Backbone, PluginError

from .backbone import TimmBackbone, TimmTokenBackbone, has_plain_tokens
from .build import accepted_by, sketch


def component(spelled: str) -> type[Backbone]:
    """The backbone of this name. Like all names, it is read without case, `-` and `_`.

    Raises:
        PluginError: timm has no such model, or no weights under such a tag.
    """
    return _component(exact_name(spelled))


@functools.cache
def _component(model: str) -> type[Backbone]:
    """One class a model, always the same. A sketch without weights says which kind of network it is."""
    network = sketch(model, {"num_classes": 0})
    base = TimmTokenBackbone if has_plain_tokens(network) else TimmBackbone
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    tokens = ", patch tokens that can be selected and masked" if base is TimmTokenBackbone else ""
    return type(
        f"Timm[{model}]",
        (base,),
        {
            "__doc__": f"{model} of timm: a {type(network).__name__}, {millions:.1f} M parameters{tokens}.",
            "__module__": base.__module__,
            "name": f"timm/{model}",
            "model": model,
            "accepted": accepted_by(type(network)),
        },
    )


def exact_name(spelled: str) -> str:
    """The model as timm spells it, with the tag of its weights where one was given (`resnet18.a1_in1k`)."""
    architecture, dot, tag = spelled.strip().partition(".")
    known = {_plain(name): name for name in timm.list_models()}
    name = known.get(_plain(architecture))
    if name is None:
        raise PluginError(_unknown(spelled, architecture, sorted(known.values())))
    if not dot:
        return name
    tagged = [full for full in timm.list_models(name, include_tags=True) if "." in full]
    for full in tagged:
        if _plain(full) == _plain(f"{name}.{tag}"):
            return full
    weights = ", ".join(f"'timm/{full}'" for full in tagged) or "none"
    raise PluginError(f"timm has no weights '{tag}' of {name}. It knows: {weights}.")


def _plain(name: str) -> str:
    """The form in which names are compared."""
    return re.sub(r"[-_ ]", "", name.lower())


def _unknown(spelled: str, architecture: str, known: list[str]) -> str:
    """What to say of a name that timm does not have."""
    current = timm.models.get_deprecated_models().get(architecture)
    if current:
        return f"no backbone named 'timm/{spelled}': timm calls it 'timm/{current}' now."
    near = [f"'timm/{name}'" for name in get_close_matches(architecture.lower(), known, n=3)]
    hint = f" Did you mean {' or '.join(near)}?" if near else " An example is 'timm/resnet18'."
    begin = re.match(r"[a-z]*", architecture.lower())
    pattern = f"*{begin[0]}*" if begin and near else "*"
    return (
        f"no backbone named 'timm/{spelled}'.{hint} timm {timm.__version__} has {len(known)} models; "
        f"list them with: python -c \"import timm; print(timm.list_models('{pattern}'))\""
    )

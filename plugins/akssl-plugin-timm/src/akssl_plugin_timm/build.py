"""Building a network of timm for the images of a run, and saying in plain words why that cannot be done."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from akssl_core import ConfigError, ImageSpec

# Arguments of timm that have a place of their own in a run, or would make something else than a backbone.
OWNED = {
    "checkpoint_path": "weights to start from are chosen by backbone.pretrained and the tag of the name",
    "drop_path_rate": "it is the setting backbone.drop_path",
    "features_only": "a backbone gives pooled features and its last map",
    "img_size": "it is train.image_size",
    "in_chans": "it follows the images",
    "num_classes": "a backbone has no classifier",
    "patch_size": "it is the setting backbone.patch_size",
    "pretrained": "it is the setting backbone.pretrained",
}
FOLLOWS = {"num_classes", "in_chans", "img_size", "dynamic_img_size", "dynamic_img_pad", "drop_path_rate"}
SETTING_OF = {"patch_size": "patch_size", "drop_path_rate": "drop_path", "global_pool": "pool"}
_UNEXPECTED = re.compile(r"unexpected keyword argument(?:\(s\))?:? \[?'(\w+)'")


def sketch(model: str, arguments: Mapping[str, Any]) -> Any:
    """The network without memory for weights, in a tenth of a second; draws nothing from torch's generator."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(model, **arguments)


def accepted_by(network: type[nn.Module]) -> frozenset[str]:
    """The keyword arguments of a network's constructor, and of those that it passes the rest on to."""
    names: set[str] = set()
    for owner in network.__mro__:
        parameters = inspect.signature(owner).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if owner is nn.Module or not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return frozenset(names)


def arguments_for(config: Any, image: ImageSpec, accepted: frozenset[str]) -> dict[str, Any]:
    """What timm's `create_model` is called with beside the name.

    A model that is made for one image size is made for this one, and for any other too where timm can do that.

    Raises:
        ConfigError: an option is not the user's to set here, or is set twice.
    """
    for key in config.options:
        if key in OWNED:
            raise ConfigError(f"backbone.options.{key}: leave it out; {OWNED[key]}.")
    if config.pool != "default" and "global_pool" in config.options:
        raise ConfigError("backbone.options.global_pool: set either this or backbone.pool.")
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": image.channels}
    if "img_size" in accepted:
        arguments["img_size"] = image.size
    for key in ("dynamic_img_size", "dynamic_img_pad"):  # views of any size, with zeros up to whole patches
        if key in accepted:
            arguments[key] = True
    if "drop_path_rate" in accepted or config.drop_path:  # some models of timm have a rate above 0 of their own
        arguments["drop_path_rate"] = config.drop_path
    if config.patch_size is not None:
        arguments["patch_size"] = config.patch_size
    if config.pool != "default":
        arguments["global_pool"] = config.pool
    return {**arguments, **config.options}


def build(model: str, arguments: Mapping[str, Any], *, pretrained: bool, accepted: frozenset[str]) -> Any:
    """The network, with random weights unless `pretrained`.

    Raises:
        ConfigError: timm refuses an argument, or the weights cannot be had.
    """
    try:
        if not pretrained:
            return timm.create_model(model, **arguments)
        sketch(model, arguments)  # what is wrong with the arguments shows before anything is fetched
    except Exception as error:  # the models of timm raise whatever they like
        raise _refused(model, arguments, error, accepted) from error
    return published(model, arguments)


def published(model: str, arguments: Mapping[str, Any]) -> Any:
    """The network with weights from the hub, or from its cache on this machine."""
    if not timm.models.is_model_pretrained(model):
        raise ConfigError(f"backbone.pretrained: timm has no weights for {model}. Set pretrained to false.")
    try:
        return timm.create_model(model, pretrained=True, **arguments)
    except Exception as error:  # of the network, of the hub's client, of a damaged file
        raise ConfigError(
            f"backbone.pretrained: the weights of {model} could not be loaded: {short(error)}. "
            "Check the connection, or name a file of them; to begin from random ones set pretrained to false."
        ) from error


def _refused(model: str, arguments: Mapping[str, Any], error: Exception, accepted: frozenset[str]) -> ConfigError:
    """Which setting timm did not take."""
    found = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    key = found[1] if found else ""
    if key in SETTING_OF:
        return ConfigError(f"backbone.{SETTING_OF[key]}: {model} of timm has no {key}. Leave this setting out.")
    if key in arguments:
        near = get_close_matches(key, sorted(accepted), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        known = ", ".join(sorted(accepted - OWNED.keys()))
        return ConfigError(f"backbone.options: {model} of timm has no argument '{key}'.{hint} It takes: {known}.")
    return unusable(model, arguments, error, accepted)


def unusable(model: str, arguments: Mapping[str, Any], error: Exception, accepted: frozenset[str]) -> ConfigError:
    """That the network cannot be made or run with these arguments, and what to change."""
    config = timm.get_pretrained_cfg(model)
    chosen = sorted(arguments.keys() - FOLLOWS)
    cures = [f"check what you chose for it ({', '.join(chosen)})"] if chosen else []
    if config and not isinstance(error, NotImplementedError | TypeError):  # those two have nothing to do with sizes
        cures.append(f"set image_size to {config.input_size[-1]}, for which it was made")
        cures += ["set backbone.patch_size to a smaller divisor of image_size"] if "patch_size" in accepted else []
    cures.append("choose another backbone")
    return ConfigError(
        f"backbone: timm.{call(model, arguments)} gives no backbone for these images: {short(error)}. "
        f"To mend it, {'; or '.join(cures)}."
    )


def call(model: str, arguments: Mapping[str, Any]) -> str:
    """The call that makes this network in timm alone."""
    return f"create_model({', '.join([repr(model), *(f'{key}={value!r}' for key, value in arguments.items())])})"


def short(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"

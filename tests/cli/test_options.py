"""Options of the command line are fields of the settings: one place for name, type, choices and meaning."""

from __future__ import annotations

import inspect
from typing import get_args

import click
import pytest

from akssl_core.cli.base import akssl
from akssl_core.config.schema import is_harmless
from akssl_core.plugins.manager import installed
from akssl_core.running.launch import run
from akssl_core.running.layers import check, collect, layer
from akssl_core.settings import FLAT, RunSpec, TrainSpec, flags

FIELDS = flags(RunSpec) | flags(TrainSpec)
TRAINING = ("run", "explain", "doctor", "sweep", "adapt")
NOT_THERE = {"sweep": {"seed", "devices"}, "adapt": {"start"}}


def options(command):
    return {option.name: option for option in akssl.commands[command].params if isinstance(option, click.Option)}


@pytest.mark.parametrize("command", TRAINING)
def test_every_flag_of_the_settings_is_an_option_with_its_meaning(command):
    found = options(command)
    for name in FIELDS.keys() - NOT_THERE.get(command, set()):
        assert found[name].help.partition("  [default: ")[0] == FIELDS[name].description
        assert found[name].default is None, "what is not given is left to rules and recipes"
    assert found["precision"].type.choices == get_args(TrainSpec.model_fields["precision"].annotation)
    assert found["stop_on_collapse"].is_flag


def test_the_function_says_the_same_of_its_keywords():
    said = " ".join(run.__doc__.split())
    for name in inspect.signature(run).parameters.keys() & (flags(TrainSpec).keys() | {"seed"}):
        assert f" {name}: {FIELDS[name].description}" in said


def test_flags_are_the_flat_keywords():
    assert set(FLAT) == flags(TrainSpec).keys()
    assert {"epochs", "steps", "batch_size", "image_size", "precision", "device", "devices", "workers"} <= set(FLAT)


@pytest.mark.parametrize(
    ("command", "out"), [("embed", "f.npz"), ("export", "f.onnx"), (("data", "prepare"), "f.safetensors")]
)
def test_overwrite_has_one_name_and_an_old_one_that_is_hidden(command, out):
    group, name = command if isinstance(command, tuple) else (None, command)
    found = (akssl.commands[group] if group else akssl).commands[name]
    names = {text: option for option in found.params for text in option.opts}
    assert not names["--overwrite"].hidden
    assert names["--force"].hidden
    assert names["--force"].name == names["--overwrite"].name == "overwrite"
    context = click.Context(found, info_name=name)
    assert "--force" not in found.get_help(context)


def test_both_names_replace_a_file(here):
    prepare = ("data", "prepare", "shapes", "--set", "data.size=16", "--set", "data.test_size=8", "--out")
    for again in ((), ("--force",), ("--overwrite",)):
        assert here(*prepare, "p.safetensors", *again)[0] == 0
    assert here(*prepare, "p.safetensors")[0] == 2


HARMLESS = {
    "callbacks", "data.path", "data.cache_gb", "data.max_unreadable", "evaluate.k", "evaluate.every",
    "train.epochs", "train.steps", "train.keep", "train.stop_on_collapse",
    "train.checkpoint_every", "train.log_every", "train.workers", "train.threads",
    "train.device", "train.devices", "train.strategy",
}  # fmt: skip


def test_what_a_run_can_be_resumed_with_is_said_by_the_fields():
    given = collect("simsiam", None, {"data": {"name": "folder", "path": "x"}}, installed())
    spec = check(layer(given, installed()), installed())
    assert {path for path in HARMLESS if not is_harmless(path, spec)} == set()
    for path in (
        "train.batch_size",
        "train.accumulate",
        "data.channels",
        "data",
        "method.out_dim",
        "optimizer.lr.start",
    ):
        assert not is_harmless(path, spec)
    assert not is_harmless("train.no_such.setting", spec)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "simsiam"), ("explain", "simsiam"), ("doctor", "simsiam"), ("resume", "x"), ("eval", "x"),
        ("sweep", "--methods", "simsiam", "--out", "s"), ("adapt", "x", "--data", "shapes"),
        ("embed", "x", "--out", "f.npz"),
        ("data", "prepare", "shapes", "--out", "f.safetensors"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
@pytest.mark.parametrize("value", ["2001-99-99", "[1", "{a: *b}", "!!python/object:os.system x"])
def test_values_that_are_none_are_wrong_input_everywhere(here, command, value):
    code, _, err = here(*command, "--set", f"train.epochs={value}")
    assert (code, "train.epochs" in err, "Traceback" in err) == (2, True, False)


def test_two_methods_are_one_too_many(here):
    code, _, err = here("explain", "simsiam", "--set", "method.name=byol")
    assert (code, "METHOD: 'simsiam' was named, and with --set 'byol'. Leave one out." in err) == (2, True), err


def test_what_differs_between_machines_is_a_flag_of_resume():
    from akssl_core.cli.runs import resume

    assert {"data", "devices", "workers"} <= {option.name for option in resume.params}

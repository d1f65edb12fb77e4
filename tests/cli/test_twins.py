"""Every command has a function in Python, and prints the text of what that returns."""

from __future__ import annotations

import pytest
from PIL import Image
from written_backbones import write_run

import akssl_core
from akssl_core.cli.base import akssl

NAMES = {"eval": "evaluate", "data": "prepare", "plugins": "methods"}
DATA = {"name": "shapes", "size": 32, "test_size": 16}
SIZES = ("--set", "data.size=32", "--set", "data.test_size=16")
SMALL = {"image_size": 16, "epochs": 1, "batch_size": 16, "precision": "fp32"}
FLAGS = tuple(word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value))


def test_every_command_has_a_twin():
    for command in akssl.commands:
        assert callable(getattr(akssl_core, NAMES.get(command, command))), command


TWINS = {
    "choose": (
        ("choose", "--methods", "simsiam", "--data", "shapes", *SIZES, *map(str, FLAGS), "--out", "ch"),
        lambda: akssl_core.choose("simsiam", data=DATA, out="ch", **SMALL),
    ),
    "report": (("report", "finished"), lambda: akssl_core.report("finished")),
    "compare": (
        ("compare", "finished", "finished", "--out", "c.html", "--overwrite"),
        lambda: akssl_core.compare("finished", "finished", out="c.html", overwrite=True),
    ),
    "eval": (("eval", "finished", "--labels", "0.5"), lambda: akssl_core.evaluate("finished", labels=0.5)),
    "export": (
        ("export", "finished", "--to", "safetensors", "--out", "e.safetensors", "--overwrite"),
        lambda: akssl_core.export("finished", "safetensors", "e.safetensors", overwrite=True),
    ),
    "publish": (
        ("publish", "vit", "--to", "p", "--overwrite"),
        lambda: akssl_core.publish("vit", "p", overwrite=True),
    ),
    "search": (
        ("search", "finished", "finished/q.png", "--k", "3", "--out", "s.html", "--overwrite"),
        lambda: akssl_core.search("finished", "finished/q.png", k=3, out="s.html", overwrite=True),
    ),
    "dedup": (
        ("dedup", "finished", "--out", "d.html", "--overwrite"),
        lambda: akssl_core.dedup("finished", out="d.html", overwrite=True),
    ),
    "resume": (("resume", "finished"), lambda: akssl_core.resume("finished")),
    "doctor": (("doctor", "finished"), lambda: akssl_core.doctor("finished")),
    "doctor of a method": (
        ("doctor", "simsiam", *FLAGS, *SIZES),
        lambda: akssl_core.doctor("simsiam", data={"size": 32, "test_size": 16}, **SMALL),
    ),
    "find": (("find", "dataset", "shapes"), lambda: akssl_core.find("dataset", "shapes")),
    "plugins show": (
        ("plugins", "show", "simsiam"),
        lambda: next(one for one in akssl_core.methods() if one.name == "simsiam"),
    ),
    "prepare": (
        ("data", "prepare", "shapes", *SIZES, "--out", "p.safetensors", "--overwrite"),
        lambda: akssl_core.prepare(DATA, "p.safetensors", overwrite=True),
    ),
    "explain": (
        ("explain", "simsiam", *FLAGS, *SIZES, "--seed", 3),
        lambda: akssl_core.explain(
            "simsiam", data={"size": 32, "test_size": 16}, seed=3, out="x", who="command line", **SMALL
        ),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_command_prints_the_text_of_its_twin(here, finished, name):
    arguments, twin = TWINS[name]
    Image.new("RGB", (16, 16), "red").save(finished / "q.png")
    write_run(finished.parent / "vit", "vit_micro")
    code, out, err = here(*arguments)
    assert code in ((0, 1) if "doctor" in name else (0,)), err  # 1: it has found something
    assert out == twin().text + "\n"


def test_texts_of_results_that_only_python_has(finished, tmp_path, monkeypatch, here):
    found = akssl_core.embed(finished)
    code, out, _ = here("embed", "finished", "--out", "f.npz")
    assert (code, out) == (0, f"f.npz: {found.text}\n")


def test_what_is_explained_can_be_asked_for():
    found = akssl_core.explain("simsiam", data=DATA, options={"out_dim": 24}, **SMALL)
    assert (found.settings["method.out_dim"], found.origins["method.out_dim"]) == (24, "user")
    assert found.origins["optimizer.name"] == "recipe 'default' of simsiam"
    assert found.spec.method.config.out_dim == 24
    assert dict(found.forecast)["training images"] == "32"
    assert found.notes


def test_findings_can_be_asked_for():
    found = akssl_core.doctor("simsiam", data=DATA, overwrite=True, **{**SMALL, "batch_size": 31})
    assert set(found.findings) == {"simsiam"}
    again = akssl_core.doctor(method={"name": "simsiam"}, data=DATA, **{**SMALL, "batch_size": 31})
    assert list(again.findings.values()) == list(found.findings.values())
    assert found.healthy == (not found.record())

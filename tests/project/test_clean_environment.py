"""What a stranger meets: wheels alone in an environment, the tutorial word by word, bad plugins beside good ones."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from clean_environment import ROOT, CleanEnvironment
from wheels import faults, not_working

from akssl_core.plugins.first_party import install

TUTORIAL = (ROOT / "docs" / "write_a_method.md").read_text()
SMALL = ("--image-size", "16", "--epochs", "1", "--set", "data.size=256", "--set", "data.test_size=64")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """An environment with the core and one method, installed from wheels."""
    made = CleanEnvironment(tmp_path_factory.mktemp("clean"))
    made.build(ROOT, ROOT / "plugins" / "akssl-plugin-swav")
    assert "akssl-core" in made.install("akssl-plugin-swav"), "the plugin brings the core"
    return made


def test_only_what_is_installed_is_there(clean):
    listed = json.loads(clean.run("akssl", "plugins", "--json").stdout)
    assert [record["name"] for record in listed] == ["swav"]
    where = clean.run("python", "-c", "import akssl_core; print(akssl_core.__file__)").stdout
    assert str(ROOT) not in where, "the repository is not on the path"
    done = clean.run("akssl", "run", "dino")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Install it with: {install('akssl-plugin-dino')}" in done.stderr


def test_what_make_wheels_builds_lacks_nothing_and_works(clean):
    sources = sorted(file.name.partition("-")[0] for file in clean.wheels.glob("*.tar.gz"))
    assert sources == ["akssl_core", "akssl_plugin_swav"]
    assert list(faults(clean.wheels)) == []
    assert list(not_working(clean, ["akssl-plugin-swav"])) == []


def test_the_installed_method_trains(clean):
    done = clean.run("akssl", "run", "swav", *SMALL, "--out", "swav-run")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((clean.folder / "swav-run" / "manifest.json").read_text())
    assert [(p["name"], p["status"], p["distribution"]) for p in manifest["plugins"]] == [
        ("swav", "ok", "akssl-plugin-swav")
    ]


# -- the tutorial ---------------------------------------------------------------------------------
def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


@pytest.fixture(scope="module")
def author(clean):
    """The folder in which a reader of the tutorial stands after its first two steps."""
    (command,) = blocks("bash")[0].splitlines()
    done = clean.run(*shlex.split(command))
    assert done.returncode == 0, done.stderr
    folder = clean.folder / "akssl-plugin-align-uniform"
    for block in blocks("python"):
        name, _, code = block.removeprefix("# ").partition("\n")
        assert (folder / name).exists(), f"the tutorial replaces {name}, which the scaffold has written"
        (folder / name).write_text(code)
    return folder


def test_the_tutorial_as_an_installed_wheel(clean, author):
    lines = blocks("bash")[1].splitlines()
    assert lines[:3] == ["cd akssl-plugin-align-uniform", "pip install -e .", "pytest"]
    clean.build(author)
    clean.install("akssl-plugin-align-uniform")
    assert clean.run("python", "-m", "pytest", "-q", cwd=author).returncode == 0
    for line in lines[3:]:
        words = shlex.split(line)
        small = (*SMALL, "--batch-size", "64") if words[1] == "run" else ()
        done = clean.run(*words, *small)
        assert done.returncode == 0, (line, done.stderr)
    listed = {record["name"] for record in json.loads(clean.run("akssl", "plugins", "--json").stdout)}
    assert "align-uniform" in listed
    checked = clean.run("akssl", "plugins", "check", "align-uniform").stdout
    assert "method align-uniform" in checked
    assert "loss align-uniform" in checked
    assert "0 failed" in checked


def test_the_tutorials_code_is_well_typed_and_tidy(author):
    tools = Path(sys.executable).parent
    source = author / "src"
    for command in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict", str(source)],
    ):
        env = {**os.environ, "MYPYPATH": str(ROOT)}  # mypy does not follow the import hook of an editable install
        words = [tools / command[0], *command[1:]]
        done = subprocess.run(words, capture_output=True, text=True, cwd=author, timeout=300, env=env)
        assert done.returncode == 0, done.stdout + done.stderr


# -- bad plugins ----------------------------------------------------------------------------------
GOOD = """
    from akssl_core import Method, hookimpl

    class Good(Method):
        name = "{name}"

        def step(self, batch, now):
            return {{}}

    @hookimpl
    def akssl_register(registry):
        registry.add(Good)
"""
BAD = {  # distribution -> (entry point, group, code)
    "pkg-raises": ("raises", "akssl.v1", "1 / 0"),
    "pkg-exits": ("exits", "akssl.v1", "import sys; sys.exit(3)"),
    "pkg-misspelt": ("misspelt", "akssl.v1", GOOD.format(name="misspelt").replace("akssl_register", "akssl_registre")),
    "pkg-stepless": ("stepless", "akssl.v1", GOOD.format(name="stepless").replace("def step", "def stop")),
    "pkg-future": ("future", "akssl.v2", "raise RuntimeError('never imported')"),
    "pkg-one": ("same", "akssl.v1", GOOD.format(name="same")),
    "pkg-two": ("same", "akssl.v1", GOOD.format(name="same")),
    "pkg-slow": ("slow", "akssl.v1", "import time; time.sleep(5)\n" + textwrap.dedent(GOOD.format(name="slow"))),
}
EXPECTED = {  # name -> (status, part of the reason, part of the cure)
    "raises": ("broken", "ZeroDivisionError", "pip install -U pkg-raises"),
    "exits": ("broken", "SystemExit: 3", "pip uninstall pkg-exits"),
    "misspelt": (
        "invalid",
        "Did you mean 'akssl_register'",
        "pip install -U pkg-misspelt",
    ),
    "stepless": ("invalid", "lacks step", "pip install -U pkg-stepless"),
    "future": ("other API", "made for API 2", install("akssl-core", "pkg-future", newer=True)),
    "same": ("clash", "pkg-one 1.0 and pkg-two 1.0", "uninstall all but one"),
    "slow": ("ok", "", ""),
    "swav": ("ok", "", ""),
}


@pytest.fixture(scope="module")
def crowded(clean):
    """The same environment with every kind of bad plugin."""
    for distribution, (name, group, code) in BAD.items():
        module = distribution.replace("-", "_")
        info = clean.site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (clean.site / f"{module}.py").write_text(textwrap.dedent(code))
    return clean


def test_every_bad_plugin_is_named_with_reason_and_cure(crowded):
    done = crowded.run("akssl", "plugins", "--check", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    for name, (status, reason, cure) in EXPECTED.items():
        row = rows[name]
        assert row["status"] == status, row
        assert reason in row["reason"], row
        assert cure in row["cure"], row
        assert (row["distribution"], row["version"]) != ("", "")
    assert float(rows["slow"]["seconds"]) >= 5


def test_make_wheels_tells_what_does_not_work(crowded):
    found = list(not_working(crowded, ["akssl-plugin-swav", "akssl-core"]))
    assert found[-1] == "akssl-core has no entry point"
    assert any(line.startswith("pkg-raises: broken: ZeroDivisionError: division by zero (") for line in found)
    assert not [fault for fault in found if fault.startswith(("akssl-plugin-swav", "pkg-slow"))]


def test_help_and_healthy_methods_import_no_bad_plugin(crowded):
    for arguments in (("--help",), ("plugins",), ("run", "swav", *SMALL, "--out", "beside")):
        done = crowded.run("python", "-X", "importtime", "-m", "akssl_core", *arguments)
        assert done.returncode == 0, done.stderr
        imported = {
            line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
        }
        assert not {name for name in imported if name.startswith("pkg_")}


def test_strict_mode_fails(crowded):
    done = crowded.run("akssl", "plugins", "--check", AKSSL_STRICT="1")
    assert done.returncode == 2
    assert "plugin 'exits'" in done.stderr


def test_a_bad_plugin_is_named_where_it_is_used(crowded):
    one_of_each = {status: (name, reason) for name, (status, reason, _) in EXPECTED.items()}
    for status in ("broken", "invalid", "clash", "other API"):
        name, reason = one_of_each[status]
        done = crowded.run("akssl", "run", name)
        assert done.returncode == 2
        assert reason.partition(":")[0] in done.stderr, done.stderr
        assert "Traceback" not in done.stderr

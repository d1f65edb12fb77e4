"""The mono-repo: every plugin is complete, named as promised, and installed by the development requirements."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import akssl_core
from akssl_core.plugins.first_party import METHODS, PROVIDERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no TOML reader of its own")

ROOT = Path(__file__).parents[2]
PLUGINS = sorted((ROOT / "plugins").glob("akssl-plugin-*"))


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())


def test_every_public_name_is_imported_on_first_use():
    assert len(set(akssl_core.__all__)) == len(akssl_core.__all__)
    assert {*akssl_core.__all__, "sklearn"} == {*akssl_core._ROOM_OF, *akssl_core._MODULES}
    assert all(getattr(akssl_core, name) is not None for name in akssl_core.__all__)


def test_development_requirements_name_the_core_first_and_every_plugin():
    lines = [line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-e .[dev,docs]", *(f"-e plugins/{folder.name}" for folder in PLUGINS)]


def test_the_core_is_what_the_contract_says():
    core = project(ROOT)["project"]
    assert core["name"] == "akssl-core"
    assert core["requires-python"] == ">=3.10"
    assert core["scripts"] == {"akssl": "akssl_core.cli:main"}
    names = {dependency.partition(">")[0] for dependency in core["dependencies"]}
    own = {"torch", "torchvision", "pluggy", "pydantic", "safetensors", "tqdm", "PyYAML", "click"}
    assert names == own | {"packaging", "typing_extensions"}


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda f: f.name)
def test_each_plugin_is_complete(folder):
    plugin = project(folder)
    assert plugin["project"]["name"] == folder.name
    core, *others = plugin["project"]["dependencies"]
    assert core == "akssl-core>=0.1,<0.2"
    assert not others or folder.name not in METHODS.values(), "a method needs the core alone"
    module = folder.name.replace("-", "_")
    provided = {name: owner for kind, table in PROVIDERS.items() if kind != "loss" for name, owner in table.items()}
    for name, value in plugin["project"]["entry-points"]["akssl.v1"].items():
        assert provided[name] == folder.name
        assert value.partition(".")[0] == module
    assert (folder / "src" / module / "py.typed").exists()
    assert (folder / "README.md").exists()
    assert list((folder / "tests").glob("test_*.py"))


def test_continuous_integration_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_checks_are_pinned_to_one_version_everywhere():
    pinned = [d for d in project(ROOT)["project"]["optional-dependencies"]["dev"] if d.startswith("ruff==")]
    assert f"rev: v{pinned[0].removeprefix('ruff==')}" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_every_file_of_the_core_is_in_its_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["akssl_core"]
    core = ROOT / "akssl_core"
    packaged = {file for pattern in patterns for file in core.glob(pattern)}
    others = {f for f in core.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert others == packaged

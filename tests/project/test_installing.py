"""One constant says whether our distributions are on a package index, and all words on installing them follow it."""

from __future__ import annotations

import re
import zipfile

import generate
import pytest
from clean_environment import ROOT
from click.testing import CliRunner
from wheels import faults

from akssl_core.cli import plugins as plugin_commands
from akssl_core.cli import runs
from akssl_core.cli.base import akssl
from akssl_core.errors import PluginError
from akssl_core.plugins import first_party, manager
from akssl_core.plugins.manager import Plugins
from akssl_core.plugins.scaffold import create
from akssl_core.plugins.table import plugin_table

CLONE = " (in a clone of the repository)"


@pytest.fixture(params=[False, True], ids=["from a clone", "on an index"])
def on_index(request, monkeypatch):
    """Both values of the constant."""
    monkeypatch.setattr(first_party, "ON_INDEX", request.param)
    return request.param


def command(name, on_index, upgrade=""):
    return f"pip install {upgrade}{name}" if on_index else f"pip install {upgrade}./plugins/{name}{CLONE}"


def test_messages_on_plugins_that_are_missing_follow(on_index, tmp_path, monkeypatch):
    for module in (manager, plugin_commands, runs):
        monkeypatch.setattr(module, "entries", list)
    with pytest.raises(PluginError) as missing:
        Plugins().get("method", "mocov2")
    assert str(missing.value).endswith(f"Install it with: {command('akssl-plugin-moco', on_index)}")
    with pytest.raises(PluginError, match=re.escape(f"that one: {command('akssl-plugin-moco', on_index)}")):
        create("moco", parent=tmp_path)
    wanted = command("akssl-plugin-simsiam", on_index)
    for words, said in ((["run"], f"Installed: none; {wanted}."), (["plugins"], f"Try: {wanted}")):
        assert said in " ".join(CliRunner().invoke(akssl, words).output.split())


def test_cures_follow_and_name_distributions_of_strangers_as_ever(on_index, tmp_path, monkeypatch):
    for name, owner, api in (("dino", "akssl-plugin-dino", 1), ("theirs", "pkg-theirs", 1), ("old", "pkg-old", 2)):
        info = tmp_path / f"{owner}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[akssl.v{api}]\n{name} = no_module_of_{name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins = Plugins()
    with pytest.raises(PluginError, match=re.escape(f"Mend it with: {command('akssl-plugin-dino', on_index, '-U ')}")):
        plugins.get("method", "dino")
    with pytest.raises(PluginError, match="Mend it with: pip install -U pkg-theirs$"):
        plugins.get("method", "theirs")
    cures = {row["name"]: row["cure"] for row in plugin_table(plugins)}
    assert cures["dino"] == f"{command('akssl-plugin-dino', on_index, '-U ')}, or pip uninstall akssl-plugin-dino"
    assert cures["theirs"] == "pip install -U pkg-theirs, or pip uninstall pkg-theirs"
    assert cures["old"] == ("pip install -U akssl-core pkg-old" if on_index else f"pip install -U . pkg-old{CLONE}")


def test_pages_follow(on_index):
    method, core = generate.installation("akssl-plugin-swav"), generate.installation("akssl-core")
    assert ("pip install akssl-plugin-swav" in method) == ("pip install akssl-core" in core) == on_index
    assert ("`pip install . ./plugins/akssl-plugin-swav`" in method) == ("`pip install .`" in core) == (not on_index)
    assert ("--find-links CLONE/dist akssl-plugin-swav" in method) == (not on_index)
    assert ("make wheels" in generate.core_for_authors()) == (not on_index)


def test_new_plugins_follow(on_index, tmp_path):
    folder = create("mine", parent=tmp_path)
    workflow = (folder / ".github" / "workflows" / "test.yml").read_text()
    texts = workflow + (folder / "README.md").read_text()
    assert ("pip install akssl-plugin-mine\n" in texts) == ("pip install -e '.[test]' ruff mypy\n" in texts) == on_index
    assert (workflow.count("--find-links wheels"), workflow.count("`make wheels`")) == (not on_index, not on_index)
    assert texts.count("--find-links wheels") == (0 if on_index else 3)


def test_every_plugin_has_a_folder_in_the_clone():
    for owner in {owner for table in first_party.PROVIDERS.values() for owner in table.values()}:
        assert (ROOT / "plugins" / owner / "pyproject.toml").exists()


def test_nothing_else_names_a_command_that_installs_ours():
    """Extras of the installed core are no such command: pip takes the core as it is, from no index."""
    own = {"release.md"}  # what is done once they are on an index
    pages = [page for folder in ("docs", "plugins") for page in (ROOT / folder).rglob("*.md") if page.name not in own]
    files = [ROOT / "README.md", *pages, *(ROOT / "akssl_core").rglob("*.py"), *(ROOT / "akssl_core").rglob("*.tmpl")]
    for file in files:
        text = re.sub(r"<!-- generated: \w+ -->\n.*?<!-- end -->", "", file.read_text(), flags=re.DOTALL)
        assert not re.search(r"pip install [^`\n]*akssl-(core(?!\[)|plugin-)", text), file
        assert "pypi.org/project/akssl" not in text, file


# -- the check of wheels --------------------------------------------------------------------------
GOOD = """Metadata-Version: 2.4
Name: pkg
Version: 1.0
Summary: Something
License-Expression: MIT
Description-Content-Type: text/markdown

# pkg
"""


def wheel(folder, metadata=GOOD, files=("pkg-1.0.dist-info/licenses/LICENSE", "pkg/py.typed")):
    """The faults of a wheel made of this."""
    with zipfile.ZipFile(folder / "pkg-1.0-py3-none-any.whl", "w") as packed:
        packed.writestr("pkg-1.0.dist-info/METADATA", metadata)
        for name in files:
            packed.writestr(name, "")
    return list(faults(folder))


def test_wheels_that_lack_something_are_refused(tmp_path):
    name = "pkg-1.0-py3-none-any.whl"
    assert wheel(tmp_path) == [f"{name} lacks its sources beside it"]
    (tmp_path / "pkg-1.0.tar.gz").touch()
    assert wheel(tmp_path) == []
    assert wheel(tmp_path, files=()) == [f"{name} lacks its licence", f"{name} lacks py.typed"]
    assert wheel(tmp_path, GOOD.replace("Summary: Something\n", "")) == [f"{name} lacks a summary"]
    assert wheel(tmp_path, GOOD.replace("markdown", "plain")) == [f"{name} lacks a description in Markdown"]
    (fault,) = wheel(tmp_path, GOOD.replace("Version: 1.0", "Version: first"))
    assert "'first' is invalid for 'version'" in fault

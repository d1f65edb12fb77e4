"""Discovery by metadata, loading one plugin, and what a bad one may not do to the others."""

from __future__ import annotations

import re
import sys
import textwrap

import pytest

from akssl_core.config.registry import Registry
from akssl_core.config.schema import Component, Schema
from akssl_core.errors import ConfigError, PluginError
from akssl_core.examining import examine_install
from akssl_core.hookspecs import hookimpl
from akssl_core.plugins import manager as room
from akssl_core.plugins.first_party import install
from akssl_core.plugins.installed import entries
from akssl_core.plugins.lookup import build, find
from akssl_core.plugins.manager import Plugins
from akssl_core.plugins.table import plugin_table

GOOD = """
    from akssl_core import Component, Schema
    from akssl_core.hookspecs import hookimpl

    class {cls}(Component):
        '''A component of a test.'''
        kind = "callback"
        name = "{name}"
        Config = Schema

    @hookimpl
    def akssl_register(registry):
        registry.add({cls})
"""


def good(name):
    return GOOD.format(cls=name.title().replace("-", ""), name=name)


def ours(names):
    return [e for e in entries() if e.name in names]


def test_entries_come_from_metadata_and_import_nothing(site):
    module = site("pkg-alpha", "alpha", "raise RuntimeError('imported')")
    (entry,) = ours({"alpha"})
    assert (entry.distribution, entry.version, entry.api, entry.status) == ("pkg-alpha", "1.0", "1", "installed")
    assert module not in sys.modules


def test_getting_one_component_imports_its_plugin_alone(site):
    site("pkg-alpha", "alpha", good("alpha"))
    other = site("pkg-beta", "beta", good("beta"))
    assert Plugins().get("callback", "ALPHA").name == "alpha"
    assert other not in sys.modules


def test_a_component_of_another_name_is_found_in_the_other_plugins(site):
    site("pkg-alpha", "alpha", good("hidden"))
    assert Plugins().get("callback", "hidden").name == "hidden"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
        (good("bad").replace("akssl_register", "akssl_registre"), "akssl_registre"),
        (good("bad").replace("(registry)", "(registry, colour)"), "colour"),
        (good("bad") + "        registry.add(int)\n", "not a component"),
        (good("bad").replace("    name = ", "    title = "), "no name"),
    ],
    ids=["import", "exit", "raise", "misspelt hook", "unknown argument", "not a component", "no name"],
)
def test_a_bad_plugin_hurts_itself_alone_and_is_named_where_it_is_used(site, code, cause):
    site("pkg-bad", "bad", code)
    site("pkg-good", "good", good("good"))
    manager = Plugins()
    assert manager.get("callback", "good").name == "good"
    with pytest.raises(PluginError) as caught:
        manager.get("callback", "bad")
    assert "pkg-bad 1.0 is installed but did not load" in str(caught.value)
    assert cause in str(caught.value)
    assert "pip install -U pkg-bad" in str(caught.value)
    assert manager.registry.look("callback", "bad") is None, "what it had added is taken back"


def test_strict_mode_fails_at_once(site, monkeypatch):
    monkeypatch.setenv("AKSSL_STRICT", "1")
    site("pkg-bad", "bad", "1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        Plugins().load_all()


def test_two_distributions_with_one_name_are_a_clash_that_names_both(site):
    site("pkg-one", "same", good("same"))
    site("pkg-two", "same", good("same"))
    assert {e.status for e in ours({"same"})} == {"clash"}
    with pytest.raises(PluginError, match=r"claimed by pkg-one 1\.0 and pkg-two 1\.0"):
        Plugins().get("callback", "same")


def test_stale_metadata_of_one_distribution_is_no_clash(site):
    site("pkg-one", "same", good("same"), version="1.0")
    site("pkg_one", "same", good("same"), version="1.1")
    assert [e.status for e in ours({"same"})] == ["installed"]


def test_a_plugin_for_another_api_is_listed_and_not_imported(site):
    module = site("pkg-new", "future", "raise RuntimeError", group="akssl.v2")
    (entry,) = ours({"future"})
    assert (entry.status, entry.reason) == ("other API", "made for API 2; this core offers 1")
    with pytest.raises(PluginError, match="made for API 2"):
        Plugins().get("method", "future")
    assert module not in sys.modules


def test_the_environment_chooses_which_plugins_load(site, monkeypatch):
    site("pkg-alpha", "alpha", good("alpha"))
    site("pkg-beta", "beta", good("beta"))
    monkeypatch.setenv("AKSSL_PLUGINS", "alpha")
    assert {e.name: e.status for e in ours({"alpha", "beta"})} == {"alpha": "installed", "beta": "blocked"}
    with pytest.raises(PluginError, match="not named in AKSSL_PLUGINS"):
        Plugins().get("callback", "beta")
    monkeypatch.setenv("AKSSL_PLUGINS", "")
    assert {e.status for e in ours({"alpha", "beta"})} == {"blocked"}


def test_tracing_tells_what_is_loaded(site, monkeypatch, capsys):
    monkeypatch.setenv("AKSSL_TRACE", "1")
    site("pkg-alpha", "alpha", good("alpha"))
    Plugins().get("callback", "alpha")
    assert "loading alpha from pkg-alpha 1.0" in capsys.readouterr().err


def test_a_family_of_methods_shares_one_module(site):
    code = good("one") + GOOD.format(cls="Two", name="two").replace("def akssl_register", "def unused")
    module = site("pkg-family", "one", code.replace("registry.add(One)", "registry.add(One); registry.add(Two)"))
    site("pkg-family", "two", "", module=module)
    code_file = sys.path[0] + f"/{module}.py"
    text = textwrap.dedent(good("one")) + textwrap.dedent(
        """
        class Two(One):
            name = "two"
        """
    )
    with open(code_file, "w") as file:
        file.write(text.replace("registry.add(One)", "registry.add(One); registry.add(Two)"))
    manager = Plugins()
    assert manager.get("callback", "two").name == "two"
    assert manager.get("callback", "one").name == "one"
    assert manager.failures == {}


def test_missing_first_party_methods_name_their_package(monkeypatch):
    monkeypatch.setattr(room, "entries", list)
    with pytest.raises(PluginError, match=re.escape(f"Install it with: {install('akssl-plugin-moco')}")):
        Plugins().get("method", "MoCo-v2")
    wanted = f"Did you mean 'swav'? Install it with: {install('akssl-plugin-swav')}."
    with pytest.raises(PluginError, match=re.escape(wanted)):
        Plugins().get("method", "swaw")


def test_a_typo_offers_the_nearest_installed_name():
    with pytest.raises(PluginError, match="no backbone named 'resnet81'. Did you mean 'resnet18'"):
        Plugins().get("backbone", "resnet81")


def test_a_plugin_that_is_one_file(tmp_path, site):
    file = tmp_path / "one_file.py"
    file.write_text(textwrap.dedent(good("mine")))
    manager = Plugins()
    manager.load_file(file)
    assert manager.get("callback", "mine").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("import no_such", "did not load"), ("x = 1", "registers nothing")],
)
def test_a_bad_plugin_file_says_why(tmp_path, text, message):
    file = tmp_path / "one_file.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(PluginError, match=message):
        Plugins().load_file(file)
    sys.modules.pop("one_file", None)


def test_resolve_answers_for_open_families():
    class Open(Component):
        kind = "backbone"
        name = "zoo/any"

    class Zoo:
        @hookimpl
        def akssl_resolve(self, kind, name):
            return Open if (kind, name.partition("/")[0]) == ("backbone", "zoo") else None

    manager = Plugins()
    manager.register(Zoo(), "zoo")
    assert manager.get("backbone", "zoo/whatever") is Open
    with pytest.raises(PluginError, match="no backbone named 'nozoo'"):
        manager.get("backbone", "nozoo")


FAMILY = """
    from akssl_core import hookimpl
    from akssl_core import Component
    from akssl_core.errors import PluginError

    @hookimpl
    def akssl_resolve(kind, name):
        family, slash, member = name.partition("/")
        if (kind, family) != ("backbone", "zoo"):
            return None
        if member == "broken":
            raise RuntimeError("the zoo is closed")
        if member == "lino":
            raise PluginError("zoo has no 'lino'. Did you mean 'lion'?")
        return type("Animal", (Component,), {"kind": "backbone", "name": name})
"""


def test_a_name_with_a_slash_imports_the_plugin_of_its_family_alone(site):
    site("pkg-zoo", "zoo", FAMILY)
    other = site("pkg-alpha", "alpha", good("alpha"))
    assert Plugins().get("backbone", "zoo/lion").name == "zoo/lion"
    assert other not in sys.modules


def test_a_family_that_fails_is_named_and_its_own_words_are_kept(site):
    site("pkg-zoo", "zoo", FAMILY)
    with pytest.raises(PluginError, match="plugin 'zoo' failed to look it up: RuntimeError: the zoo is closed"):
        Plugins().get("backbone", "zoo/broken")
    with pytest.raises(PluginError, match=r"^zoo has no 'lino'\. Did you mean 'lion'\?$"):
        Plugins().get("backbone", "zoo/lino")


def test_a_missing_first_party_family_names_its_package(monkeypatch):
    monkeypatch.setattr(room, "entries", list)
    with pytest.raises(PluginError, match=re.escape(f"Install it with: {install('akssl-plugin-timm')}")):
        Plugins().get("backbone", "timm/resnet18")


def test_registry_refuses_a_taken_name_and_gives_it_back():
    class One(Component):
        kind = "loss"
        name = "one"
        Config = Schema

    registry = Registry()
    registry.owner = "first"
    registry.add(One)
    with pytest.raises(PluginError, match="already provided by the plugin 'first'"):
        registry.add(type("Other", (One,), {"name": "O-N-E"}))
    assert registry.names("loss") == ["one"]
    registry.drop("first")
    assert registry.names("loss") == []


@pytest.mark.parametrize("kind", [None, 3, {}, "los"])
def test_what_is_no_kind_is_told_with_all_kinds(kind):
    for function in (build, find):
        with pytest.raises(ConfigError, match=r"kind: there is no .* Kinds: method, backbone"):
            function(kind, "byol")


@pytest.mark.parametrize("name", [None, 3, {}])
def test_what_is_no_name_is_told(name):
    for function in (build, find):
        with pytest.raises(ConfigError, match="loss: expected a name, got"):
            function("loss", name)


def test_a_component_that_takes_more_than_its_settings_says_what():
    with pytest.raises(ConfigError, match="method 'simsiam' takes more than its settings, or less: .*'backbone'"):
        build("method", "simsiam")


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ("akssl-core>=9", "needs akssl-core>=9; this is 0.1.0"),
        ("akssl_core (<0.1)", "needs akssl-core<0.1; this is 0.1.0"),
        ("akssl-core[export]~=0.0.5", "needs akssl-core~=0.0.5; this is 0.1.0"),
        ("akssl-core>=0.1,<0.2", ""),
        ("akssl-core>=9; extra == 'dev'", ""),
        ("akssl-core-extras>=9", ""),
        ("akssl-core >>> 9", ""),
    ],
)
def test_a_plugin_for_another_core_is_listed_and_not_imported(site, needs, reason):
    module = site("pkg-alpha", "alpha", good("alpha"), requires=needs)
    (entry,) = ours({"alpha"})
    assert (entry.status, entry.reason) == ("other core" if reason else "installed", reason)
    if not reason:
        assert Plugins().get("callback", "alpha").name == "alpha"
        return
    with pytest.raises(PluginError) as caught:
        Plugins().get("callback", "alpha")
    assert reason in str(caught.value)
    assert module not in sys.modules
    (row,) = [row for row in plugin_table(Plugins()) if row["name"] == "alpha"]
    assert row["cure"] == install("akssl-core", "pkg-alpha", newer=True)
    assert [one.cause for one in examine_install(Plugins()) if "alpha" in one.evidence] == [reason]


def test_the_doctor_tells_a_clash_once(site):
    site("pkg-one", "same", good("same"))
    site("pkg-two", "same", good("same"))
    (found,) = [one for one in examine_install(Plugins()) if "same" in one.evidence]
    assert "claimed by pkg-one 1.0 and pkg-two 1.0" in found.cause


HOOKS = """
    from akssl_core import hookimpl

    @hookimpl
    def {hook}:
        return undefined_name
"""
LINE = 6  # of the mistake


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("akssl_register(registry)", lambda plugins: plugins.get("callback", "bad")),
        ("akssl_resolve(kind, name)", lambda plugins: plugins.get("backbone", "bad/one")),
        (
            "akssl_run_started(config, run_dir)",
            lambda plugins: plugins.tell("akssl_run_started", config={}, run_dir=0),
        ),
    ],
)
def test_a_mistake_in_any_hook_is_told_with_file_and_line(site, hook, told):
    module = site("pkg-bad", "bad", HOOKS.format(hook=hook))
    plugins = Plugins()
    plugins.load_all()
    with pytest.raises((PluginError, UserWarning)) as caught:
        told(plugins)
    assert "NameError: name 'undefined_name' is not defined" in str(caught.value)
    assert f"{module}.py:{LINE})" in str(caught.value)


@pytest.mark.parametrize(("code", "line"), [("x = 1\n1 / 0", 2), ("x = 1\n\ndef f(:", 3)], ids=["raises", "no Python"])
def test_a_module_that_does_not_import_is_told_with_file_and_line(site, tmp_path, code, line):
    module = site("pkg-bad", "bad", code)
    with pytest.raises(PluginError, match=rf"{module}\.py:{line}\)"):
        Plugins().get("callback", "bad")
    with pytest.raises(PluginError, match=rf"{module}\.py:{line}\)"):
        Plugins().load_file(tmp_path / f"{module}.py")

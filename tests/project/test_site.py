"""The site: it builds without a warning, holds every page and every public name, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
from pages import DOCS, ROOT

import akssl_core

NEEDED = ("sphinx", "myst_parser", "furo", "sklearn")
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages as `make site` builds them, where no request can leave the machine."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[dev,docs]'")
    folder = tmp_path_factory.mktemp("site")
    (line,) = re.findall(r"-m (sphinx .*) docs docs/_build/html", (ROOT / "Makefile").read_text())
    command = [sys.executable, "-m", *line.split(), "-d", folder / "trees", DOCS, folder / "html"]
    env = {**os.environ, **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://localhost:9")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert not done.stderr, done.stderr
    assert done.returncode == 0
    return folder / "html"


class Links(HTMLParser):
    """The addresses that a page refers to, those that a browser fetches by itself, and the places it has."""

    def __init__(self, html):
        super().__init__()
        self.links, self.fetched, self.places = set(), set(), set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.places |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and "href" in attributes:
            self.links.add(attributes["href"])
        elif tag in ("img", "script", "link"):
            self.fetched |= {attributes[key] for key in ("src", "href") if attributes.get(key)}


@pytest.fixture(scope="module")
def written(site):
    """The links of every page of the site."""
    return {page: Links(page.read_text()) for page in site.rglob("*.html")}


def names_of(site):
    """Every documented name, from the inventory that Sphinx writes."""
    header = b"# The remainder of this file is compressed using zlib.\n"
    _, _, packed = (site / "objects.inv").read_bytes().partition(header)
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines() if " py:" in line}


def public(module):
    """The functions and classes that a module defines for others."""
    found = inspect.getmembers(module, lambda one: inspect.isclass(one) or inspect.isfunction(one))
    return {f"{module.__name__}.{n}" for n, one in found if one.__module__ == module.__name__ and n[0] != "_"}


def test_every_public_name_is_on_the_site(site):
    from akssl_core import dist, nn, testing

    names = names_of(site)
    wanted = {f"akssl_core.{name}" for name in akssl_core.__all__} | public(nn) | public(dist)
    wanted |= {f"akssl_core.nn.{name}" for name in ("Attention", "Block", "Trunk", "initialise")}
    wanted |= {f"akssl_core.testing.{name}" for name in testing.__all__} | {"akssl_core.sklearn.Featurizer"}
    assert wanted - names == set()


def test_links_of_the_site_lead_somewhere(site, written):
    checked = 0
    for page, found in written.items():
        for link in found.links:
            address, place = urldefrag(link)
            if re.match(r"[a-z]+:", address):
                continue
            target = (page.parent / unquote(address)).resolve() if address else page
            assert target.exists(), (page.relative_to(site), link)
            if place and target in written:
                assert unquote(place) in written[target].places, (page.relative_to(site), link)
            checked += 1
    assert checked > 1000


def test_the_site_fetches_nothing_from_elsewhere(written):
    for page, found in written.items():
        assert not [address for address in found.fetched if re.match(r"(https?:)?//", address)], page


def test_files_of_the_repository_without_a_page_are_named_by_their_path(site):
    shown = (site / "write_a_method.html").read_text()
    assert "plugins/akssl-plugin-simsiam/src/akssl_plugin_simsiam/__init__.py" in shown
    assert 'href="methods/simsiam.html"' in (site / "overview.html").read_text()


def listed(page):
    """The pages that a page's tables of contents name."""
    lines = "".join(re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL)).splitlines()
    names = [re.sub(r".*<(.*)>", r"\1", line) for line in lines if line and not line.startswith(":")]
    return [(page.parent / f"{name}.md").resolve() for name in names]


def test_every_page_stands_in_one_table_of_contents():
    found = [page for one in PAGES for page in listed(one)]
    assert sorted(found) == [page for page in PAGES if page != DOCS / "index.md"]


def test_every_plugin_has_a_page():
    for plugin in (ROOT / "plugins").glob("akssl-plugin-*"):
        page = DOCS / "methods" / f"{plugin.name.removeprefix('akssl-plugin-')}.md"
        assert page.read_text() == f"```{{include}} ../../plugins/{plugin.name}/README.md\n```\n"

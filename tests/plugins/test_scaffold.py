"""New plugins: what they may be called, what is written, and that each kind works as it is written."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import akssl_core.plugins.scaffold as room
from akssl_core.config import describe
from akssl_core.errors import ConfigError, PluginError
from akssl_core.plugins.first_party import install
from akssl_core.plugins.scaffold import KINDS, create, named

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no TOML reader of its own")

ROOT = Path(__file__).parents[2]
MYPY = {"strict": True, "plugins": ["pydantic.mypy"]}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def called(kind):
    """The name of the component of each kind in these tests."""
    return f"my-{kind}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a new plugin of each kind."""
    parent = tmp_path_factory.mktemp("made")
    for kind in KINDS:
        create(called(kind), kind, parent)
    return parent


def folder_of(made, kind):
    return made / f"akssl-plugin-my-{kind}"


def module_of(folder):
    return folder.name.replace("-", "_")


def output(*command, cwd, **environment):
    """What a command prints, after checking that it went well."""
    words = [str(word) for word in command]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- names ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["my-method", "My_Method", "My Method", "my--method", "MY-method", "akssl_plugin_my_method"]
)
def test_one_name_in_all_its_forms(name):
    names = named(name)
    assert names.component == "my-method"
    assert names.distribution == "akssl-plugin-my-method"
    assert names.module == "akssl_plugin_my_method"
    assert names.title == "MyMethod"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("2fast", "begin with a letter. Did you mean 'fast'?"),
        ("my.method", "letters, digits and '-', and begin with a letter. Did you mean 'my-method'?"),
        ("-mine", "Did you mean 'mine'?"),
        ("méthode", "Did you mean 'm-thode'?"),
        ("../up", "Did you mean 'up'?"),
        ("", "begin with a letter."),
        ("42", "begin with a letter."),
        ("a" * 41, f"at most 40 letters, digits and '-', and begin with a letter. Did you mean '{'a' * 40}'?"),
        ("akssl-plugin-", "begin with a letter."),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_with_the_cure(name, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        create(name, parent=tmp_path)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "owner"),
    [
        ("SimSiam", "method", "akssl-plugin-simsiam"),
        ("moco", "method", "akssl-plugin-moco"),
        ("moco-v2", "backbone", "akssl-plugin-moco"),
        ("nt_xent", "loss", "akssl-plugin-simclr"),
        ("timm", "backbone", "akssl-plugin-timm"),
        ("hf-datasets", "dataset", "akssl-plugin-hf-datasets"),
    ],
)
def test_a_name_of_our_own_packages_is_refused(name, kind, owner, tmp_path):
    with pytest.raises(PluginError) as caught:
        create(name, kind, tmp_path)
    assert f"is taken by {owner}. Choose another name, or install that one: {install(owner)}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("metod", "there is no template for 'metod'. Did you mean 'method'?"),
        ("data", "Did you mean 'dataset'?"),
        ("callback", "Did you mean 'logger'?"),
        ("optimizer", "Kinds: method, backbone, augmentation, loss, dataset, logger."),
    ],
)
def test_a_kind_without_template_is_refused_with_the_nearest(kind, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        create("mine", kind, tmp_path)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tensor", "method"),
        ("f", "loss"),
        ("path", "logger"),
        ("warning", "loss"),
        ("none", "loss"),
        ("loss", "method"),
    ],
)
def test_a_class_may_not_hide_what_its_module_uses(name, kind, tmp_path):
    with pytest.raises(ConfigError, match=f"would make a class {name.title()}"):
        create(name, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_hides_only_what_its_own_kind_uses(tmp_path):
    assert create("path", "backbone", tmp_path).is_dir()


def test_an_existing_folder_is_left_as_it_is(tmp_path):
    folder = create("mine", parent=tmp_path)
    (folder / "README.md").write_text("my words")
    with pytest.raises(ConfigError, match="exists already and is left as it is"):
        create("Mine", "loss", tmp_path)
    assert (folder / "README.md").read_text() == "my words"


def test_a_folder_that_cannot_be_written_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write .*akssl-plugin-mine.* Choose another folder"):
        create("mine", parent=tmp_path / "file")


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    write = Path.write_text

    def full(path, text, **more):
        if path.name == "CHANGELOG.md":
            raise OSError(28, "No space left on device")
        return write(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        create("mine", parent=tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- files ----------------------------------------------------------------------------------------
def test_the_default_is_a_method_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create("mine") == Path("akssl-plugin-mine")
    assert "class Mine(Method):" in (tmp_path / "akssl-plugin-mine/src/akssl_plugin_mine/__init__.py").read_text()


@EACH_KIND
def test_a_distribution_has_all_its_files_and_no_placeholder(made, kind):
    folder = folder_of(made, kind)
    module = module_of(folder)
    texts = {
        str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file() and "build" not in f.parts
    }
    assert set(texts) == {
        ".github/workflows/publish.yml",
        ".github/workflows/test.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        f"src/{module}/__init__.py",
        f"src/{module}/py.typed",
        f"tests/test_my_{kind}.py",
    }
    assert not any("@@" in text for text in texts.values())
    assert "MIT License" in texts["LICENSE"]
    assert f"The {folder.name} authors" in texts["LICENSE"]
    assert f"my-{kind}" in texts["CHANGELOG.md"]


@EACH_KIND
def test_a_distribution_is_described_as_a_plugin(made, kind):
    folder = folder_of(made, kind)
    described = tomllib.loads((folder / "pyproject.toml").read_text())
    project = described["project"]
    assert project["name"] == folder.name
    assert project["dependencies"] == ["akssl-core>=0.1,<0.2"]
    assert "akssl-plugin" in project["keywords"]
    assert project["entry-points"] == {"akssl.v1": {f"my-{kind}": module_of(folder)}}
    assert project["optional-dependencies"] == {"test": ["pytest"]}
    assert described["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]


def test_the_workflows_test_two_pythons_and_publish_without_a_password(made):
    workflows = folder_of(made, "method") / ".github" / "workflows"
    test = yaml.safe_load((workflows / "test.yml").read_text())["jobs"]["test"]
    assert test["strategy"]["matrix"]["python"] == ["3.10", "3.x"]
    (setup,) = (step["with"] for step in test["steps"] if "with" in step)
    assert setup["python-version"] == "${{ matrix.python }}"
    commands = [step["run"] for step in test["steps"] if "run" in step]
    assert re.sub("--find-links wheels ", "", commands.pop(0)) == "pip install -e '.[test]' ruff mypy"
    assert commands == ["ruff check .", "ruff format --check .", "mypy", "pytest"]
    publish = yaml.safe_load((workflows / "publish.yml").read_text())
    assert publish[True] == {"release": {"types": ["published"]}}  # YAML reads `on` as true
    assert publish["jobs"]["publish"]["permissions"]["id-token"] == "write"
    assert "password" not in publish["jobs"]["publish"]["steps"][-1].get("with", {})


def test_every_template_is_used_and_goes_into_the_wheel():
    templates = {str(f.relative_to(room.TEMPLATES)) for f in room.TEMPLATES.rglob("*") if f.is_file()}
    own = [*room.OWN, "use.md", "settings.md"]
    used = {f"common/{name}" for name in room.COMMON} | {f"{kind}/{name}" for kind in KINDS for name in own}
    assert templates == {f"{name}{room.SUFFIX}" for name in used}
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {file for pattern in data["akssl_core"] for file in (ROOT / "akssl_core").glob(pattern)}
    assert {room.TEMPLATES / template for template in templates} <= packed


@EACH_KIND
def test_a_plugin_fits_on_two_screens(made, kind):
    folder = folder_of(made, kind)
    source = (folder / "src" / module_of(folder) / "__init__.py").read_text()
    assert len(source.splitlines()) <= 100
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert all((f.end_lineno or 0) - f.lineno < 30 for f in functions)


@pytest.fixture
def load(monkeypatch):
    """Imports the module of a plugin that is not installed, for one test."""

    def from_folder(folder):
        name = module_of(folder)
        spec = importlib.util.spec_from_file_location(name, folder / "src" / name / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # where pydantic looks for the names in annotations
        spec.loader.exec_module(module)
        return module

    return from_folder


@EACH_KIND
def test_the_readme_lists_the_settings(made, kind, load):
    folder = folder_of(made, kind)
    readme, title = (folder / "README.md").read_text(), f"My{kind.title()}"
    classes = [value for name, value in vars(load(folder)).items() if name in (title, f"{title}Loss")]
    assert classes
    for component in classes:
        assert table_of(component.Config) in readme


def table_of(schema):
    """The table of a schema as READMEs have it."""
    cells = [(f"`{name}`", kind.replace("of a au", "of an au"), *rest) for name, kind, *rest in describe.cells(schema)]
    return describe.markdown(describe.HEADER, cells)


# -- they work ------------------------------------------------------------------------------------
def test_writing_a_plugin_imports_no_torch(tmp_path):
    code = "import sys; from akssl_core.plugins.scaffold import create; create('mine'); print('torch' in sys.modules)"
    assert output(sys.executable, "-c", code, cwd=tmp_path) == "False\n"


@pytest.mark.parametrize("name", ["xy", "my-{kind}", "q-{kind}-of-a-name-as-long-as-they-may-be-so"])
def test_what_is_written_is_clean_whatever_it_is_called(name, tmp_path):
    for kind in KINDS:
        create(name.format(kind=kind)[:40].rstrip("-"), kind, tmp_path / kind)
    ruff = Path(sys.executable).with_name("ruff")
    assert "All checks passed" in output(ruff, "check", "--no-cache", ".", cwd=tmp_path)
    assert "already formatted" in output(ruff, "format", "--check", "--no-cache", ".", cwd=tmp_path)


def test_attributes_as_the_pages_write_them_are_clean_in_a_new_plugin(tmp_path):
    """Every `name = {...}` and `name = [...]` that docs tell authors to write into a class."""
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    written = re.findall(r"`(\w+(?:: [\w\[\], ]+)? = [\[{].*?[\]}])`", text)
    assert any(line.startswith("views") for line in written)
    folder = create("my-own", "method", tmp_path)
    source = folder / "src" / module_of(folder) / "__init__.py"
    lines = "".join(f"    {line}\n" for line in written)
    with_them = source.read_text().replace("    recipes = RECIPES\n", f"    recipes = RECIPES\n{lines}")
    source.write_text(with_them.replace("import Any", "import Any, ClassVar"))
    ruff = Path(sys.executable).with_name("ruff")
    output(ruff, "check", "--no-cache", "--ignore", "E501,F821", ".", cwd=folder)


def test_the_types_are_right(made, tmp_path):
    """With the settings of this repository, which are those of the plugins, so that what mypy knows of torch serves."""
    folders = [folder_of(made, kind) for kind in KINDS]
    for folder in folders:
        assert tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["mypy"].items() >= MYPY.items()
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / "cache")
    path = os.pathsep.join(str(folder / "src") for folder in folders)
    packages = [word for folder in folders for word in ("-p", module_of(folder))]
    told = output(sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", *packages, cwd=ROOT, MYPYPATH=path)
    assert "no issues found in 6 source files" in told


@pytest.fixture(scope="module")
def site(made, tmp_path_factory):
    """A folder into which all six are installed."""
    target = tmp_path_factory.mktemp("site")
    quiet = ("-q", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation")
    folders = [folder_of(made, kind) for kind in KINDS]
    output(sys.executable, "-m", "pip", "install", *quiet, "--target", target, *folders, cwd=target)
    return {"PYTHONPATH": str(target), "AKSSL_STRICT": "1"}


def test_each_passes_its_own_tests(made, site, tmp_path):
    """All six in one process, with the settings of one of them (those of pytest are the same in all)."""
    folders = [folder_of(made, kind) for kind in KINDS]
    settings = ("-c", folders[0] / "pyproject.toml", "--rootdir", made, "-p", "no:cacheprovider")
    tests = [folder / "tests" for folder in folders]
    assert " passed" in output(sys.executable, "-m", "pytest", *settings, *tests, cwd=tmp_path, **site)


RUN_ALL = """
import shlex, sys
from akssl_core.cli import akssl
for line in sys.argv[1:]:
    akssl.main(shlex.split(line)[1:], standalone_mode=False)
"""
SMALL = "--image-size 16 --epochs 1 --precision fp32 --set data.size=64 --set data.test_size=32 --no-report"


def test_the_commands_of_the_readmes_work(made, site, tmp_path):
    readmes = [(folder_of(made, kind) / "README.md").read_text() for kind in KINDS]
    found = re.findall(r"^akssl run .*$", "\n".join(readmes), re.MULTILINE)
    lines = [line if line.endswith("--help") else f"{line} {SMALL}" for line in found]
    assert len(lines) >= len(KINDS)
    output(sys.executable, "-c", RUN_ALL, *lines, cwd=tmp_path, **site)
    assert len(list(tmp_path.glob("runs/*/rows.csv"))) == 1

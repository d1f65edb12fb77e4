"""Nothing in core or plugins can run code that lies in a file: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "akssl_core").rglob("*.py")), *sorted((ROOT / "plugins").glob("*/src/**/*.py"))]

MODULES = frozenset({"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "code",
                     "xmlrpc", "jsonpickle"})  # fmt: skip
BUILT_IN = frozenset({"eval", "exec", "compile", "execfile", "__import__"})
CALLS = {
    "torch": {"load", "save", "hub", "package"},
    "yaml": {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "Loader",
             "UnsafeLoader", "FullLoader", "CLoader"},
    "os": {"system", "popen", "execv", "execl", "execvp", "spawnl", "spawnv", "startfile"},
    "np": {"fromregex", "loadtxt"},
    "subprocess": {"getoutput", "getstatusoutput"},
}  # fmt: skip


def offences(source: str) -> list[str]:
    """What a source has that could run what lies in a file."""
    return [text for node in ast.walk(ast.parse(source)) for text in _of_import(node) + _of_call(node)]


def _of_import(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {a.name}" for a in node.names if a.name.partition(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        root = node.module.partition(".")[0]
        names = {a.name for a in node.names}
        owner = "np" if root == "numpy" else root
        found = names & CALLS.get(owner, set()) | (names & {"pickle"})
        return [f"from {node.module}"] if root in MODULES else [f"from {node.module} import {n}" for n in sorted(found)]
    return []


def _of_call(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = "np" if node.value.id == "numpy" else node.value.id
        return [f"{owner}.{node.attr}"] if node.attr in CALLS.get(owner, set()) else []
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        flags = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        odd = [f"{key}={value}" for key, value in flags.items() if (key, value) in ODD]
        return ([name] if name in BUILT_IN else []) + odd
    return []


ODD = {("allow_pickle", True), ("shell", True), ("weights_only", False)}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_source_can_run_what_lies_in_a_file(file):
    allowed = ["torch.load"] if file.name == "convert.py" and file.parent.name == "running" else []
    assert offences(file.read_text(encoding="utf-8")) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "import joblib.parallel", "import marshal",
        "from torch import load", "torch.load(path)", "f = torch.save", "torch.hub.load('x')", "yaml.load(text)",
        "from yaml import unsafe_load", "yaml.load_all(f, Loader=yaml.SafeLoader)", "yaml.UnsafeLoader",
        "numpy.load(f, allow_pickle=True)", "eval(text)", "exec(text)", "compile(text, '', 'exec')", "os.system(x)",
        "subprocess.run(x, shell=True)", "__import__(x)", "read(path, weights_only=False)", "os.popen('x')",
    ],
)  # fmt: skip
def test_each_way_is_found(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    ["torch.compile(f)", "re.compile('x')", "module.eval()", "yaml.safe_load(x)", "np.load(f)", "subprocess.run([x])"],
)
def test_what_only_looks_alike_is_let_through(source):
    assert offences(source) == []


def test_sources_are_looked_at():
    assert len(FILES) > 80
    assert any("akssl_plugin_timm" in str(file) for file in FILES)

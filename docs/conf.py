"""The documentation site: the pages of this folder, the READMEs, a reference from docstrings. `make site` builds it.

Nothing is fetched while it is built. Pages link to files of the repository as GitHub shows them; `linked` turns
those links into the page that shows the file, or into its path where no page does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import akssl_core
import akssl_core.testing  # autodoc finds all modules loaded, and reloads none with other types

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SHOWN = {  # what lies outside of this folder -> the page that shows it
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    **{f"plugins/{p.name}": f"methods/{p.name.removeprefix('akssl-plugin-')}.md" for p in ROOT.glob("plugins/*")},
}
UNNAMED = (  # types that public names hold and that have no public name of their own
    r"augment\.base\.Transform",
    r"reporting\.comparison\.Summary",
    r"plugins\.installed\.Entry",
    r"evaluation\.result\.(Score|Comparison)",
    r"reporting\.html\.Html",
    r"sweeps\.result\.Row",
    r"testing\.check\.Rule",
    r"config\.schema\.absolute_path",
    r"settings\.(RunSpec|absolute_if_there)",
    r"data\.prepared_file\.Record",
    r"data\.forecast\.Forecast",
    r"data\.base\.Decoder",
    r"data\.convert\.Square",
    r"metrics\.interval\.Interval",
    r"exporting\.int8\.Quantised",
    r"schedule\._(positive|not_negative|fraction)",
)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")

project = "AKSSL"
version = release = akssl_core.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"AKSSL {version}"
html_show_copyright = False
html_copy_source = False
html_static_path = [name for name in ("pictures",) if (DOCS / name).is_dir()]
highlight_language = "none"
default_role = "literal"  # docstrings write `code` as Markdown does
myst_heading_anchors = 3
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100
nitpick_ignore_regex = [
    ("py:.*", r"(?!akssl_core\.).*"),  # names of torch, numpy and so on have no page here
    ("py:class", r"akssl_core\.(config\.schema\.Annotated|augment\.policy\._\w+|config\.registry\.C|method\.B)"),
    *(("py:class", rf"akssl_core\.{name}") for name in UNNAMED),
]


def linked(text: str, file: Path, page: Path) -> str:
    """The text of a file with its links as they must be on the page that shows it."""

    def replaced(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        found = (file.parent / target).resolve()
        if not found.exists() or ROOT not in found.parents:
            return match[0]  # no file's link: x[0](images) in a block of code
        path = found.relative_to(ROOT).as_posix()
        shown = DOCS / SHOWN[path] if path in SHOWN else found
        if shown.suffix != ".md" or DOCS not in shown.parents:
            return f"{words} (`{path}`)"
        return f"[{words}]({os.path.relpath(shown, page.parent)}{anchor or ''})"

    return LINK.sub(replaced, text)


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """A page of this folder, as it is read."""
    page = DOCS / f"{docname}.md"
    content[0] = linked(content[0], page, page)


def included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    """A file that a page includes, as it is read."""
    text = linked(content[0], DOCS / path, DOCS / f"{docname}.md")
    content[0] = text.replace('="docs/pictures/', '="_static/')  # of the README's HTML, whose page lies at the top


def setup(app: Sphinx) -> None:
    """Sphinx calls this once."""
    app.connect("source-read", read)
    app.connect("include-read", included)

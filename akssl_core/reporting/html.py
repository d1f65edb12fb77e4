"""HTML by small functions: every text is escaped where it enters, so that no file name can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")  # light and dark, from 320 pixels up
VOID = frozenset({"br", "img", "meta"})
# The page may load nothing, and run nothing, whatever it holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(element: str, /, *children: str, **attributes: object) -> Html:
    """An element. Plain strings among its children are escaped, None attributes are left out.

    `class_` is written `class`, and `stroke_width` is written `stroke-width`.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    head = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    if element in VOID:
        return Html(f"<{element}{head}>")
    return Html(f"<{element}{head}>{join(children)}</{element}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other, escaped where they are not markup."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def section(title: str, *children: str) -> Html:
    """A part of the page under a heading of its own."""
    name = title.lower().replace(" ", "-")
    return tag("section", tag("h2", title), *children, id=name)


def details(title: str, *children: str) -> Html:
    """A part that is closed until it is asked for."""
    return tag("details", tag("summary", title), *children)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", kind: str = "") -> Html:
    """A table whose first column names the rows; it scrolls sideways where the page is too narrow."""
    head = tag("thead", tag("tr", *(tag("th", column, scope="col") for column in columns)))
    body = tag(
        "tbody", *(tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows)
    )
    label = [tag("caption", caption)] if caption else []
    return tag("div", tag("table", *label, head, body, class_=kind or None), class_="scroll")


def page(title: str, *children: str) -> Html:
    """A whole document in one file."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Html("\n" + STYLE.read_text(encoding="utf-8"))),
    )
    text = "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *children)), lang="en") + "\n"
    return Html(text.encode("utf-8", "replace").decode())  # names of files may be no text

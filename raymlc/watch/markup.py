"""HTML and SVG as trees, so that whatever text a table or a study holds is escaped by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree

Node = ElementTree.Element


def node(tag: str, attributes: Mapping[str, str] | None = None, *inside: Node | str) -> Node:
    """An element with text and elements inside, in their order."""
    made = ElementTree.Element(tag, dict(attributes or {}))
    extend(made, inside)
    return made


def extend(parent: Node, inside: Iterable[Node | str]) -> None:
    """Put text and elements at the end of an element."""
    for one in inside:
        if isinstance(one, str):
            if len(parent):
                parent[-1].tail = (parent[-1].tail or "") + one
            else:
                parent.text = (parent.text or "") + one
        else:
            parent.append(one)


def html_of(root: Node) -> str:
    """The element as HTML. Script and style, which HTML does not escape, must be of our own."""
    return ElementTree.tostring(root, encoding="unicode", method="html")


def note(text: str) -> Node:
    """A paragraph in small print."""
    return node("p", {"class": "note"}, text)


def header(*names: str) -> Node:
    """The row of a table that names its columns."""
    return node("tr", {}, *(node("th", {"scope": "col"}, name) for name in names))


def row(name: str, *cells: Node | str) -> Node:
    """A row of a table. cells: text, or whole td elements."""
    return node(
        "tr",
        {},
        node("th", {"scope": "row"}, name),
        *(node("td", {}, cell) if isinstance(cell, str) else cell for cell in cells),
    )


def table(says: str, top: Node, rows: Sequence[Node], kind: str = "", tall: bool = False) -> Node:
    """A table in a box that scrolls sideways, and if `tall` down, too. says: what it holds."""
    inside = node(
        "table",
        {"aria-label": says} | ({"class": kind} if kind else {}),
        node("thead", {}, top),
        node("tbody", {}, *rows),
    )
    # What scrolls must be reached by the keyboard, too.
    about = {"class": "scroll tall" if tall else "scroll", "tabindex": "0", "role": "group"}
    return node("div", about | {"aria-label": says}, inside)

"""Pieces of HTML: text, tables, tiles and sections; whatever comes from a user's file is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

Tone = Literal["good", "bad", "plain"]


class Html(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


Cell = str | Html


def text(value: str) -> Html:
    """Return a text as HTML and XML may carry it; what is markup already stays as it is."""
    if isinstance(value, Html):
        return value
    return Html(escape("".join(letter for letter in value if letter.isprintable()), {'"': "&quot;"}))


def join(parts: Iterable[str]) -> Html:
    """Put pieces of markup one after the other."""
    return Html("\n".join(parts))


def element(tag: str, content: str = "", **attributes: str) -> Html:
    """Return an element; an attribute's trailing underscore is dropped, since ``class`` is a word of Python's own."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{written}>{text(content)}</{tag}>")


def badge(words: str, tone: Tone) -> Html:
    """Return a word that stands out: kept, missed, drift."""
    return element("span", words, class_=f"badge {tone}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, left: int = 1, caption: str = "") -> Html:
    """Return a table that scrolls by itself where the page is narrow; the first `left` columns are left-aligned."""
    head = join(element("th", name, scope="col", class_="l" if index < left else "r") for index, name in enumerate(columns))
    body = join(
        element("tr", join(element("td", cell, class_="l" if index < left else "r") for index, cell in enumerate(row)))
        for row in rows
    )
    title = element("caption", caption) if caption else Html("")
    whole = element("table", join([title, element("thead", element("tr", head)), element("tbody", body)]))
    return element("div", whole, class_="scroll", tabindex="0")


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that leads the page: what it is, the figure, and a line below it."""

    name: str
    value: str
    note: str = ""
    tone: Tone = "plain"


def tiles(found: Sequence[Tile]) -> Html:
    """Return the leading figures side by side."""
    return element(
        "div",
        join(
            element(
                "div",
                join([
                    element("div", tile.name, class_="name"),
                    element("div", tile.value, class_="value"),
                    element("div", tile.note, class_="note"),
                ]),
                class_=f"tile {tile.tone}",
            )
            for tile in found
        ),
        class_="tiles",
    )  # fmt: skip


def figure(picture: Html, caption: str) -> Html:
    """Return a picture with the sentence that says what to see in it."""
    return element("figure", join([picture, element("figcaption", caption)]))


def figures(found: Sequence[Html]) -> Html:
    """Return pictures side by side as the width permits."""
    return element("div", join(found), class_="figures")


def details(summary: str, content: Html) -> Html:
    """Return something that is shown when asked for."""
    return element("details", join([element("summary", summary), content]))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    name
        Its anchor.
    title, lead
        Heading, and the sentence that says what follows from it.
    body
        Markup.
    """

    name: str
    title: str
    lead: str
    body: Html

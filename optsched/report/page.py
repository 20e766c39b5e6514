"""One HTML document that needs nothing else: no network, no script, light and dark, printable."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from optsched.report.markup import Html, Section, Tile, Tone, element, join, text, tiles


def page(
    title: str,
    subtitle: str,
    verdict: str,
    tone: Tone,
    leading: Sequence[Tile],
    sections: Sequence[Section],
    footer: str,
) -> str:
    """Return an HTML document.

    Parameters
    ----------
    title, subtitle
        Heading and the line below it.
    verdict, tone
        What it comes to in one sentence, and whether that is good.
    leading
        The figures that lead the page.
    sections
        Its parts, in order.
    footer
        What was read, and by which version.
    """
    style = resources.files("optsched.report").joinpath("page.css").read_text(encoding="utf-8")
    links = join(element("a", section.title, href=f"#{section.name}") for section in sections)
    header = element(
        "header",
        join([element("h1", title), element("p", subtitle, class_="subtitle"), element("p", verdict, class_=f"verdict {tone}")]),
    )
    body = join([
        header,
        tiles(leading),
        element("nav", links),
        element("main", join(_section(section) for section in sections)),
        element("footer", footer),
    ])  # fmt: skip
    return _document(title, style, body)


def _document(title: str, style: str, body: Html) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> Html:
    return element(
        "section",
        join([element("h2", section.title), element("p", section.lead, class_="lead"), section.body]),
        id=section.name,
    )

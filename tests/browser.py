"""Look at pages in a real browser without a window, and say what is seen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
_MEASURE = """
const report = {};
for (const frame of document.querySelectorAll('iframe')) {
  const inner = frame.contentDocument, root = inner.documentElement;
  const box = node => { const b = node.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; };
  const beyond = [...inner.body.querySelectorAll('*')]
    .filter(node => !node.closest('.scroll') && node.getBoundingClientRect().right > root.clientWidth + 1)
    .map(node => node.tagName + ' ' + node.className + ' ' + node.textContent.slice(0, 40));
  const cut = [...inner.body.querySelectorAll('.tile .value, .badge, h1, h2')]
    .filter(node => node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0).map(node => node.textContent);
  report[frame.name] = {
    width: root.clientWidth, scroll: root.scrollWidth, beyond, cut,
    sections: Object.fromEntries([...inner.querySelectorAll('section')].map(node => [node.id, box(node)])),
    charts: [...inner.querySelectorAll('svg')].map(node => [node.getAttribute('aria-label') || 'timeline', ...box(node)]),
    outside: [...inner.querySelectorAll('svg text')].filter(node => {
      const b = node.getBoundingClientRect(), s = node.closest('svg').getBoundingClientRect();
      return b.left < s.left - 1 || b.right > s.right + 1 || b.top < s.top - 1 || b.bottom > s.bottom + 1;
    }).map(node => node.textContent),
    tallest: Math.max(...[...inner.querySelectorAll('tr')].map(node => node.getBoundingClientRect().height)),
    text: inner.body.innerText,
  };
}
const place = document.createElement('pre');
place.id = 'measured';
place.textContent = JSON.stringify(report);
document.body.append(place);
"""


@dataclass(frozen=True)
class Seen:
    """What the browser showed of one page at one width, and what it wrote to its console about all of them."""

    width: int
    scroll: int
    beyond: list[str]
    cut: list[str]
    sections: dict[str, list[float]]
    charts: list[list[object]]
    outside: list[str]
    tallest: float
    text: str


def browser() -> str:
    """Return a browser's path; skip the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to look at the page with; install one of {', '.join(NAMES)}")
    return found


def look(pages: dict[str, str], widths: tuple[int, ...], folder: Path) -> tuple[dict[tuple[str, int], Seen], list[str]]:
    """Show pages side by side, each at several widths, and measure them; return that and the lines on the console."""
    frames = "".join(
        f'<iframe name="{name} {width}" style="width:{width}px;height:3000px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in widths
    )
    outer = folder / "outer.html"
    outer.write_text(f"<!DOCTYPE html><body>{frames}<script>onload = () => {{ {_MEASURE} }}</script></body>", encoding="utf-8")
    done = run("--dump-dom", outer.as_uri(), folder=folder)
    measured = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert measured, done.stderr
    report = json.loads(html.unescape(measured.group(1)))
    seen = {(name, width): Seen(**report[f"{name} {width}"]) for name in pages for width in widths}
    return seen, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def photograph(page: Path, picture: Path, width: int, height: int, *more: str) -> None:
    """Write a picture of a page."""
    run(f"--window-size={width},{height}", f"--screenshot={picture}", *more, page.as_uri(), folder=picture.parent)


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the browser with a profile of its own."""
    command = [browser(), *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

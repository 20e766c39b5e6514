"""A picture of an execution: what every replica did for which conversation, and how full its cache was, as SVG or HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, PlanReplica
from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.files import write_atomically
from optsched.report.charts.ticks import step_of
from optsched.report.markup import text as _text
from optsched.report.occupancy import Occupancy, occupancy
from optsched.report.palette import PAPER, Palette
from optsched.report.spans import KINDS, Kind, Stay, stays

SUFFIXES = (".svg", ".html")
MAX_SPANS = 6_000
"""Spans drawn at most; where there are more, replicas show fewer conversations side by side."""
MAX_LANES = 24
_MOST_LANES_IN_ALL = 256
_COLUMNS_IN_ALL = 24_000
_LEFT, _WIDTH, _RIGHT, _TOP = 230, 1000, 20, 64
_LANE, _CACHE, _SPACE = 6, 36, 16
_LAYERS: tuple[Kind, ...] = ("prefill", "decode", "transfer")  # transfers are short, and drawn over the others


def check_timeline(path: Path | None) -> None:
    """Refuse a file name that is no timeline's, before anything is computed.

    Raises
    ------
    SpecError
        If it ends neither in .svg nor in .html.
    """
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise SpecError(
            f"{path.name!r}: a timeline is a picture or a page; end its name in {' or '.join(SUFFIXES)}", field="--timeline"
        )


def save_timeline(plan: Plan, log: ExecutionLog, workload: Workload, path: Path) -> None:
    """Write the timeline of an execution as SVG, or as an HTML page around it.

    Parameters
    ----------
    plan, log, workload
        What was planned, what happened (simulated or observed), and what was executed.
    path
        Where to; the suffix decides the format.

    Raises
    ------
    SpecError
        If the suffix is neither .svg nor .html, or the file cannot be written.
    """
    check_timeline(path)
    drawn = draw_timeline(plan, log, workload)
    write_atomically(path, (drawn if path.suffix.lower() == ".svg" else _page(drawn, _title(plan, log))).encode())


def draw_timeline(plan: Plan, log: ExecutionLog, workload: Workload, palette: Palette = PAPER) -> str:
    """Return the timeline as one self-contained SVG document.

    Each replica has a band: a lane per conversation that is on it, with the turns' prefill and decode and the transfers that
    brought its cache, a thin line while the cache waits for the next turn; and below them its cached tokens. Hovering over a
    span names it. Of many conversations at once those are drawn that find a free lane.

    Parameters
    ----------
    plan, log, workload
        What was planned, what happened (simulated or observed), and what was executed.
    palette
        Its colours.
    """
    found = stays(log, workload)
    bands = _bands(plan, found, occupancy(log, workload, len(plan.replicas)))
    scale = _Scale(max(log.makespan_s, 1e-9))
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + sum(band.height + _SPACE for band in bands)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="11" fill="{palette.text}">',
        f'<rect width="100%" height="100%" fill="{palette.background}"/>'
        f'<text x="8" y="18" font-size="14">{_text(_title(plan, log))}</text>',
        *_legend(palette),
        *_axis(scale, height, palette),
    ]
    top, columns = _TOP, max(60, min(600, _COLUMNS_IN_ALL // max(1, len(bands))))
    for band in bands:
        parts += _draw(band, top, scale, np.linspace(0.0, scale.end_s, columns + 1), palette)
        top += band.height + _SPACE
    return "\n".join([*parts, "</svg>", ""])


def _title(plan: Plan, log: ExecutionLog) -> str:
    return f"{plan.llms[0].name}, placement {plan.placement.policy}, batching {plan.batching.policy}, {log.origin}"


@dataclass(frozen=True, slots=True)
class _Scale:
    end_s: float

    def x(self, time_s: float) -> float:
        return _LEFT + _WIDTH * time_s / self.end_s


@dataclass(frozen=True, slots=True)
class _Band:
    """One replica's part of the picture: its stays by lane, and what stands beside them."""

    replica: PlanReplica
    lanes: list[list[Stay]]
    conversations: int
    drawn: int
    cache: Occupancy
    capacity: int
    scale_tokens: float

    @property
    def gantt(self) -> int:
        """Height of the lanes."""
        return max(_LANE * len(self.lanes), 30)

    @property
    def height(self) -> int:
        """Height of it all."""
        return self.gantt + 4 + _CACHE


def _bands(plan: Plan, found: Sequence[Stay], caches: Sequence[Occupancy]) -> list[_Band]:
    most = max(1, min(MAX_LANES, _MOST_LANES_IN_ALL // max(1, len(plan.replicas))))
    stride = 1
    while True:
        lanes = [_lanes([stay for stay in found if stay.replica == r][::stride], most) for r in range(len(plan.replicas))]
        if sum(len(stay.spans) for own in lanes for lane in own for stay in lane) <= MAX_SPANS:
            break
        most, stride = (most // 2, stride) if most > 1 else (1, 2 * stride)
    bands, largest = [], max(1.0, 1.1 * max(cache.peak for cache in caches))
    for index, (replica, own) in enumerate(zip(plan.replicas, lanes, strict=True)):
        there = {stay.spans[0].conversation for stay in found if stay.replica == index}
        drawn = {stay.spans[0].conversation for lane in own for stay in lane}
        capacity = replica.kv_blocks * plan.engine.block_tokens
        bands.append(_Band(replica, own, len(there), len(drawn), caches[index], capacity, largest))
    return bands


def _lanes(found: Sequence[Stay], most: int) -> list[list[Stay]]:
    """Put each stay on the first lane that is free; those that find none are left out."""
    lanes: list[list[Stay]] = []
    for stay in found:
        free = next((lane for lane in lanes if lane[-1].end_s <= stay.start_s), None)
        if free is not None:
            free.append(stay)
        elif len(lanes) < most:
            lanes.append([stay])
    return lanes


def _legend(palette: Palette) -> Iterator[str]:
    left = 8
    entries = [
        *((kind, getattr(palette, kind)) for kind in KINDS),
        ("cache kept between turns", palette.idle),
        ("tokens in cache (dashed: its size)", palette.full),
    ]
    for name, colour in entries:
        yield f'<rect x="{left}" y="28" width="12" height="10" fill="{colour}"/><text x="{left + 16}" y="37">{name}</text>'
        left += 34 + 6 * len(name)


def _axis(scale: _Scale, height: int, palette: Palette) -> Iterator[str]:
    step = step_of(scale.end_s, 8)
    for index in range(int(scale.end_s / step + 1e-9) + 1):
        x = f"{scale.x(index * step):.1f}"
        yield f'<line x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{height - 8}" stroke="{palette.grid}"/>'
        yield f'<text x="{x}" y="{_TOP - 12}" text-anchor="middle">{index * step:g} s</text>'


def _draw(band: _Band, top: int, scale: _Scale, edges_s: np.ndarray, palette: Palette) -> Iterator[str]:
    replica, floor = band.replica, top + band.height
    shown = f"{band.conversations:,} conversations" + (f", {band.drawn:,} drawn" if band.drawn < band.conversations else "")
    full = f"peak {band.cache.peak:,.0f} of {band.capacity:,} tokens"
    yield f'<g id="{_text(replica.id)}">'
    yield f'<text x="8" y="{top + 12}" font-weight="bold">{_text(replica.id)}</text>'
    yield f'<text x="8" y="{top + 26}">{_text(replica.gpu)} {replica.power_cap_w:g} W, {shown}</text>'
    yield f'<text x="8" y="{floor - 8}">cache: {full}</text>'
    yield f'<line x1="{_LEFT}" y1="{floor}" x2="{_LEFT + _WIDTH}" y2="{floor}" stroke="{palette.edge}"/>'
    yield f'<g fill="{palette.idle}">'
    for y, lane in _rows(band, top):
        yield "".join(_bar(scale, stay.start_s, stay.end_s, y + 2, 1) for stay in lane)
    yield "</g>"
    for kind in _LAYERS:
        yield f'<g fill="{getattr(palette, kind)}">'
        for y, lane in _rows(band, top):
            for span in (span for stay in lane for span in stay.spans if span.kind == kind):
                told = f"conversation {span.conversation}, turn {span.number}: {kind} {span.start_s:.3f} to {span.end_s:.3f} s"
                yield _bar(scale, span.start_s, span.end_s, y, _LANE - 1, told, 1.5 if kind == "transfer" else 0.4)
        yield "</g>"
    yield _area(band, floor, scale, edges_s, palette)
    yield "</g>"


def _rows(band: _Band, top: int) -> Iterator[tuple[int, list[Stay]]]:
    return ((top + _LANE * index, lane) for index, lane in enumerate(band.lanes))


def _bar(scale: _Scale, start_s: float, end_s: float, y: int, height: int, told: str = "", least: float = 0.4) -> str:
    left, width = scale.x(start_s), max(least, scale.x(end_s) - scale.x(start_s))
    head = f'<rect x="{left:.2f}" y="{y}" width="{width:.2f}" height="{height}"'
    return f"{head}><title>{told}</title></rect>" if told else f"{head}/>"


def _area(band: _Band, floor: int, scale: _Scale, edges_s: np.ndarray, palette: Palette) -> str:
    """Draw the cached tokens as steps, on one scale for all replicas, and the pool's size where it is near."""
    most, size = band.cache.columns(edges_s), band.scale_tokens
    points = [f"{_LEFT},{floor}"]
    for left, right, tokens in zip(edges_s[:-1].tolist(), edges_s[1:].tolist(), most.tolist(), strict=True):
        y = floor - _CACHE * tokens / size
        points += [f"{scale.x(left):.1f},{y:.1f}", f"{scale.x(right):.1f},{y:.1f}"]
    outline = " ".join([*points, f"{_LEFT + _WIDTH},{floor}"])
    area = f'<polygon points="{outline}" fill="{palette.full}" stroke="{palette.full_edge}" stroke-width="0.6"/>'
    ceiling = floor - _CACHE * band.capacity / size
    if band.capacity > size:
        return area
    ends = f'x1="{_LEFT}" y1="{ceiling:.1f}" x2="{_LEFT + _WIDTH}" y2="{ceiling:.1f}"'
    return f'{area}<line {ends} stroke="{palette.edge}" stroke-dasharray="4 3"/>'


_STYLE = "body{margin:0;font-family:Helvetica,Arial,sans-serif}label{display:block;padding:8px}div{overflow-x:auto}"
_ZOOM = """document.querySelector('input').oninput = event => {
  const style = document.querySelector('svg').style
  style.width = event.target.value + '%'
  style.height = 'auto'
}"""


def _page(drawn: str, title: str) -> str:
    """Return an HTML page around the picture, as wide as one likes."""
    head = f'<meta charset="utf-8"/><title>{_text(title)}</title><style>{_STYLE}</style>'
    zoom = '<label>Zoom <input type="range" min="100" max="1000" value="100"/></label>'
    body = f"{zoom}<div>{drawn}</div><script>{_ZOOM}</script>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'

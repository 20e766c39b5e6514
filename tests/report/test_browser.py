"""A real browser shows the pages: no errors, nothing empty, nothing cut off, wide and narrow, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import look, photograph
from report_examples import slowed
from test_pages import made

from optsched.files import save
from optsched.logfile import save_log
from optsched.report.pages.plan import plan_page

WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, example, answer_file) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    plan, executed = example
    save(plan, "plan", folder / "plan.json")
    save_log(slowed(executed.log, 1.25), executed.workload, folder / "log.parquet", plan)
    sources = {"plan": folder / "plan.json", "log": folder / "log.parquet", "capacity": answer_file}
    found = {name: made(path, sensitivity=name == "plan").page for name, path in sources.items()}
    trace = "/a/long/path/" + "of_a_trace_that_lies_deep/" * 3 + "trace.csv"
    elsewhere = plan.replace(workload=plan.workload.replace(recipe=None, trace=trace))
    return {**found, "trace": plan_page(elsewhere, source="plan.json", executed=executed)}


def test_pages_show_all_their_parts_wide_and_narrow(tmp_path, pages) -> None:
    seen, console = look(pages, WIDTHS, tmp_path)
    assert console == []
    for (name, width), each in seen.items():
        assert each.width == width
        assert each.scroll <= width, (name, each.beyond)
        assert each.beyond == []
        assert each.cut == []
        assert each.outside == []
        assert each.tallest < 140  # no column was squeezed to a letter's width
        assert each.sections
        assert all(box[2] > 0.8 * min(width, 1180) - 40 and box[3] > 60 for box in each.sections.values()), (name, each.sections)
        assert each.charts
        assert all(box[3] > 200 and box[4] > 60 for box in each.charts), (name, each.charts)
    assert "Targets are missed" in seen["plan", 1280].text or "Every latency target is kept" in seen["plan", 1280].text
    assert "Drift:" in seen["log", 400].text
    assert "USD a month" in seen["capacity", 400].text


@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_the_page_follows_the_reader_s_colours(tmp_path, pages, scheme, dark) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(pages["plan"], encoding="utf-8")
    photograph(page, picture, 1280, 900, f"--blink-settings=preferredColorScheme={scheme}")
    rows = pixels(picture)
    corner = rows[5][:3]
    assert (max(corner) < 60) if dark else (min(corner) > 200)
    colours = {bytes(row[index : index + 3]) for row in rows[::4] for index in range(0, len(row), 24)}
    assert len(colours) > 30  # text and charts, not one empty area


def pixels(picture: Path) -> list[bytes]:
    """Return the rows of a picture of 8-bit RGB or RGBA as the browser writes them, as RGB(A) bytes."""
    import numpy as np
    from matplotlib.image import imread

    assert picture.read_bytes().startswith(b"\x89PNG")
    found = (imread(picture)[..., :3] * 255).astype(np.uint8)
    return [row.tobytes() for row in found]

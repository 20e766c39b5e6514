"""The timeline is valid, small, and shows the log's own numbers."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from factories import make_plan, make_workload

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.report.timeline import MAX_SPANS, check_timeline, draw_timeline, save_timeline
from optsched.simulator.simulate import simulate

SVG = "{http://www.w3.org/2000/svg}"
WORK = make_workload([[(100, 50), (20, 70)], [(60, 40)]], [0.0, 0.05], gap_s=0.5)


def drawn_spans(picture: str) -> list[tuple[int, int, str, float, float]]:
    """Return conversation, turn, kind, start and end of every span that the picture names."""
    pattern = re.compile(r"conversation (\d+), turn (\d+): (\w+) ([\d.]+) to ([\d.]+) s")
    titles = [title.text or "" for title in ElementTree.fromstring(picture).iter(f"{SVG}title")]
    return [(int(a), int(b), kind, float(c), float(d)) for a, b, kind, c, d in (pattern.fullmatch(t).groups() for t in titles)]


def test_every_turn_of_the_log_is_in_the_picture_at_its_times() -> None:
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, WORK)
    spans = drawn_spans(draw_timeline(plan, log, WORK))
    for turn, (conversation, number) in enumerate([(0, 0), (0, 1), (1, 0)]):
        prefill = next(span for span in spans if span[:3] == (conversation, number, "prefill"))
        assert prefill[3:] == pytest.approx((log.start_s[turn], log.first_token_s[turn]), abs=6e-4)
        decode = next(span for span in spans if span[:3] == (conversation, number, "decode"))
        assert decode[4] == pytest.approx(log.end_s[turn], abs=6e-4)
    assert sum(span[2] == "transfer" for span in spans) == len(log.transfers.start_s) == 2


def test_a_span_s_place_on_the_axis_is_its_time() -> None:
    plan = make_plan(["mixed"], policy="collocated")
    log = simulate(plan, WORK)
    root = ElementTree.fromstring(draw_timeline(plan, log, WORK))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    ends = [float(bar.get("x", 0)) + float(bar.get("width", 0)) for bar in bars]
    starts = [float(bar.get("x", 0)) for bar in bars]
    assert max(ends) == pytest.approx(1230, abs=0.5)
    assert min(starts) == pytest.approx(230 + 1000 * log.start_s.min() / log.makespan_s, abs=0.5)


def test_replicas_are_named_with_the_conversations_and_the_peak_of_their_caches() -> None:
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, WORK)
    texts = [text.text for text in ElementTree.fromstring(draw_timeline(plan, log, WORK)).iter(f"{SVG}text")]
    assert {"r0", "r1", "a40 300 W, 2 conversations"} <= set(texts)
    assert any(text.startswith("cache: peak 1") and text.endswith("of 6,400 tokens") for text in texts if text)


@pytest.mark.parametrize("suffix", [".svg", ".html", ".SVG"])
def test_the_file_is_written_and_valid_xml(tmp_path: Path, suffix: str) -> None:
    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, WORK)
    path = tmp_path / f"picture{suffix}"
    save_timeline(plan, log, WORK, path)
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert root.tag == ("html" if suffix == ".html" else f"{SVG}svg")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # nothing is fetched


def test_names_of_a_user_s_file_are_text_in_the_picture() -> None:
    plan = make_plan(["mixed"], policy="collocated")
    odd = '<b id="x">&\x07'
    plan = plan.replace(replicas=(plan.replicas[0].replace(id=odd),), links=())
    root = ElementTree.fromstring(draw_timeline(plan, simulate(plan, WORK), WORK))
    assert any(text.text == '<b id="x">&' for text in root.iter(f"{SVG}text"))


def test_another_suffix_is_refused_in_one_line() -> None:
    for name in ("picture.png", "picture", "svg"):
        with pytest.raises(
            SpecError, match=r"--timeline: '\w+(\.png)?': a timeline is a picture or a page; end its name in .svg or .html"
        ):
            check_timeline(Path(name))


def many(conversations: int) -> Workload:
    rng = np.random.default_rng(1)
    turns = [[(int(rng.integers(20, 200)), int(rng.integers(2, 30))) for _ in range(5)] for _ in range(conversations)]
    return make_workload(turns, np.sort(rng.uniform(0, conversations / 20, conversations)).tolist(), gap_s=0.2)


def test_thousands_of_conversations_stay_readable_and_small() -> None:
    plan = make_plan(["prefill"] * 4 + ["decode"] * 12, kv_blocks=2000)
    work = many(3000)
    log = simulate(plan, work, record_steps=False, record_tokens=False)
    picture = draw_timeline(plan, log, work)
    assert len(picture) < 2e6
    assert 0 < len(drawn_spans(picture)) <= MAX_SPANS
    assert re.search(r"conversations, [\d,]+ drawn", picture)
    height = float(ElementTree.fromstring(picture).get("height", 0))
    assert height < 4000


def test_a_log_that_was_cut_short_is_drawn_as_far_as_it_goes() -> None:
    from dataclasses import replace

    plan = make_plan(["prefill", "decode"])
    log = simulate(plan, WORK)
    cut = replace(
        log,
        end_s=np.array([log.end_s[0], np.nan, np.nan]),
        first_token_s=np.array([log.first_token_s[0], np.nan, log.first_token_s[2]]),
        token_s=None,
    )
    spans = drawn_spans(draw_timeline(plan, cut, WORK))
    assert {span[:3] for span in spans if span[2] == "decode"} == {(0, 0, "decode")}

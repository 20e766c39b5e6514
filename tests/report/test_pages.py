"""Pages hold what they promise, need nothing from elsewhere, and survive odd names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_examples import planned, slowed

from optsched.domain.log import Event
from optsched.domain.plan import NamedPlan, Plan, PlanSet
from optsched.errors import PlanError, SpecError, UnknownNameError
from optsched.files import save
from optsched.logfile import load_logged, save_log
from optsched.planner.robustness import Disturbed, Robustness
from optsched.report.findings import Findings, find_out
from optsched.report.loading import load_source
from optsched.report.pages.plan import Executed, plan_page
from optsched.report.sensitivity import break_in_words


def nothing(done: float, total: float | None = None) -> None:
    """Show no progress."""


def made(path: Path, *, sensitivity: bool = False) -> Findings:
    """Return the report of a file."""
    return find_out(load_source(path), path.name, nothing, sensitivity=sensitivity)


def root_of(page: str) -> ElementTree.Element:
    """Return a page as a tree: it is well-formed XML too."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def text_of(page: str) -> str:
    """Return a page's text with single spaces."""
    return " ".join("".join(root_of(page).find("body").itertext()).split())


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory, example) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save(example[0], "plan", path)
    return path


@pytest.fixture(scope="module")
def log_file(tmp_path_factory, example) -> Path:
    plan, executed = example
    events = (Event(0.5, "worker_died", -1, 2, "killed"), Event(0.75, "recovered", 3, 1))
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    save_log(replace(slowed(executed.log, 1.25), events=events), executed.workload, path, plan)
    return path


def test_a_plan_s_page_has_every_part(plan_file, example) -> None:
    found = made(plan_file)
    assert [section.get("id") for section in root_of(found.page).iter("section")][:3] == ["fleet", "promise", "certificate"]
    words = text_of(found.page)
    for expected in (
        "tiny on 5 x a40", "2 prefill on a40@300W", "3 decode on a40@300W", "p95 at most 500 ms", "proven >= 2.5 kJ", "plan 3.2 kJ",
        "Gap to the bound 21.9 %", "24 conversations, 72 turns", "poisson arrivals, 8 conversations/s, seed 1", "placement conserve",
        "5 x a40", "5 USD/h", "assumed, not fitted",
    ):  # fmt: skip
        assert expected in words, expected
    assert found.facts["kind"] == "plan"
    assert found.facts["not_drawn"] is None
    assert [each["key"] for each in found.facts["targets"]] == ["ttft", "ttfet"]
    assert found.summary in words


def test_a_plan_s_page_says_what_it_bears(tmp_path, example) -> None:
    plan: Plan = example[0]
    path = tmp_path / "plan.json"
    save(plan, "plan", path)
    found = made(path, sensitivity=True)
    assert found.robustness is not None
    assert [each.factor for each in found.robustness.outputs] == [0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    words = text_of(found.page)
    assert "Every target is kept" in words
    for each in (*found.robustness.rate, *found.robustness.outputs):
        assert f"x {each.factor:g}" in words
    assert made(path).robustness is None
    closed = plan.workload.replace(arrivals=plan.workload.arrivals.replace(process="closed", rate_per_s=None, concurrency=4))
    save(plan.replace(workload=closed), "plan", path)
    assert made(path, sensitivity=True).robustness is None  # a closed loop has no rate to raise


def test_what_is_borne_is_said_in_one_sentence() -> None:
    at = Disturbed(1.0, 1.0, ("ttft", -0.05), 0.1, 0.1, None)
    said = break_in_words(Robustness((at,), (at,), 0.0, 1.26))
    assert said == (
        "Every target is kept at no tried multiple of the planned arrival rate, and up to 1.26 times the planned output lengths."
    )


def test_one_plan_of_a_set_is_reported_by_name(tmp_path, example) -> None:
    plan: Plan = example[0]
    path = tmp_path / "plans.json"
    save(PlanSet(plans=(NamedPlan(name="chat", plan=plan), NamedPlan(name="code", plan=plan))), "plan-set", path)
    assert made(Path(f"{path}#code")).facts["kind"] == "plan"
    with pytest.raises(SpecError, match="holds the plans chat, code; name one, as in"):
        load_source(path)
    with pytest.raises(UnknownNameError, match="plan 'cod'"):
        load_source(Path(f"{path}#cod"))


def test_a_log_s_page_compares_and_flags_drift(log_file) -> None:
    found = made(log_file)
    words = text_of(found.page)
    for expected in (
        "decode steps took 1.25 times", "tiny: a run", "1 x worker died, 1 x recovered", "killed", "error of the sum", "drift",
        "as predicted", "+0.0 %", "Observed; placement conserve",
    ):  # fmt: skip
        assert expected in words, expected
    operations = {each["class"]: each for each in found.facts["operations"]}
    assert operations["decode steps"]["drifted"]
    assert operations["decode steps"]["error"] == pytest.approx(1 / 1.25 - 1)
    assert not operations["transfers"]["drifted"]
    assert found.facts["recovered_conversations"] == 1
    assert found.facts["error"]["makespan_s"] == pytest.approx(0, abs=1e-12)
    assert found.facts["drift_limit"] == 0.1


def test_a_capacity_answer_s_page_has_prices_and_what_was_tried(answer_file) -> None:
    found = made(answer_file)
    words = text_of(found.page)
    for expected in (
        "3 x a40@300W tp 2 mixed", "6.7 USD/h", "4,891 USD a month", "supply.a40", "one conversation/s less", "misses ttft", "met",
        "up to 1.13 times the planned arrival rate, and at every tried multiple of the planned output lengths", "the answer",
        "5 x a40@300W tp 2 mixed", "rate x 1.2", "1 replica types left out", "too slow for its targets", "87 %", "Every target is kept",
    ):  # fmt: skip
        assert expected in words, expected


def test_no_page_needs_anything_from_elsewhere(plan_file, log_file, answer_file) -> None:
    for path in (plan_file, log_file, answer_file):
        page = made(path).page
        assert "<script" not in page
        assert not re.findall(r"(?:https?:)?//\S+", page.replace("http://www.w3.org/2000/svg", ""))
        assert not re.findall(r"(?:src|@import|url\()\s*=?[^#)]*", page.replace("url(#open)", ""))
        assert len(page) < 1_000_000
        for link in root_of(page).iter("a"):
            assert any(node.get("id") == link.get("href", "").removeprefix("#") for node in root_of(page).iter("section"))


def test_colours_of_the_page_are_all_defined_for_light_and_dark(plan_file, log_file, answer_file) -> None:
    for path in (plan_file, log_file, answer_file):
        page = made(path).page
        light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL))
        assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= light
        assert dark == light


def test_names_of_a_user_s_file_are_text(example) -> None:
    plan, executed = example
    odd = '</style><script>alert("x")</script>&\x07'
    renamed = plan.replace(
        replicas=tuple(each.replace(id=f"{odd}{index}", llm=odd, gpu=odd) for index, each in enumerate(plan.replicas)),
        llms=(plan.llms[0].replace(name=odd),), links=(),
    )  # fmt: skip
    page = plan_page(renamed, source=odd, executed=executed)
    assert not list(root_of(page).iter("script"))
    assert '</style><script>alert("x")</script>&' in text_of(page)


def test_the_largest_fleets_stay_readable(example) -> None:
    plan, _ = example
    many = plan.replace(replicas=tuple(plan.replicas[2].replace(id=f"d{index}", tp=8) for index in range(500)))
    page = plan_page(many, source="plan.json", executed="too large")
    assert "and 404 more" in text_of(page)
    assert "500 decode on a40@300W" in text_of(page)
    assert len(page) < 200_000


def test_a_plan_whose_trace_is_elsewhere_is_reported_without_its_timeline(tmp_path, example) -> None:
    plan: Plan = example[0]
    path = tmp_path / "plan.json"
    save(plan.replace(workload=plan.workload.replace(recipe=None, trace="/gone/trace.csv")), "plan", path)
    found = made(path)
    assert "Not drawn" in text_of(found.page)
    assert "/gone/trace.csv" in found.facts["not_drawn"]


def test_a_plan_without_targets_says_so(example) -> None:
    plan, executed = example
    free = plan.replace(slo=plan.slo.replace(ttft=None, ttfet=None))
    assert "No latency targets are set." in text_of(plan_page(free, source="p", executed=executed))


def test_a_log_reads_back_its_own_conversations(tmp_path, example) -> None:
    plan, executed = example
    path = tmp_path / "log.parquet"
    save_log(executed.log, executed.workload, path, plan)
    _, _, workload = load_logged(path)
    for name in ("arrival_s", "first_turn", "new_tokens", "output_tokens"):
        assert getattr(workload, name).tolist() == pytest.approx(getattr(executed.workload, name).tolist())
    assert workload.gap_s.tolist() == pytest.approx(executed.workload.gap_s.tolist(), abs=1e-9)


def test_a_log_that_was_cut_short_is_reported_as_far_as_it_goes(tmp_path) -> None:
    import numpy as np

    plan, workload, log = planned()
    late = np.arange(workload.num_turns) >= 40
    cut = {name: np.where(late, np.nan, getattr(log, name)) for name in ("arrival_s", "start_s", "first_token_s", "end_s")}
    tokens = np.where(np.repeat(late, workload.output_tokens), np.nan, log.token_s)
    path = tmp_path / "log.parquet"
    save_log(replace(log, origin="observed", token_s=tokens, **cut), workload, path, plan)
    assert "Operations" in text_of(made(path).page)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.toml", "", r"'plan.toml': a report is made of a plan or what capacity --json printed \(.json\), or of a log"),
        ("plan.json", "[1", "not valid JSON"),
        ("plan.json", '{"schema": "optsched/scenario"}', "expected 'optsched/plan'"),
        ("plan.json", '{"fleet": [], "certificate": {}, "prices": {}}', "cost_usd_per_hour"),
        ("plan.json", '{"infeasible": {"relax": []}}', "the answer is that no fleet keeps the targets"),
        (
            "plan.json",
            '{"sweep": []}',
            "a sweep over rates is not one answer; make the page of one rate: capacity --rate R --json",
        ),
        ("plan.json", '{"fleet": [], "certificate": 1, "prices": {}}', "missing|valid"),
        ("log.parquet", "nothing", "Parquet"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(tmp_path, name, content, message) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SpecError, match=message):
        load_source(path)


def test_a_log_without_its_plan_is_refused(tmp_path, example) -> None:
    executed: Executed = example[1]
    path = tmp_path / "log.parquet"
    save_log(executed.log, executed.workload, path)
    with pytest.raises(SpecError, match="the log does not name its plan, which has the prediction; write it with: optsched run"):
        load_source(path)


def test_a_plan_that_contradicts_itself_is_refused(tmp_path, example) -> None:
    plan: Plan = example[0]
    path = tmp_path / "plan.json"
    save(plan.replace(replicas=plan.replicas[:2], links=()), "plan", path)
    with pytest.raises(PlanError, match="there are no replicas to decode on"):
        load_source(path)

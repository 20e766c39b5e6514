"""The report command, as a user calls it."""

from __future__ import annotations

import json

import pytest
from report_examples import planned, slowed

from optsched.cli import invoke
from optsched.files import save
from optsched.logfile import save_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    plan, workload, log = planned()
    save(plan, "plan", folder / "plan.json")
    save_log(slowed(log, 1.5), workload, folder / "log.parquet", plan)
    return folder


def test_report_writes_the_page_beside_its_source_and_says_what_it_comes_to(folder, capsys) -> None:
    assert invoke(["report", str(folder / "plan.json"), "--no-sensitivity"]) == 0
    printed = capsys.readouterr().out
    assert f"Page written to {folder / 'plan.html'}" in printed
    assert (folder / "plan.html").read_text().startswith("<!DOCTYPE html>")


def test_report_prints_what_the_page_says_as_json(folder, tmp_path, capsys) -> None:
    out = tmp_path / "page.html"
    assert invoke(["report", str(folder / "log.parquet"), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(out)
    assert printed.keys() >= {"kind", "predicted", "observed", "error", "operations", "drift_limit", "recovered_conversations"}
    assert any(each["drifted"] for each in printed["operations"])
    assert out.exists()


def test_report_says_what_a_plan_bears_as_capacity_does(folder, tmp_path, capsys) -> None:
    assert invoke(["report", str(folder / "plan.json"), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["robustness"].keys() == {"rate", "outputs", "rate_breaks", "outputs_break"}
    assert {each["key"] for each in printed["targets"]} == {"ttft", "ttfet"}


def test_report_refuses_in_one_line(folder, tmp_path, capsys) -> None:
    assert invoke(["report", str(tmp_path / "absent.json")]) == 1
    assert "no such file; check the path" in capsys.readouterr().err
    assert invoke(["report", str(folder / "plan.json"), "--out", str(tmp_path / "no" / "page.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert invoke(["report"]) == 2
    assert invoke(["report", str(folder / "plan.json"), "--colour", "red"]) == 2

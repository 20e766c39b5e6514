"""The plan and simulate commands, as a user calls them."""

from __future__ import annotations

import json

import pytest

from optsched.cli import invoke

METRICS = ("clock", "ttft_s", "ttfet_s", "tbt_s", "tpot_s", "e2e_s", "normalised", "slo_attainment", "makespan_s", "energy_j")


def test_plan_prints_replicas_prediction_and_certificate(capsys):
    assert invoke(["plan", "quickstart"]) == 0
    printed = capsys.readouterr()
    for words in ("prefill-0", "decode-1", "TTFET", "Certificate: ", "proven >="):
        assert words in printed.out


def test_plan_writes_what_it_prints_as_json(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert invoke(["plan", "quickstart", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["schema"] == "optsched/plan"
    assert printed["links"][0].keys() >= {"from", "to", "latency_s", "bytes_per_s"}


def test_simulate_takes_a_plan_or_a_scenario_and_both_agree(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert invoke(["plan", "quickstart", "--out", str(out)]) == 0
    capsys.readouterr()
    answers = []
    for source in (str(out), "quickstart"):
        assert invoke(["simulate", source, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["metrics"] == answers[1]["metrics"]
    assert answers[0]["metrics"].keys() >= set(METRICS)
    assert answers[0].keys() >= {"metrics", "iterations", "transfers", "preemptions", "cpu_s"}


def test_simulate_replaces_policy_rate_and_seed_of_a_plan(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert invoke(["plan", "quickstart", "--out", str(out)]) == 0
    capsys.readouterr()
    found = {}
    for name, options in {
        "as is": [],
        "policy": ["--policy", "collocated"],
        "rate": ["--rate", "50"],
        "seed": ["--seed", "9"],
    }.items():
        assert invoke(["simulate", str(out), "--json", *options]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["policy"]["transfers"] == 0
    assert found["rate"]["metrics"]["makespan_s"] < found["as is"]["metrics"]["makespan_s"]
    assert found["seed"]["metrics"]["ttfet_s"] != found["as is"]["metrics"]["ttfet_s"]


def test_the_log_of_a_simulation_is_written(tmp_path, capsys):
    from optsched.logfile import load_log

    assert invoke(["simulate", "quickstart", "--log", str(tmp_path / "log.parquet")]) == 0
    log, plan = load_log(tmp_path / "log.parquet")
    assert log.origin == "simulated"
    assert plan is not None
    assert "iterations" in capsys.readouterr().out


@pytest.mark.parametrize("clock", ["true", "paper"])
def test_the_real_trace_plans_and_simulates_with_every_token_accounted_for(conserve_trace, tmp_path, capsys, clock):
    from optsched import files
    from optsched.domain.plan import Plan
    from optsched.logfile import load_log
    from optsched.traces.loading import load_workload

    out, log_path = tmp_path / "plan.json", tmp_path / "log.parquet"
    arguments = ["plan", "swe-agent-a40-conserve", "--trace", str(conserve_trace), "--out", str(out), "--clock", clock]
    assert invoke(arguments) == 0
    capsys.readouterr()
    assert invoke(["simulate", str(out), "--log", str(log_path), "--clock", clock, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    plan = files.load(Plan, "plan", out)
    workload = load_workload(plan.workload)
    log, _ = load_log(log_path)
    assert plan.violations() == []
    assert log.violations(workload) == []
    assert workload.num_conversations == 255
    assert workload.num_turns == 255 * 5
    assert int(workload.first_turn_tokens.sum()) == 3_897_772
    assert answer["metrics"]["tokens"]["output"] == len(log.token_s) == 222_377
    assert answer["transfers"] == 255
    assert sorted(log.transfers.conversation.tolist()) == list(range(255))
    assert plan.certificate.bound <= plan.certificate.value


def test_plan_compares_with_the_rival_policies(capsys):
    assert invoke(["plan", "quickstart", "--compare"]) == 0
    printed = capsys.readouterr().out
    for words in ("conserve *", "collocated", "full-disaggregation", "per-turn", "context tokens/J", "proven >="):
        assert words in printed


def test_the_comparison_as_json_leaves_the_plan_s_keys_as_they_are(capsys):
    answers = []
    for options in ([], ["--compare"]):
        assert invoke(["plan", "quickstart", "--json", *options]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    rows = answers[1].pop("comparison")
    assert answers[0] == answers[1]
    assert [row["policy"] for row in rows] == ["conserve", "collocated", "full-disaggregation", "per-turn"]
    assert rows[0]["metrics"] == answers[0]["predicted"]
    assert rows[0]["transfers"] == 16
    assert rows[1]["roles"] == {"mixed": 3}


def test_a_policy_that_cannot_serve_says_why_in_the_comparison(tmp_path, capsys):
    from optsched import catalog

    text = catalog.scenario_path("swe-agent-a40").read_text()
    path = tmp_path / "one.toml"
    path.write_text(text.replace("count = 4", "count = 1").replace("conversations = 255", "conversations = 2"))
    assert invoke(["plan", str(path), "--policy", "collocated", "--compare"]) == 0
    assert "conserve cannot serve: it needs a replica to prefill and another to decode" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "name"), [("plan", "picture.html"), ("simulate", "picture.svg")])
def test_the_timeline_is_written_where_it_was_asked(command, name, tmp_path, capsys):
    assert invoke([command, "quickstart", "--timeline", str(tmp_path / name)]) == 0
    assert f"Timeline written to {tmp_path / name}" in capsys.readouterr().err
    text = (tmp_path / name).read_text()
    assert text.startswith("<!DOCTYPE html>" if name.endswith("html") else "<svg")
    assert "conversation 15, turn 4: decode" in text


@pytest.mark.parametrize("command", [["plan", "quickstart"], ["simulate", "quickstart"], ["run", "plan.json"]])
def test_a_timeline_of_another_kind_is_refused_before_anything_is_computed(command, capsys):
    assert invoke([*command, "--timeline", "picture.png"]) == 1
    assert capsys.readouterr().err == (
        "optsched: --timeline: 'picture.png': a timeline is a picture or a page; end its name in .svg or .html\n"
    )

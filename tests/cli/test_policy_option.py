"""--policy takes placement and batching policies, of a plan or a scenario, and the answer says which were used."""

from __future__ import annotations

import json

import pytest

from optsched.cli import invoke


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    assert invoke(["plan", "quickstart", "--out", str(out)]) == 0
    return str(out)


def simulated(source, capsys, *options):
    capsys.readouterr()
    assert invoke(["simulate", source, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_batching_policy_replaces_only_the_batching(plan_file, capsys):
    for source in (plan_file, "quickstart"):
        assert simulated(source, capsys)["policy"] == {"placement": "conserve", "batching": "vllm-chunked"}
        answer = simulated(source, capsys, "--policy", "apt-serve")
        assert answer["policy"] == {"placement": "conserve", "batching": "apt-serve"}


def test_both_kinds_are_taken_in_any_order(plan_file, capsys):
    answers = [
        simulated(plan_file, capsys, "--policy", first, "--policy", second)
        for first, second in (("collocated", "sjf"), ("sjf", "collocated"))
    ]
    assert answers[0]["policy"] == {"placement": "collocated", "batching": "sjf"}
    assert answers[0]["metrics"] == answers[1]["metrics"]


def test_a_plan_records_the_batching_policy_that_was_asked_for(capsys):
    assert invoke(["plan", "quickstart", "--policy", "fastgen", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batching"]["policy"] == "fastgen"


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_unknown_and_doubled_policies_are_refused_in_one_line(command, capsys):
    for options, words in (
        (["apt-srve"], "Unknown policy 'apt-srve'; did you mean: apt-serve"),
        (["colocated"], "did you mean: collocated"),
        (["vllm", "sjf"], "vllm and sjf are both batching policies; give one of each kind at most"),
        (["conserve", "collocated"], "conserve and collocated are both placement policies"),
    ):
        assert invoke([command, "quickstart", *(word for name in options for word in ("--policy", name))]) == 1
        printed = capsys.readouterr()
        assert words in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""


def test_targets_survive_a_change_of_policy_and_own_parameters_do_not(plan_file):
    from optsched import files
    from optsched.errors import UnknownNameError
    from optsched.planner.replan import with_batching

    plan = files.load_plan(plan_file)
    told = plan.batching.replace(policy="sarathi", parameters={"ttft_slo_s": 0.5, "chunk_tokens": 64.0})
    changed = with_batching(plan.replace(batching=told), "apt-serve")
    assert changed.batching.parameters == {"ttft_slo_s": 0.5}
    assert changed.batching.rho_s_per_block == plan.batching.rho_s_per_block
    assert with_batching(changed, "apt-serve") is changed
    with pytest.raises(UnknownNameError, match="Unknown batching policy 'fifo'"):
        with_batching(plan, "fifo")

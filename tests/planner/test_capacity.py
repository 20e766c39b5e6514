"""Capacity: the cheapest fleet whose simulation keeps the targets, seen as a user does."""

from __future__ import annotations

import json
from itertools import pairwise, permutations
from pathlib import Path

import pytest

from optsched import catalog
from optsched.capacity.solve import FleetInfeasibleError, solve_fleet
from optsched.capacity.survival import fatal_failures
from optsched.cli import invoke
from optsched.cli.capacity_answer import print_capacity
from optsched.domain.scenario import CurrentFleet, FleetEntry, LatencyTarget, Limits
from optsched.errors import SpecError, UnknownNameError
from optsched.files import load_plan, load_plans
from optsched.planner.capacity import capacity
from optsched.planner.capacity_answer import slo_price
from optsched.planner.capacity_front import pareto
from optsched.planner.capacity_pools import pools_of
from optsched.planner.capacity_problem import capacity_problem, pool_columns
from optsched.planner.capacity_rate import largest_rate, sustained_rate
from optsched.planner.capacity_trials import FIRST, SEEDS

CHAT = catalog.scenario("chat-l4")


@pytest.fixture(scope="module")
def found():
    return capacity(CHAT, rate_per_s=0.4)


def test_every_target_is_kept_and_no_replica_can_be_spared(found) -> None:
    metrics = found.planned.plan.predicted
    assert metrics.slo_violations["ttft"] <= 0.05
    assert metrics.slo_violations["tbt"] <= 0.05
    assert sum(entry.count for entry in found.fleet) == 2
    assert found.iterations[0].met
    assert not any(each.met for each in found.iterations if each.origin == "one fewer")


def test_the_bound_is_below_the_value_and_the_price_is_the_fleet_s(found) -> None:
    proof = found.certificate
    assert proof.bound <= proof.value == pytest.approx(found.cost_usd_per_hour)
    assert found.prices.value <= proof.bound * (1 + 1e-6)
    assert found.planned.plan.violations() == []


def test_unseen_seeds_keep_the_targets(found) -> None:
    from optsched.planner.plan import plan_scenario

    fixed = CHAT.replace(fleet=found.fleet)
    for seed in (101, 102, 103):
        metrics = plan_scenario(fixed, rate_per_s=0.4, seed=seed).plan.predicted
        assert max(metrics.slo_violations["ttft"], metrics.slo_violations["tbt"]) <= 0.05


def test_less_traffic_needs_no_more_and_more_traffic_names_the_limit(found) -> None:
    assert capacity(CHAT, rate_per_s=0.1).cost_usd_per_hour <= found.cost_usd_per_hour
    with pytest.raises(FleetInfeasibleError, match=r"Raise supply\.l4 from 2 to \d+\.") as caught:
        capacity(CHAT, rate_per_s=2.0)
    (limit,) = caught.value.relax
    assert (limit.limit, limit.now) == ("supply.l4", 2)
    assert limit.needed > 4


def test_given_gpus_that_keep_the_targets_with_few_seeds_only_are_an_answer_that_says_so(capsys) -> None:
    """A fixed supply leaves nothing to add; the same supply as a maximum is not enough."""
    agents = catalog.scenario("swe-agent-a40")
    found = capacity(agents)
    assert found.seeds == FIRST < SEEDS
    assert found.planned.plan.predicted.slo_violations["tbt"] <= 0.05
    print_capacity(found, explain=False)
    assert "keep the targets with the scenario's seed and the 2 that follow, not with 58 of 60" in capsys.readouterr().err
    supply = {gpu: entry.replace(count=None, max=entry.count) for gpu, entry in agents.supply.items()}
    with pytest.raises(FleetInfeasibleError, match=r"Raise supply\.a40 from 4 to \d+"):
        capacity(agents.replace(supply=supply))


def test_a_workload_that_ends_may_be_served_by_less_than_one_that_does_not(capsys) -> None:
    """Four A40 cannot serve 1.3 agents per second for ever, but 120 of them."""
    agents = catalog.scenario("swe-agent-a40")
    found = capacity(agents.replace(workload=agents.workload.replace(conversations=120)), rate_per_s=1.3)
    assert 0.5 < found.sustained < 1
    assert found.certificate.status == "FEASIBLE"
    assert found.certificate.bound == 0
    assert {each.origin for each in found.iterations} <= {"whole supply", "one fewer"}
    metrics = found.planned.plan.predicted
    assert max(metrics.slo_violations["ttfet"], metrics.slo_violations["tbt"]) <= 0.05
    print_capacity(found, explain=False)
    out, err = capsys.readouterr()
    assert "no bound is proven" in out
    assert "for ever" in err


def test_a_fleet_that_survives_a_failure_has_one_more(found) -> None:
    roomy = CHAT.replace(supply={"l4": CHAT.supply["l4"].replace(count=4)}, limits=Limits(survive="replica"))
    safe = capacity(roomy, rate_per_s=0.4)
    assert sum(entry.count for entry in safe.fleet) == 3


def test_targets_that_cannot_be_tightened_have_no_price() -> None:
    (pool,) = pools_of(CHAT, None, None, 0.1, None)
    one_at_a_time = CHAT.replace(engine=CHAT.engine.replace(max_sequences=1))
    alone_s = float(pool_columns(one_at_a_time, pool).columns.token_s.max())
    for factor, priced in ((1.005, False), (1.5, True)):
        held = CHAT.replace(slo=CHAT.slo.replace(tbt=LatencyTarget(seconds=factor * alone_s)))
        assert (slo_price(held, list(pools_of(held, None, None, 0.1, None))) is not None) == priced


def test_what_capacity_does_not_plan_is_refused() -> None:
    closed = CHAT.workload.arrivals.replace(process="closed", rate_per_s=None, concurrency=4)
    with pytest.raises(SpecError, match=r"process: 'closed': capacity plans for arrivals"):
        capacity(CHAT.replace(workload=CHAT.workload.replace(arrivals=closed)))


def test_the_command_prints_a_table_or_json_and_writes_a_plan_that_simulates(tmp_path: Path, capsys) -> None:
    plan = tmp_path / "plan.json"
    assert invoke(["capacity", "chat-l4", "--rate", "0.1", "--out", str(plan), "--explain"]) == 0
    assert "Fleet: 1 x l4@72W mixed" in capsys.readouterr().out
    assert invoke(["simulate", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["slo_attainment"] > 0.9
    assert invoke(["capacity", "chat-l4", "--rate", "0.1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fleet"] == [{"gpu": "l4", "power_cap_w": 72.0, "role": "mixed", "tp": 1, "pp": 1, "count": 1}]
    assert {"cost_usd_per_hour", "power_w", "predicted", "certificate", "prices", "iterations"} <= set(answer)


def test_infeasible_is_an_answer_too(capsys) -> None:
    assert invoke(["capacity", "chat-l4", "--rate", "2", "--json"]) == 1
    out, err = capsys.readouterr()
    (relax,) = json.loads(out)["infeasible"]["relax"]
    assert (relax["limit"], relax["from"]) == ("supply.l4", 2.0)
    assert err.count("\n") == 1


def test_a_sweep_has_a_line_for_each_rate(capsys) -> None:
    assert invoke(["capacity", "chat-l4", "--sweep", "rate=0.2:2.2:1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sweep"]
    assert [row["rate_per_s"] for row in rows] == pytest.approx([0.2, 1.2, 2.2])
    assert "fleet" in rows[0]
    assert "infeasible" in rows[2]


@pytest.mark.parametrize("text", ["rate=1:0:1", "rate=1:2", "price=1:2:1", "rate=1:2:0", "rate=1:1e9:1"])
def test_a_sweep_that_makes_no_sense_is_refused(text: str, capsys) -> None:
    assert invoke(["capacity", "chat-l4", "--sweep", text]) == 1
    assert "give rate=FIRST:LAST:STEP" in capsys.readouterr().err


SERVICES = """
schema = "optsched/scenario"
version = 1
[[service]]
name = "chat"
llm = "llama-3.1-8b"
workload = { source = "chat", conversations = 30, arrivals = { process = "poisson", rate_per_s = 0.4, seed = 7 } }
slo = { ttft = { percentile = 95, seconds = 2 }, tbt = { percentile = 95, seconds = 0.1 } }
[[service]]
name = "small"
llm = "qwen3-0.6b"
workload = { source = "sharegpt", conversations = 30, arrivals = { process = "poisson", rate_per_s = 1.6, seed = 7 } }
slo = { ttft = { percentile = 95, seconds = 1 }, tpot = { percentile = 95, seconds = 0.05 } }
[[fleet]]
gpu = "l4"
role = "mixed"
[supply]
"l4" = { max = 8 }
[objective]
minimise = "cost"
[engine]
max_batched_tokens = 1024
max_sequences = 64
[policy]
placement = "collocated"
placement_parameters = { admission = 0 }
"""
PERIODS = """
[[period]]
name = "day"
hours = 16
rate_per_s = 6
[[period]]
name = "night"
hours = 8
rate_per_s = 0.4
[current]
fleet = []
cost_of_change_usd = 0.01
"""


def test_services_share_a_supply_and_each_keeps_its_own_targets(tmp_path: Path, capsys) -> None:
    file, out = tmp_path / "two.toml", tmp_path / "plans.json"
    file.write_text(SERVICES)
    assert invoke(["capacity", str(file), "--rate", "4", "--json", "--out", str(out)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [pool["rate_per_s"] for pool in answer["pools"]] == pytest.approx([0.8, 3.2])
    assert sum(entry["count"] for entry in answer["fleet"]) <= 8
    assert {entry["service"] for entry in answer["fleet"]} == {"chat", "small"}
    for pool in answer["pools"]:
        assert max(pool["predicted"]["slo_violations"].values()) <= 0.05
    assert set(load_plans(out)) == {"chat", "small"}
    assert load_plan(f"{out}#small").llms[0].name == "qwen3-0.6b"
    assert invoke(["simulate", str(out), "--json"]) == 0
    simulated = json.loads(capsys.readouterr().out)["plans"]
    for pool in answer["pools"]:
        assert simulated[pool["pool"]]["metrics"]["ttft_s"] == pool["predicted"]["ttft_s"]
    assert invoke(["simulate", f"{out}#chat"]) == 0
    capsys.readouterr()
    with pytest.raises(SpecError, match="holds the plans chat, small; name one, as in"):
        load_plan(out)
    with pytest.raises(UnknownNameError, match="Unknown plan 'chats'; did you mean: chat"):
        load_plan(f"{out}#chats")
    assert invoke(["simulate", str(out), "--log", str(tmp_path / "log.parquet")]) == 1
    assert "several plans have no one log" in capsys.readouterr().err


def test_every_period_has_a_fleet_and_changes_are_paid(tmp_path: Path, capsys) -> None:
    file = tmp_path / "day.toml"
    file.write_text(SERVICES + PERIODS)
    assert invoke(["capacity", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    number = {pool["pool"]: sum(entry["count"] for entry in pool["fleet"]) for pool in answer["pools"]}
    assert number["chat, night"] <= number["chat, day"]
    assert sum(number.values()) > 4
    changed = sum(abs(number[f"{name}, day"] - number[f"{name}, night"]) for name in ("chat", "small"))
    assert answer["changes_usd"] == pytest.approx(2 * 0.01 * changed)
    assert answer["cost_usd_per_hour"] < answer["one_fleet"]["cost_usd_per_hour"]
    assert invoke(["capacity", str(file)]) == 0
    assert "One fleet for all periods" in capsys.readouterr().out
    file.write_text(SERVICES + PERIODS.replace("0.01", "1000"))
    assert invoke(["capacity", str(file), "--json"]) == 0
    steady = json.loads(capsys.readouterr().out)
    assert steady["changes_usd"] == 0
    assert steady["cost_usd_per_hour"] == pytest.approx(answer["one_fleet"]["cost_usd_per_hour"])


def test_services_cannot_share_a_trace_and_say_what_runs_today(tmp_path: Path, capsys) -> None:
    file = tmp_path / "two.toml"
    file.write_text(SERVICES)
    assert invoke(["capacity", str(file), "--trace", "any.csv"]) == 1
    assert "2 services cannot share one trace" in capsys.readouterr().err
    file.write_text(SERVICES + '[current]\nfleet = [{ gpu = "l4", role = "mixed" }]\n')
    assert invoke(["capacity", str(file)]) == 1
    assert "give each entry its service" in capsys.readouterr().err
    file.write_text(SERVICES + '[current]\nfleet = [{ gpu = "l4", role = "mixed", service = "chap" }]\n')
    assert invoke(["capacity", str(file)]) == 1
    assert "a fleet entry serves 'chap', there are chat, small" in capsys.readouterr().err


def test_the_front_and_the_robustness_stand_beside_the_answer(tmp_path: Path, capsys) -> None:
    file = tmp_path / "one.toml"
    file.write_text(SERVICES.replace('[supply]\n"l4" = { max = 8 }', '[supply]\n"l4" = { max = 8 }\n"a40" = { max = 2 }'))
    single = CHAT.replace(fleet=(), supply={"l4": {"max": 4}, "a40": {"max": 2}}, objective={"minimise": "cost"})
    answer = capacity(single, rate_per_s=0.8)
    points = pareto(single, answer)
    values = [(point.usd_per_hour, point.power_w, point.p95_latency_s) for point in points]
    assert len(values) > 2
    for first, second in permutations(values, 2):
        assert any(a < b for a, b in zip(first, second, strict=True))
    assert next(point for point in points if point.chosen).fleet == answer.fleet
    assert invoke(["capacity", str(file), "--pareto", "--robustness", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {len(point["simulated"]) for point in found["pareto"]} == {2}
    assert {"chat", "small"} == set(found["robustness"])
    assert found["robustness"]["chat"]["rate_breaks"] >= 0.99
    assert invoke(["capacity", "chat-l4", "--rate", "0.1", "--pareto", "--robustness"]) == 0
    printed = capsys.readouterr().out
    assert "(chosen)" in printed
    assert "Targets are kept up to rate x" in printed


def test_the_highest_rate_is_kept_wherever_the_search_begins(tmp_path: Path, capsys) -> None:
    asked = CHAT.replace(fleet=(), slo=CHAT.slo.replace(ttft=LatencyTarget(seconds=0.6)))
    found = largest_rate(asked)
    assert found.gpus == 2
    assert 0.5 * found.columns_per_s < found.best.rate_per_s
    assert found.columns_per_s <= found.bound_per_s * (1 + 1e-6)
    assert max(found.planned.plan.predicted.slo_violations.values()) <= 0.05
    assert found.best.rate_per_s == max(each.rate_per_s for each in found.tried)
    (pool,) = pools_of(asked, None, None, None, None)
    again = sustained_rate(asked, pool, found.best.fleet, 2 * found.best.rate_per_s)
    assert again.rate_per_s == pytest.approx(
        found.best.rate_per_s, rel=0.15
    )  # 10 of 200 conversations decide: not quite monotone
    out = tmp_path / "plan.json"
    assert invoke(["capacity", "chat-l4", "--maximise", "rate", "--json", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["fleet"][0]["count"] == 2
    assert load_plan(out).workload.arrivals.rate_per_s > 0.4
    assert invoke(["capacity", "chat-l4", "--maximise", "rate", "--rate", "1"]) == 1
    assert "the rate is the answer; leave out --rate" in capsys.readouterr().err


def test_several_services_have_no_one_highest_rate(tmp_path: Path, capsys) -> None:
    file = tmp_path / "two.toml"
    file.write_text(SERVICES)
    assert invoke(["capacity", str(file), "--maximise", "rate"]) == 1
    assert "2 services have no one highest rate" in capsys.readouterr().err


def test_what_runs_today_is_kept_where_change_costs_more_than_it_saves() -> None:
    open_fleet = CHAT.replace(fleet=(), supply={"l4": {"max": 4}, "a40": {"max": 2}}, objective={"minimise": "cost"})
    today = (FleetEntry(gpu="l4", role="mixed", count=2),)
    found = {}
    for usd in (0.0, 0.3, 50.0):
        asked = open_fleet.replace(current=CurrentFleet(fleet=today, cost_of_change_usd=usd))
        answer = capacity(asked, rate_per_s=0.8)
        found[usd] = answer
        assert answer.certificate.value == pytest.approx(answer.cost_usd_per_hour + answer.changes_usd)
    assert found[0.0].changes_usd == 0
    assert found[0.0].cost_usd_per_hour <= found[50.0].cost_usd_per_hour
    kept = next(entry for entry in found[50.0].fleet if entry.gpu == "l4" and entry.role == "mixed" and entry.tp == 1)
    assert kept.count == 2


def test_money_for_a_change_is_not_weighed_against_watts() -> None:
    today = CurrentFleet(fleet=(FleetEntry(gpu="l4", role="mixed", count=2),), cost_of_change_usd=3.0)
    with pytest.raises(SpecError, match="3 USD cannot be weighed against energy; minimise cost, or set it to 0"):
        capacity(CHAT.replace(current=today, objective={"minimise": "energy"}))


def test_a_fleet_that_survives_a_node_has_as_much_on_others() -> None:
    supply = {"l4": CHAT.supply["l4"].replace(count=None, max=12, gpus_per_node=2)}
    lone = CHAT.replace(supply=supply, fleet=(FleetEntry(gpu="l4", role="mixed"),))
    bare = capacity(lone, rate_per_s=0.6)
    safe = capacity(lone.replace(limits=Limits(survive="node")), rate_per_s=0.6)
    assert sum(entry.count for entry in safe.fleet) >= sum(entry.count for entry in bare.fleet) + 1
    assert fatal_failures(safe.problem.problem, safe.routed) == []


def test_looser_targets_never_cost_more_at_one_limit_of_utilisation() -> None:
    asked = CHAT.replace(fleet=(), supply={"l4": {"max": 40}, "a40": {"max": 20}}, objective={"minimise": "cost"})
    pools = pools_of(asked, None, None, 6.0, None)
    values = [solve_fleet(capacity_problem(asked, pools, tightness).problem).value for tightness in (0.55, 0.8, 1.0, 1.5, 3.0)]
    assert all(looser <= tighter * (1 + 1e-9) for tighter, looser in pairwise(values))
    assert values[0] >= values[-1]

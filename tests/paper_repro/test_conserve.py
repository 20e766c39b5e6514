"""The reproduction of ConServe: its files are sound, its emulation does what the artifact's does, and it repeats itself exactly."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optsched.cli import invoke
from optsched.cli.repro import paper_modules


@pytest.fixture(scope="module")
def parts():
    return paper_modules("conserve")


@pytest.fixture(scope="module")
def tiny(parts):
    """Return the smoke settings, cut further."""
    smoke = parts["settings"].settings(smoke=True)
    return smoke.replace(conversations=16, rates_per_s=(2.0,), seeds=(42,), caps=((300, 300),))


@pytest.fixture(scope="module")
def run(parts, tiny):
    """Return a cell, its conversations, its recorded first turns, and a plan of decoders behind a free prefiller."""
    cell = parts["cells"].Cell(tiny, (300, 300), 2.0, 42)
    plan = parts["fleets"].decoders_only(cell.plan("conserve", oracle=1))
    return cell, parts["conversations"].conversations(tiny), cell.recorded(), plan


def test_the_smoke_run_is_the_same_experiment_on_less_and_from_the_recipe(parts, monkeypatch, tmp_path):
    monkeypatch.setenv("OPTSCHED_DATA", str(tmp_path))
    smoke = parts["settings"].settings(smoke=True)
    monkeypatch.delenv("OPTSCHED_DATA")
    full = parts["settings"].settings()
    assert (smoke.law, smoke.power, smoke.pause) == (full.law, full.power, full.pause)
    assert smoke.conversations < full.conversations
    assert set(smoke.rates_per_s) < set(full.rates_per_s)
    assert smoke.trace is None
    assert "lengths are drawn from recipe 'swe-agent' instead" in parts["settings"].notes(full)[0]


def test_a_folder_of_data_without_the_trace_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPTSCHED_DATA", str(tmp_path))
    assert invoke(["repro", "conserve"]) == 1
    assert "no such file; put the trace there, or unset OPTSCHED_DATA to use the recipe" in capsys.readouterr().err


def test_every_check_has_limits_around_what_is_published_and_none_is_left_out(parts):
    expected = parts["settings"].expected()
    seen = list(parts["claims"].checks(expected))
    for _, kind, check in seen:
        assert kind in ("predicted", "fitted", "ours")
        assert check.low <= check.high
        assert check.published is None or check.low <= check.published <= check.high
    assert {check.name for _, kind, check in seen if kind == "fitted"} >= {"tpj conserve 300/300 2", "tpj conserve 300/200 2"}
    results = parts["settings"].HERE / "results"
    if not (results / "cells.csv").is_file():
        pytest.skip("no results are committed")
    judged = parts["claims"].judge(expected, parts["tables"].load(results))
    assert [row["check"] for row in judged if row["verdict"] == "not run"] == []


def test_the_frozen_law_is_what_the_microbenchmarks_give(parts):
    settings = parts["settings"].settings(smoke=True)
    found = parts["fleets"].fitted_law(settings)
    assert found.chunk_s == pytest.approx(settings.law.chunk_s, rel=1e-3)
    for name in ("token_s", "pair_s", "kv_s"):
        assert getattr(found, name) == pytest.approx(getattr(settings.law, name), rel=1e-3)


def test_the_law_meets_the_measured_points_within_three_percent(parts):
    from optsched.profiles import conserve_a40

    settings = parts["settings"].settings(smoke=True)
    plan = parts["fleets"].make_plan(settings, "conserve", (300, 300))
    law = plan.replicas[0].coefficients
    for tokens in (8000, 10000, 12000, 16000, 20000):
        assert law.prefill_s(tokens, 0, 8192) == pytest.approx(conserve_a40.PREFILL_S[300][tokens], rel=0.03)
    for (batch, kv), seconds in conserve_a40.DECODE_S.items():
        assert float(law.step_s(batch, 0.0, kv, batch)) == pytest.approx(seconds, rel=0.03)
    capped = parts["fleets"].make_plan(settings, "conserve", (300, 200)).replicas[1].coefficients
    assert float(capped.step_s(16, 0.0, 200_000, 16)) / float(law.step_s(16, 0.0, 200_000, 16)) <= 1.03
    assert plan.slo.standalone.coefficients.step_s(1.0) == pytest.approx(13.12e-3)


def test_arrivals_and_wrong_turns_are_those_that_the_artifacts_seeds_give(parts, tiny, run):
    generator, expected = random.Random(42), [0.0]
    for _ in range(tiny.conversations - 1):
        expected.append(expected[-1] + generator.expovariate(2.0))
    assert parts["conversations"].arrivals(tiny, 2.0, 42) == pytest.approx(expected)
    workload = run[1]
    generator = random.Random(42)
    wanted = {(c, i) for c in range(tiny.conversations) for i in range(1, 5) if generator.random() < 0.1}
    wrong = np.flatnonzero(parts["conversations"].wrong_turns(tiny, workload, 0.1))
    assert {(int(workload.conversation_of_turn[t]), int(workload.turn_in_conversation[t])) for t in wrong} == wanted
    more = parts["conversations"].wrong_turns(tiny, workload, 0.3)
    assert more[wrong].all()


def test_first_turns_pass_one_prefiller_in_order_and_move_once(run):
    _, workload, recorded, _ = run
    assert np.all(np.diff(recorded.execution_s) >= 0)
    assert np.all(np.diff(recorded.decoder_s) > 0)
    assert np.all(recorded.decoder_s > recorded.execution_s)
    assert np.all(recorded.end_s > recorded.decoder_s)
    assert 77 < recorded.prefill_w <= 300
    assert 1.4 < recorded.served_per_s < 1.8
    assert len(recorded.end_s) == workload.num_conversations


def test_decoders_behind_a_free_prefiller_get_first_turns_when_they_arrive(parts, run):
    _, workload, recorded, plan = run
    log, arriving = parts["passes"].replay(plan, workload, recorded.decoder_s)
    first = arriving.first_turn[:-1]
    assert log.first_token_s[first] == pytest.approx(recorded.decoder_s - recorded.decoder_s[0])
    assert log.dynamic_j[0] == 0
    assert len(log.transfers.conversation) == workload.num_conversations
    assert np.array_equal(np.sort(log.transfers.conversation), np.arange(workload.num_conversations))


def test_a_pause_is_what_the_artifacts_cost_model_says(parts):
    """By hand for 41,000 tokens of history and 67 new: 45.655 + 4.849 + 44.61365 + 2 (2 + 12.8334) ms."""
    model = parts["settings"].settings(smoke=True).pause
    own_s = parts["passes"].own_pause_s(model, 41_000, 67)
    assert own_s == pytest.approx((45.655 + 4.849 + 44.61365 + 29.6669) * 1e-3, abs=1e-6)
    assert parts["passes"].transfer_s(model, 1024) == 4.849e-3
    assert parts["passes"].prefill_hit_s(model, 12_000) == 14.5e-3


def test_a_wrong_turn_waits_for_all_recorded_first_turns_and_delays_those_that_arrive_in_its_block(parts, run):
    """First turns at 0 to 2, 1 to 3 and 3.01 to 4: a turn at 1.5 waits until 3, then blocks the prefiller some 40 ms."""
    workload, model = run[1].head(3), parts["settings"].settings(smoke=True).pause
    recorded = replace(
        run[2], arrival_s=np.array([0.0, 1.0, 3.01]), execution_s=np.array([0.0, 2.0, 3.01]), end_s=np.array([2.0, 3.0, 4.0])
    )
    wrong, ready_s = np.zeros(workload.num_turns, bool), np.zeros(workload.num_turns)
    wrong[1], ready_s[1] = True, 1.5
    pause_s, queued_s, block_s = parts["passes"].pauses(model, workload, recorded, wrong, ready_s)
    history, new = 25_000 + int(workload.context_before[1]), int(workload.new_tokens[1])
    assert pause_s[1] == pytest.approx(1.5 + parts["passes"].own_pause_s(model, history, new))
    assert block_s == pytest.approx(parts["passes"].prefill_hit_s(model, history + new))
    assert queued_s == pytest.approx([0.0, 0.0, 3.0 + block_s - 3.01])
    assert np.count_nonzero(pause_s) == 1


def test_pauses_repeat_themselves_and_none_of_them_is_conserve(parts, tiny, run):
    cell, workload, recorded, plan = run
    settings = tiny.replace(passes=12)
    wrong = parts["conversations"].wrong_turns(settings, workload, 0.3)
    paused = parts["passes"].replay_with_pauses(settings, plan, workload, recorded, wrong)
    assert paused.moved_s < 1e-6
    assert paused.passes > 2
    assert np.all(paused.workload.gap_s[wrong] > 0.1)
    assert np.all(paused.workload.gap_s[~wrong] == 0)
    conserve = parts["cells"].artifact_row(cell, "conserve", recorded)
    none = parts["cells"].artifact_row(cell, "ampd", recorded, 0.0)
    some = parts["cells"].artifact_row(cell, "ampd", recorded, 0.3)
    same = [name for name in conserve if name != "policy"]
    assert [conserve[name] for name in same] == [none[name] for name in same]
    assert some["ttfet_p95"] > conserve["ttfet_p95"]
    assert conserve["passes"] == 1


def test_one_transfer_per_conversation_under_conserve_and_one_per_turn_under_full_disaggregation(parts, run):
    cell, workload = run[:2]
    conserve = parts["cells"].whole_rows(cell, "conserve")
    assert {row["transfers"] for row in conserve} == {workload.num_conversations}
    everything = parts["cells"].artifact_row(cell, "full-disaggregation", run[2])
    assert everything["transfers"] == workload.num_turns


def test_energy_counts_every_gpu_once(parts, run):
    """By hand: dynamic energy of decoders and of the record, and 77 W on four GPUs until the end; less GPU 0's last idle part."""
    cell, workload, recorded, plan = run
    log, _ = parts["passes"].replay(plan, workload, recorded.decoder_s)
    billed, without = parts["measure"].energy_apart(plan, log, recorded, 0.0)
    assert billed == pytest.approx(log.dynamic_j[1:].sum() + recorded.prefill_j + 4 * 77 * log.makespan_s)
    assert billed - without == pytest.approx(77 * (log.makespan_s - recorded.window_s))
    more, _ = parts["measure"].energy_apart(plan, log, recorded, 2.0)
    assert more - billed == pytest.approx(2 * recorded.prefill_w)
    assert parts["cells"].artifact_row(cell, "conserve", recorded)["energy_kj"] == pytest.approx(billed / 1e3)


def test_energy_of_decoding_is_linear_in_its_factor_so_that_the_fit_is_exact(parts, tiny):
    settings = tiny.replace(power=tiny.power.replace(fitted_to={"300": 30.0}))
    power = parts["experiment"].fitted_power(settings)
    cell = parts["cells"].Cell(settings.replace(power=settings.power.replace(factor={**settings.power.factor, **power.factor})), (300, 300), 2.0, 42)  # fmt: skip
    assert parts["cells"].artifact_row(cell, "conserve", cell.recorded())["tpj"] == pytest.approx(30.0)


def test_a_figure_counts_only_within_its_limits_and_missing_ones_are_said(parts):
    key = {"policy": "conserve", "caps": "300/300", "rate_per_s": 2.0, "reading": "artifact"}
    rows = [{**key, "seed": 42, "ttfet_p95": 4.2, "tbt_p95": 9.0}, {**key, "seed": 1, "ttfet_p95": 5.2, "tbt_p95": 4.0}]
    judged = {(row["claim"], row["check"]): row for row in parts["claims"].judge(parts["settings"].expected(), {"cells": rows})}
    p95 = judged["T1", "ttfet_p95 conserve 300/300 2"]
    assert (p95["ours"], p95["verdict"], p95["mean"]) == (4.2, "reproduced", pytest.approx(4.7))
    assert p95["mean_low"] < 4.2
    assert judged["T3", "tbt_p95 conserve 300/300 2"]["verdict"] == "not reproduced"
    assert judged["T1", "ttfet_p95 ampd 300/300 2"]["verdict"] == "not run"


def test_a_smoke_run_goes_through_every_section_and_draws_what_it_can(parts, tiny, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    cut = tiny.replace(caps=((300, 300), (300, 200)), sweep=tiny.sweep.replace(shares=(0.0, 0.1)))
    monkeypatch.setattr(parts["settings"], "settings", lambda smoke: cut)
    assert invoke(["repro", "conserve", "--smoke", "--json", "--out", str(tmp_path)]) == 0
    committed = {path.name for path in (parts["settings"].HERE / "results").glob("*")}
    assert committed <= {path.name for path in tmp_path.iterdir()}
    out = capsys.readouterr()
    assert "lengths are drawn from recipe" in out.err
    claims = {row["check"]: row for row in json.loads(out.out)["claims"]}
    assert claims["ttfet_reduction"]["verdict"] != "not run"
    assert claims["transfers_per_conversation"]["verdict"] == "reproduced"
    read = parts["tables"].load(tmp_path)
    assert {row["check"]: row["verdict"] for row in parts["claims"].judge(parts["settings"].expected(), read)} == {
        name: row["verdict"] for name, row in claims.items()
    }


def test_a_trace_is_taken_from_the_command_line_and_refused_where_none_is_read(tmp_path: Path, capsys) -> None:
    assert invoke(["repro", "conserve", "--smoke", "--trace", str(tmp_path / "absent.csv")]) == 1
    assert "absent.csv: no such file; put the trace there" in capsys.readouterr().err
    assert invoke(["repro", "aptserve", "--smoke", "--trace", str(tmp_path)]) == 1
    assert "--trace: aptserve reads no trace" in capsys.readouterr().err

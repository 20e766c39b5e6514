"""The run and calibrate commands, on real workers: one start each."""

from __future__ import annotations

import json
import multiprocessing
import socket
from importlib.util import find_spec

import pytest
from factories import LAW, NOTHING, make_plan

from optsched import catalog, files
from optsched.cli import invoke
from optsched.cli.tier_writing import tier_text
from optsched.domain.hardware import FittedStepLaw, Gpu
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, PlanWorkload
from optsched.domain.results import Quantiles
from optsched.domain.workload import Arrivals, Recipe, Workload
from optsched.logfile import load_log
from optsched.report.accuracy import relative_errors
from optsched.runtime.cluster import RunInterrupted
from optsched.simulator.simulate import simulate

_LENGTHS = {"quantiles": ((0, 4), (1, 12))}
RECIPE = Recipe.model_validate(
    {"name": "short", "title": "short", "origin": "invented", "turn": [{"new_tokens": _LENGTHS, "output_tokens": _LENGTHS}] * 2}
)


def small_plan() -> Plan:
    workload = PlanWorkload(
        recipe=RECIPE, sha256=files.canonical_sha256(RECIPE), seed=1, conversations=4, arrivals=Arrivals(process="burst", seed=1)
    )
    plan = make_plan(["mixed"], policy="collocated")
    predicted = plan.predicted.replace(ttft_s=Quantiles(mean=0.01, p50=0.01, p95=0.02, p99=0.02), makespan_s=1.0)
    return plan.replace(workload=workload, predicted=predicted)


def test_run_prints_predicted_observed_and_error_and_writes_the_log(tmp_path, capsys) -> None:
    path, log_path = tmp_path / "plan.json", tmp_path / "log.parquet"
    files.save(small_plan(), "plan", path)
    assert invoke(["run", str(path), "--json", "--log", str(log_path), "--timeline", str(tmp_path / "run.svg")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"predicted", "observed", "error", "operations", "recovered_conversations"}
    assert {each["class"] for each in printed["operations"]} <= {"prefill steps", "decode steps", "mixed steps", "transfers"}
    assert all(each["count"] > 0 and each["observed_s"] > 0 for each in printed["operations"])
    observed = printed["observed"]
    assert observed["tokens"]["output"] > 0
    assert observed["energy_j"] is None
    assert printed["error"]["makespan_s"] == pytest.approx(1.0 / observed["makespan_s"] - 1)
    assert printed["error"]["ttft_s.p95"] == pytest.approx(0.02 / observed["ttft_s"]["p95"] - 1)
    assert "tbt_s.mean" not in printed["error"]  # nothing was predicted
    assert printed["recovered_conversations"] == 0
    log, executed = load_log(log_path)
    assert log.origin == "observed"
    assert executed == small_plan()
    assert log.makespan_s == pytest.approx(observed["makespan_s"])
    assert "conversation 3, turn 1: decode" in (tmp_path / "run.svg").read_text()
    assert multiprocessing.active_children() == []


def test_a_run_that_is_interrupted_says_how_far_it_came_and_where_its_log_is(tmp_path, monkeypatch, capsys) -> None:
    path, log_path = tmp_path / "plan.json", tmp_path / "log.parquet"
    files.save(small_plan(), "plan", path)

    def interrupted(plan: Plan, workload: Workload, **options: object) -> ExecutionLog:
        raise RunInterrupted(1, workload.num_conversations, simulate(plan, workload))

    monkeypatch.setattr("optsched.runtime.cluster.execute", interrupted)
    assert invoke(["run", str(path), "--log", str(log_path)]) == 130
    assert _last_line(capsys) == f"optsched: interrupted after 1 of 4 conversations; partial log in {log_path}"
    assert load_log(log_path)[1] == small_plan()
    assert invoke(["run", str(path)]) == 130
    assert _last_line(capsys) == "optsched: interrupted after 1 of 4 conversations"


def test_a_command_that_is_interrupted_says_so(monkeypatch, capsys) -> None:
    def interrupted(path: object) -> Plan:
        raise KeyboardInterrupt

    monkeypatch.setattr("optsched.files.load_plan", interrupted)
    assert invoke(["run", "plan.json"]) == 130
    assert _last_line(capsys) == "optsched: interrupted"


def _last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_errors_are_relative_to_what_was_observed() -> None:
    metrics = small_plan().predicted
    observed = metrics.replace(makespan_s=2.0, ttft_s=NOTHING)
    assert relative_errors(metrics, observed) == {"makespan_s": -0.5}


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra 'ray')")
def test_of_a_ray_cluster_s_gpus_its_nodes_decide_not_this_machine(tmp_path, monkeypatch, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as freed:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{freed.getsockname()[1]}")
    files.save(small_plan(), "plan", tmp_path / "plan.json")
    assert invoke(["run", str(tmp_path / "plan.json"), "--backend", "ray", "--device", "cuda"]) == 1
    assert "no Ray cluster answers at" in _last_line(capsys)


def test_run_refuses_a_missing_device_and_a_time_limit_of_nothing(tmp_path, capsys) -> None:
    import torch

    path = tmp_path / "plan.json"
    files.save(small_plan(), "plan", path)
    assert invoke(["run", str(path), "--time-limit-s", "0"]) == 1
    assert "--time-limit-s: 0: must be a positive" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert invoke(["run", str(path), "--device", "cuda"]) == 1
        assert "sees no such device here; use 'cpu'" in capsys.readouterr().err
    assert invoke(["run", str(path), "--backend", "carrier-pigeon"]) == 2
    capsys.readouterr()
    for more in (["--backend", "ray"], ["--timeline", str(tmp_path / "run.svg")]):
        assert invoke(["run", str(path), "--chat", "chats.jsonl", *more]) == 1
        assert "answers come from local workers and are not drawn; leave out --backend and --timeline" in capsys.readouterr().err


def test_calibrate_writes_a_tier_and_a_link_that_later_plans_find(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path / "models"))
    assert invoke(["calibrate", "--llm", "tiny-qwen3", "--seconds", "0.8", "--replicas", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (fitted,) = catalog.gpu("local-cpu").step_laws
    assert (fitted.llm, fitted.tp) == ("tiny-qwen3", 1)
    assert "measured on this machine" in fitted.origin
    assert fitted.law.model_dump(mode="json") == printed["step_laws"][0]["law"]
    assert fitted.law.step_s(1.0) > 0
    assert len(fitted.law.busy_slowdown) >= 2
    link = catalog.link("loopback")
    assert link.source.startswith("measured on this machine")
    assert printed["link"] == link.model_dump(mode="json", include={"latency_s", "bytes_per_s", "busy_slowdown"})
    assert multiprocessing.active_children() == []


def test_calibrate_refuses_tiers_that_are_not_this_machine(capsys) -> None:
    assert invoke(["calibrate", "--tier", "a40"]) == 1
    assert "'a40' does not stand for this machine; only shared-host tiers are measured: local-cpu" in capsys.readouterr().err
    assert invoke(["calibrate", "--replicas", "0"]) == 1
    assert "--replicas: 0: measure at least one worker" in capsys.readouterr().err
    assert invoke(["calibrate", "--seconds", "-1"]) == 1
    assert "--seconds: -1: must be a positive" in capsys.readouterr().err


def test_calibrate_says_when_the_specs_folder_cannot_be_made(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path / "file"))
    assert invoke(["calibrate", "--llm", "tiny-qwen3"]) == 1
    assert "name a file with --out, or set OPTSCHED_MODELS" in capsys.readouterr().err


def test_a_tier_file_keeps_the_laws_of_other_llms_and_reads_back_exactly(tmp_path) -> None:
    old = [FittedStepLaw(llm=name, origin='earlier "run"', law=LAW) for name in ("one", "two")]
    gpu = catalog.gpu("local-cpu").replace(step_laws=tuple(old))
    new = FittedStepLaw(llm="two", origin="now", law=LAW.replace(overhead_s=1.25e-7))
    path = tmp_path / "local-cpu.toml"
    path.write_text(tier_text(gpu, [new]))
    assert files.load(Gpu, "gpu", path) == gpu.replace(step_laws=(old[0], new))

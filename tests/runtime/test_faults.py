"""Workers die, hang, run out of memory, and lines between them break; every conversation ends with the tokens it should have."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from factories import make_plan, make_workload
from saboteur import FLEETS, Fault, Saboteur, drawn_faults, drawn_workload, plan_of
from undisturbed import exact_setups, run_on, undisturbed_tokens

from optsched import catalog, files, logfile
from optsched.cli import invoke
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan, PlanWorkload
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Arrivals, Workload
from optsched.runtime.cluster import WorkerLostError, _Run

PATIENCE_S = 4.0
LONGEST = make_workload([[(49, 8), (49, 8), (49, 8)]], [0.0])


@pytest.fixture(scope="module")
def fleet() -> Iterator[Saboteur]:
    """Three workers; what they are used for is the controller's business alone."""
    with Saboteur(exact_setups(plan_of("one prefiller", "conserve"), LONGEST, PATIENCE_S)) as started:
        yield started
    assert multiprocessing.active_children() == []


def survives(fleet: Saboteur, plan: Plan, workload: Workload, faults: list[Fault]) -> ExecutionLog:
    fleet.prepare(faults)
    struck = set(range(fleet.size))
    try:
        log, tokens = run_on(fleet, plan, workload, 60.0, PATIENCE_S)
        struck = set(fleet.struck)
    finally:
        fleet.prepare([])
        for index in struck:
            fleet.give_up(index)
        fleet.renew()
    assert tokens.tolist() == undisturbed_tokens(workload).tolist()
    assert log.violations(workload) == []
    died = {event.replica for event in log.events if event.kind == "worker_died"}
    assert died <= struck
    return log


def survives_schedule(fleet: Saboteur, seed: int, hangs: bool) -> None:
    rng = np.random.default_rng([8, seed])
    name = list(FLEETS)[seed % len(FLEETS)]
    policies = FLEETS[name][1]
    plan, workload = plan_of(name, policies[int(rng.integers(len(policies)))]), drawn_workload(rng)
    survives(fleet, plan, workload, drawn_faults(rng, hangs))


@pytest.mark.parametrize("seed", range(10))
def test_every_conversation_survives_a_drawn_schedule_of_faults(fleet: Saboteur, seed: int) -> None:
    survives_schedule(fleet, seed, hangs=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 210))
def test_every_conversation_survives_many_schedules_of_faults(fleet: Saboteur, seed: int) -> None:
    survives_schedule(fleet, seed, hangs=True)


TURNS = make_workload([[(40, 6), (5, 4)], [(30, 3), (7, 2)], [(12, 1)], [(45, 5), (3, 3)]], [0.0, 0.0, 0.01, 0.02], gap_s=0.02)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_killed_in_the_middle_of_a_hand_over_loses_nothing(fleet: Saboteur, victim: int) -> None:
    faults = [Fault("kill", 2, victim, transfer=True)]
    log = survives(fleet, plan_of("one prefiller", "conserve"), TURNS, faults)
    (death,) = [event for event in log.events if event.kind == "worker_died"]
    assert "exit code -9" in death.detail
    assert any(event.kind == "recovered" for event in log.events)
    if not victim:  # the only prefiller is gone: decoders prefill, too
        assert set(log.steps.replica[log.steps.start_s > death.time_s].tolist()) <= {1, 2}


def test_a_worker_that_hangs_is_ended_when_patience_is_and_its_conversations_go_on(fleet: Saboteur) -> None:
    log = survives(fleet, plan_of("one prefiller", "conserve"), TURNS, [Fault("hang", 6, victim=0)])
    (death,) = [event for event in log.events if event.kind == "worker_died"]
    assert death.replica == 0
    assert death.time_s > PATIENCE_S
    assert log.makespan_s < 10 * PATIENCE_S


@pytest.mark.parametrize(("kind", "through"), [("cut", 0), ("cut", 3000), ("silence", 3000)])
def test_a_line_that_breaks_is_not_used_again_and_the_cache_is_computed_where_it_should_have_come(
    fleet: Saboteur, kind: str, through: int
) -> None:
    log = survives(fleet, plan_of("one prefiller", "conserve"), TURNS, [Fault(kind, 1, bytes_through=through)])
    (loss,) = [event for event in log.events if event.kind == "link_lost"]
    assert "from replica 0" in loss.detail
    later = (log.transfers.end_s > loss.time_s) & (log.transfers.start_s > loss.time_s)
    assert loss.replica not in log.transfers.target[later]
    assert any(event.kind == "recovered" for event in log.events)


def test_a_worker_that_runs_out_of_memory_is_given_up_and_its_conversations_go_on_elsewhere() -> None:
    plan = make_plan(["mixed", "mixed"], policy="collocated", engine=EngineSpec(max_batched_tokens=4096, max_sequences=4))
    workload = make_workload([[(4000, 3)], [(20, 3)]], [0.0, 0.0])
    with Saboteur(exact_setups(plan, make_workload([[(10, 2)]], [0.0]))) as fleet:
        used = int(Path(f"/proc/{fleet.pid(0)}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(fleet.pid(0), resource.RLIMIT_AS, (used, used))
        log, tokens = run_on(fleet, plan, workload)
    assert tokens.tolist() == undisturbed_tokens(workload).tolist()
    (death,) = [event for event in log.events if event.kind == "worker_died"]
    assert "memory" in death.detail
    assert [event.conversation for event in log.events if event.kind == "recovered"] == [0]


def test_pools_too_small_for_turns_that_move_let_go_of_copies_instead_of_waiting_for_ever(fleet: Saboteur) -> None:
    turns = [[(100, 2), (100, 2)] for _ in range(3)]
    plan = plan_of("one prefiller", "per-turn-emulated")
    plan = plan.replace(placement=plan.placement.replace(parameters={"wrong_share": 1.0, "extra_tokens": 0}))
    survives(fleet, plan, make_workload(turns, [0.0, 0.0, 0.0]), [])


def test_when_nobody_is_left_the_loss_is_told_with_the_log_so_far() -> None:
    workload = make_workload([[(20, 5)], [(20, 2000)]], [0.0, 0.0])
    plan = make_plan(["mixed", "mixed"], policy="collocated")
    with Saboteur(exact_setups(plan, workload)) as fleet:

        def kill(ended: int, turns: int) -> None:
            for index in range(2) if ended else ():
                with suppress(ProcessLookupError):
                    os.kill(fleet.pid(index), signal.SIGKILL)

        run = _Run(plan, workload, fleet, 3, "cpu")
        with pytest.raises(WorkerLostError, match=r"died \(exit code -9\); 1 of 2 conversations were not finished") as lost:
            run.to_the_end(60.0, kill)
    assert np.isfinite(lost.value.log.end_s).tolist() == [True, False]


def test_a_conversation_that_fits_no_survivor_is_told() -> None:
    plan = make_plan(["mixed", "mixed"], policy="collocated")
    small = plan.replicas[1].replace(kv_blocks=8)
    plan = plan.replace(replicas=(plan.replicas[0], small))
    workload = make_workload([[(200, 50)]], [0.0])
    with Saboteur(exact_setups(plan, workload)) as fleet:
        fleet.prepare([Fault("kill", 3, victim=0)])
        with pytest.raises(
            WorkerLostError, match=r"Conversation 0 needs 2\d\d tokens of KV cache; the largest decoder holds 128"
        ):
            run_on(fleet, plan, workload)


def planned_file(folder: Path) -> Path:
    recipe = catalog.recipe("swe-agent-quickstart")
    arrivals = Arrivals(process="poisson", rate_per_s=4.0, seed=1)
    described = PlanWorkload(recipe=recipe, sha256=files.canonical_sha256(recipe), seed=1, conversations=16, arrivals=arrivals)
    plan = make_plan(["prefill", "decode", "decode"], kv_blocks=1000).replace(workload=described)
    path = folder / "plan.json"
    files.save(plan, "plan", path)
    return path


def at_turn(monkeypatch: pytest.MonkeyPatch, turn: int, act: Callable[[], object]) -> None:
    """Have something happen to the command when so many turns have ended."""
    done: list[int] = []

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        def advance(ended: int, turns: int) -> None:
            if ended >= turn and not done:
                done.append(ended)
                act()

        yield advance

    monkeypatch.setattr("optsched.cli.run.progress", progress)


class OwnWorkers:
    """The processes of a command's replicas, told from those of other fleets that are up before it starts."""

    def __init__(self) -> None:
        self._others = {child.pid for child in multiprocessing.active_children()}

    def pid_of(self, replica: int) -> int:
        name = f"optsched-replica-{replica}"
        own = [child for child in multiprocessing.active_children() if child.pid not in self._others and child.name == name]
        return own[0].pid or 0


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Answer SIGINT as Python does, also where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_command_goes_on_when_all_decoders_are_killed_and_says_how_many_conversations_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, log_path = planned_file(tmp_path), tmp_path / "log.parquet"
    workers = OwnWorkers()
    at_turn(monkeypatch, 4, lambda: [os.kill(workers.pid_of(decoder), signal.SIGKILL) for decoder in (1, 2)])
    assert invoke(["run", str(path), "--json", "--log", str(log_path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["recovered_conversations"] > 0
    assert "worker 1 died (exit code -9); what it held was computed again elsewhere" in " ".join(err.split())
    log, _ = logfile.load_log(log_path)
    assert np.isfinite(log.end_s).all()
    assert len({event.conversation for event in log.events if event.kind == "recovered"}) > 0


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_leaves_no_process_and_a_readable_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, log_path = planned_file(tmp_path), tmp_path / "log.parquet"
    own, workers = OwnWorkers(), list[int]()

    def interrupt() -> None:
        workers.extend(own.pid_of(replica) for replica in range(3))
        os.kill(os.getpid(), signal.SIGINT)

    at_turn(monkeypatch, 4, interrupt)
    assert invoke(["run", str(path), "--log", str(log_path)]) == 130
    told = [line for line in capsys.readouterr().err.splitlines() if "interrupted" in line]
    log, _ = logfile.load_log(log_path)
    ended = int(np.isfinite(log.end_s.reshape(16, -1)[:, -1]).sum())
    assert told == [f"optsched: interrupted after {ended} of 16 conversations; partial log in {log_path}"]
    assert log.iterations > 0
    assert log.events[-1].kind == "interrupted"
    assert np.isnan(log.end_s).any()
    assert len(workers) == 3
    deadline_s = time.monotonic() + 10.0
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # ended, but not buried yet
        assert time.monotonic() < deadline_s
        time.sleep(0.05)

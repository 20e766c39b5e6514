"""Real worker processes: few starts, since each takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, make_plan, make_workload
from undisturbed import bare_model, weights_folder

from optsched import catalog
from optsched.batching.policies import HYBRID
from optsched.domain.plan import PlanLlm
from optsched.domain.scenario import EngineSpec
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError, PlanError, SpecError, WorkerError
from optsched.runtime import execute
from optsched.runtime.cluster import WorkerLostError, _Run
from optsched.runtime.fleet import Fleet
from optsched.runtime.prompts import prompt_tokens
from optsched.runtime.setups import worker_setups
from optsched.runtime.step import forward


def assert_tokens_are_those_of_the_bare_llm(workload: Workload, token_id: np.ndarray, seed: int) -> None:
    """Compare wherever the best token is clearly the best: batches round differently in float32."""
    model = bare_model(torch.float32)
    taken = 0
    for conversation, turns in enumerate(workload):
        known: list[int] = []
        outputs: list[int] = []
        for number, turn in enumerate(turns):
            known += prompt_tokens(seed, conversation, number, int(workload.new_tokens[turn]), TINY.vocab_size).tolist()
            outputs += range(len(known), len(known) + int(workload.output_tokens[turn]))
            known += token_id[taken : taken + int(workload.output_tokens[turn])].tolist()
            taken += int(workload.output_tokens[turn])
        logits = forward(model, torch.tensor(known))[[i - 1 for i in outputs]]
        top = logits.topk(2)
        clear = top.values[:, 0] - top.values[:, 1] > 1e-4
        assert clear.float().mean() > 0.8
        assert torch.equal(top.indices[clear, 0], torch.tensor([known[i] for i in outputs])[clear])


def test_255_disaggregated_conversations_are_handed_over_exactly_once_each_and_yield_the_bare_llms_tokens() -> None:
    turns = [[(40, 6), (5, 4), (9, 3)], [(30, 1), (7, 2)], [(12, 1)], [(70, 9)], [(20, 2), (0, 3)], [(33, 5)]]
    generator = np.random.default_rng(255)
    turns += [[(int(generator.integers(4, 12)), int(generator.integers(2, 4))) for _ in range(2)] for _ in range(249)]
    workload = make_workload(turns, [0.0, 0.0, 0.01, 0.02, 0.02, *[0.05] * 250], gap_s=0.02)
    plan = make_plan(["prefill", "decode", "decode"], host="local", engine=EngineSpec(max_batched_tokens=32, max_sequences=4))
    setups = [replace(setup, weights=weights_folder()) for setup in worker_setups(plan, workload, 3, "cpu")]
    with Fleet(setups) as fleet:
        run = _Run(plan, workload, fleet, 3, "cpu")
        log = run.to_the_end(60.0, None)
    assert len(np.unique(run.observed.token_id)) > 50  # tokens that do not depend on the past would prove nothing
    assert log.violations(workload) == []
    assert log.origin == "observed"
    assert log.dynamic_j is None
    assert_tokens_are_those_of_the_bare_llm(workload, run.observed.token_id, 3)
    first = workload.first_turn[:-1]
    moved = [0, 1, *range(3, 255)]  # conversation 2 is over with its first token
    assert sorted(log.transfers.conversation.tolist()) == moved
    assert np.all(log.prefill_replica[first] == 0)
    assert np.all(log.decode_replica[first][moved] > 0)
    assert np.array_equal(log.transfers.target[np.argsort(log.transfers.conversation)], log.decode_replica[first][moved])
    assert set(log.steps.replica.tolist()) == {0, 1, 2}
    assert np.all(log.transfers.end_s > log.transfers.start_s)
    order = np.argsort(log.transfers.conversation)
    blocks = -(-workload.first_turn_tokens[moved] // 16)
    assert np.array_equal(log.transfers.bytes[order], blocks * 16 * TINY.kv_bytes_per_token)
    assert np.allclose(log.queue_s[first], log.start_s[first] - log.arrival_s[first])
    assert np.all(log.admission_s[first][moved] >= 0)
    later = workload.turn_in_conversation > 0
    assert np.all(log.queue_s[later] == 0)
    assert np.array_equal(log.prefill_replica[later], log.decode_replica[later])
    assert log.steps.busy_replicas.min() >= 1
    assert log.steps.busy_replicas.max() <= 3
    assert multiprocessing.active_children() == []


def test_a_closed_loop_sends_the_next_conversation_when_one_ends() -> None:
    workload = make_workload([[(20, 3)], [(30, 2), (4, 2)], [(10, 2)]], [0.0] * 3).with_arrivals(np.zeros(3), 1)
    log = execute(make_plan(["mixed"], policy="collocated"), workload, time_limit_s=60.0)
    assert log.violations(workload) == []
    assert log.arrival_s[[1, 3]].tolist() == log.end_s[[0, 2]].tolist()


def test_a_conserve_plan_for_qwen3_0_6b_with_two_layers_executes() -> None:
    shape = catalog.llm("qwen3-0.6b").replace(num_layers=2, dtype="fp32")
    workload = make_workload([[(50, 4), (6, 3)], [(20, 3), (4, 2)]], [0.0, 0.0])
    plan = make_plan(["prefill", "decode"], kv_blocks=16)
    plan = plan.replace(llms=(PlanLlm(name="tiny", shape=shape),))
    log = execute(plan, workload, seed=1, time_limit_s=120.0)
    assert log.violations(workload) == []
    assert sorted(log.transfers.conversation.tolist()) == [0, 1]
    assert log.transfers.bytes.max() == 4 * 16 * 2 * 2 * 8 * 128 * 4  # 4 blocks of 16 tokens, K and V of 8 heads of 128, 2 layers
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_told_in_one_line_with_the_log_so_far_and_leaves_no_process() -> None:
    workload = make_workload([[(20, 5)], [(20, 20000)]], [0.0, 0.0])
    plan = make_plan(["mixed"], policy="collocated", kv_blocks=1300, engine=EngineSpec(max_batched_tokens=64, max_sequences=8))

    def kill(ended: int, turns: int) -> None:
        assert turns == 2
        if ended:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with pytest.raises(WorkerLostError, match=r"worker 0 died \(exit code -9\); 1 of 2 conversations were not finished") as lost:
        execute(plan, workload, progress=kill)
    assert np.isfinite(lost.value.log.end_s).tolist() == [True, False]
    assert lost.value.log.iterations > 0
    assert multiprocessing.active_children() == []


def test_an_interrupt_and_the_time_limit_leave_no_process() -> None:
    workload = make_workload([[(20, 5)], [(20, 20000)]], [0.0, 0.0])
    plan = make_plan(["mixed"], policy="collocated", kv_blocks=1300)
    with pytest.raises(WorkerLostError, match=r"1 of 2 conversations were not finished after 0.3 s; raise the time limit"):
        execute(plan, workload, time_limit_s=0.3)
    assert multiprocessing.active_children() == []

    def interrupt(ended: int, turns: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, workload, progress=interrupt)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("policy", sorted(HYBRID))
def test_ranks_are_not_asked_for_a_hidden_cache_that_they_cannot_share_evenly(policy: str) -> None:
    workload = make_workload([[(100, 100)]], [0.0])
    plan = make_plan(["mixed"], policy="collocated", batching=policy)
    odd = PlanLlm(name="tiny", shape=TINY.replace(hidden_size=63))
    ranks = plan.replace(replicas=(plan.replicas[0].replace(tp=2),), llms=(odd,))
    with pytest.raises(
        SpecError, match=f"'r0' has tp 2, and '{policy}' keeps hidden cache of tiny; 2 ranks cannot share its hidden size of 63"
    ):
        execute(ranks, workload)


def test_what_cannot_run_is_refused_before_any_process_starts() -> None:
    workload = make_workload([[(100, 100)]], [0.0])
    plan = make_plan(["mixed"], policy="collocated")
    with pytest.raises(SpecError, match="replica 'r0' has pp 2; the runtime runs no pipelines"):
        execute(plan.replace(replicas=(plan.replicas[0].replace(pp=2),)), workload)
    with pytest.raises(SpecError, match="2 KV heads and a feed-forward of 128, which 4 ranks cannot share evenly"):
        execute(plan.replace(replicas=(plan.replicas[0].replace(tp=4),)), workload)
    short = PlanLlm(name="tiny", shape=TINY.replace(max_positions=128))
    with pytest.raises(SpecError, match=r"reaches 200 tokens; tiny has positions for 128. Shorten the workload"):
        execute(plan.replace(llms=(short,)), workload)
    windowed = PlanLlm(name="tiny", shape=TINY.replace(sliding_window=64))
    with pytest.raises(SpecError, match="cannot run tiny: sliding-window attention"):
        execute(plan.replace(llms=(windowed,)), workload)
    sharing = plan.replace(engine=plan.engine.replace(prefix_caching=True))
    with pytest.raises(SpecError, match=r"engine.prefix_caching: true: the workers do not share prompts' cache"):
        execute(sharing, workload)
    small = make_plan(["prefill", "decode"], kv_blocks=12)
    with pytest.raises(
        InfeasibleError, match="Conversation 0 holds 200 tokens at its end; the largest decoder has KV cache for 192"
    ):
        execute(small, workload)
    with pytest.raises(PlanError, match="none to prefill on"):
        execute(make_plan(["decode"]), workload)


def test_a_worker_that_cannot_start_says_why(tmp_path) -> None:
    plan = make_plan(["mixed"], policy="collocated")
    weights = plan.replace(llms=(PlanLlm(name="tiny", shape=TINY, weights=str(tmp_path)),))
    with pytest.raises(WorkerError, match=r"worker 0 failed: .*no \*.safetensors files there.* while it started"):
        execute(weights, make_workload([[(5, 5)]], [0.0]))
    assert multiprocessing.active_children() == []


_WITHOUT_THE_REST = """
import re
import sys
from importlib.metadata import distribution, packages_distributions

def closure(names):
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                needs = distribution(name).requires or []
            except ModuleNotFoundError:
                continue
            left += [re.match(r"[A-Za-z0-9_.-]+", need).group() for need in needs if "extra ==" not in need]
    return found

ALLOWED = closure(["torch", "numpy", "numba", "pydantic", "jaxtyping"])
OWNERS = packages_distributions()

class OnlyThose:
    def find_spec(self, name, path=None, target=None):
        owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in OWNERS.get(name.partition(".")[0], ())}
        if owners and not owners & (ALLOWED | {"optsched"}):
            raise ModuleNotFoundError(f"No module named {name!r} (not among what the runtime may need)", name=name)

sys.meta_path.insert(0, OnlyThose())
"""

_EXECUTED = """
import sys
sys.path.append(sys.argv[1])
if __name__ == "__main__":
    import optsched.runtime
    from factories import make_plan, make_workload
    for needless in ("polars", "rich", "scipy", "jax"):
        try:
            __import__(needless)
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit(f"{needless} is not blocked")
    workload = make_workload([[(20, 3), (4, 2)], [(30, 2)]], [0.0, 0.0])
    log = optsched.runtime.execute(make_plan(["prefill", "decode"]), workload)
    assert log.violations(workload) == [], log.violations(workload)
    print(sorted(name for name in sys.modules if name.partition(".")[0] == "optsched"))
"""


def test_an_in_memory_plan_runs_with_torch_numpy_numba_pydantic_and_jaxtyping_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT_THE_REST)  # so that the workers cannot import the rest either
    (tmp_path / "execute.py").write_text(_EXECUTED)
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(tests.parent)])}
    command = [sys.executable, str(tmp_path / "execute.py"), str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for layer in ("planner", "simulator", "capacity", "cost", "cli"):
        assert f"optsched.{layer}" not in done.stdout

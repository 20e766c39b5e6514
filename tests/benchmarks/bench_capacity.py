"""Capacity: time to a proven fleet, published problems, 32 H200, and plans under seeds they were not chosen with.

Run ``python tests/benchmarks/bench_capacity.py [PART ...]`` with parts ``program``, ``forms``, ``large``, ``h200``, ``seeds`` (all
by default). Times are CPU seconds of one process, the least of three.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pulp

from optsched import catalog
from optsched.capacity.problem import FleetProblem
from optsched.capacity.problem_file import load_fleet_problem
from optsched.capacity.solve import solve_fleet
from optsched.capacity.throughput import largest_traffic
from optsched.cli.capacity_answer import in_words
from optsched.domain.scenario import FleetEntry, Scenario
from optsched.planner.capacity import capacity
from optsched.planner.capacity_answer import CapacityPlan
from optsched.planner.capacity_pools import Pool, pools_of
from optsched.planner.capacity_problem import capacity_problem
from optsched.planner.capacity_rate import largest_rate, sustained_rate
from optsched.planner.capacity_trials import judged, suitable_policies
from optsched.planner.plan import drafts_of

FOLDER = catalog.data_root() / "instances" / "capacity"
SEEDS = range(100, 140)
GPUS = ("l4", "a10g", "a40", "l40s", "a100-40gb", "a100-80gb", "h100-pcie", "h100-sxm", "h200", "b200", "mi300x", "rtx-4090")
SERVICES = (("llama-3.1-8b", "azure-conversation", 20.0), ("qwen3-32b", "azure-code", 5.0), ("llama-3.1-70b", "sharegpt", 4.0))


def cpu_s(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the least CPU time of some runs."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def program() -> None:
    """Time the published problems."""
    for path in sorted(FOLDER.glob("*.json")):
        problem = load_fleet_problem(path)
        answer = solve_fleet(problem)
        used_s = cpu_s(lambda problem=problem: solve_fleet(problem))  # type: ignore[misc]
        say(f"{path.stem}: {answer.value:,.2f} {answer.status}, {used_s:.3f} s")


def melange_form(seed: int, buckets: int = 16, types: int = 6) -> FleetProblem:
    """Draw a problem of Melange's form: buckets of input x output lengths, types that are better at short or at long ones."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(buckets * buckets, 0.3))
    prompt, output = 2.0 ** np.linspace(4, 12, buckets), 2.0 ** np.linspace(3, 11, buckets)
    work = (prompt[:, None] / 2000 + output[None, :] / 100).ravel()
    power = np.sort(rng.uniform(1, 12, types))
    return FleetProblem(
        classes=tuple(f"bucket-{j}" for j in range(buckets**2)), demand_per_s=20 * share,
        types=tuple(f"type-{a}" for a in range(types)), roles=("mixed",) * types,
        rate_per_s=power[:, None] / work * rng.uniform(0.6, 1.4, (types, buckets**2)),
        cost=power**0.9 * rng.uniform(0.8, 1.2, types), resources=(), uses=np.zeros((types, 0)), limits=np.zeros(0),
    )  # fmt: skip


def slice_program(problem: FleetProblem, slices: int, limit_s: float) -> tuple[float, float]:
    """Solve Melange's own program, in which each bucket is cut into slices and each slice goes to one type; value and time."""
    started = time.process_time()
    made = pulp.LpProblem("slices", pulp.LpMinimize)
    counts = [made.add_variable(f"n_{a}", lowBound=0, cat="Integer") for a in range(len(problem.types))]
    chosen = {}
    for j in range(len(problem.classes)):
        for part in range(slices):
            mine = [made.add_variable(f"x_{j}_{part}_{a}", cat="Binary") for a in range(len(problem.types))]
            made += pulp.lpSum(mine) == 1
            chosen[j, part] = mine
    for a in range(len(problem.types)):
        work = [(mine[a], problem.load(a, j) / slices) for (j, _), mine in chosen.items()]
        made += pulp.LpAffineExpression(work) <= counts[a]
    made.setObjective(pulp.LpAffineExpression([(counts[a], float(problem.cost[a])) for a in range(len(problem.types))]))
    made.solve(pulp.HiGHS(msg=False, threads=1, timeLimit=limit_s, gapRel=0.0))
    return float(pulp.value(made.objective)), time.process_time() - started


def forms() -> None:
    """Set continuous routing beside Melange's slices."""
    for seed in range(4):
        problem = melange_form(seed)
        answer = solve_fleet(problem)
        used_s = cpu_s(lambda problem=problem: solve_fleet(problem))  # type: ignore[misc]
        value, slices_s = slice_program(problem, 1, 20.0)
        say(
            f"16 x 16 x 6, seed {seed}: {answer.value:.3f} {answer.status} {used_s:.3f} s; whole slices {value:.3f} {slices_s:.1f} s"
        )


def large() -> None:
    """Time three llms on all cards and caps that there are."""
    supply = {
        name: {"max": 64, "power_caps_w": [round(share * catalog.gpu(name).datasheet.power_w) for share in (0.7, 1.0)]}
        for name in GPUS
    }
    scenario = Scenario.model_validate(
        {
            "service": [
                {
                    "name": llm, "llm": llm,
                    "workload": {"source": source, "conversations": 1000, "arrivals": {"rate_per_s": rate, "seed": 1}},
                    "slo": {"ttft": {"seconds": 2}, "tpot": {"seconds": 0.06}},
                }
                for llm, source, rate in SERVICES
            ],
            "supply": supply, "objective": {"minimise": "cost"},
        }
    )  # fmt: skip
    pools = pools_of(scenario, None, None, None, None)
    made_s = [cpu_s(lambda: capacity_problem(scenario, pools), 1), cpu_s(lambda: capacity_problem(scenario, pools), 1)]
    problem = capacity_problem(scenario, pools)
    considered = len(problem.problem.types) + len(problem.dropped)
    answer = solve_fleet(problem.problem, gap=5e-3)
    used_s = cpu_s(lambda: solve_fleet(problem.problem, gap=5e-3), 1)
    say(
        f"{considered:,} types of {2 * len(GPUS)} tiers, {len(problem.problem.types)} kept, {len(problem.problem.classes)} classes, "
        f"{len(pools)} llms: columns {made_s[0]:.1f} s the first time, {made_s[1]:.1f} s again; program {used_s:.1f} s, "
        f"gap {100 * answer.gap:.2f} %, {answer.value:.2f} USD/h"
    )


def h200() -> None:
    """Ask what 32 H200 sustain, and what the public planner's fleet does."""
    split = (FleetEntry(gpu="h200", role="prefill", count=14), FleetEntry(gpu="h200", role="decode", tp=2, count=9))
    together = (FleetEntry(gpu="h200", role="mixed", tp=2, count=16),)
    for name, rivals in (("qwen3-32b-32-h200", (split, together)), ("llama-3.1-70b-32-h200", ())):
        scenario = catalog.scenario(str(FOLDER / f"{name}.toml"))

        def ask(scenario: Scenario = scenario) -> float:
            return largest_traffic(capacity_problem(scenario, pools_of(scenario, None, None, None, None)).problem).factor

        first_s, again_s = cpu_s(ask, 1), cpu_s(ask)
        started = time.process_time()
        found = largest_rate(scenario)
        say(
            f"{name}: {in_words(found.best.fleet)}, {found.best.rate_per_s:.1f}/s, {found.tokens_per_s_per_gpu:.1f} tokens/s/GPU, "
            f"{found.gpus} GPUs; columns {found.columns_per_s:.1f}/s; asked in {first_s:.1f} s, again in {again_s:.2f} s, "
            f"with all simulations {time.process_time() - started:.0f} s"
        )
        (pool,) = pools_of(scenario, None, None, None, None)
        for fleet in rivals:
            theirs = sustained_rate(scenario, pool, fleet, 20.0)
            say(f"  {in_words(fleet)}: {theirs.rate_per_s:.1f}/s, {theirs.rate_per_s * 1000 / 32:.1f} tokens/s/GPU")


def kept_share(scenario: Scenario, pool: Pool, fleet: tuple[FleetEntry, ...], plan: CapacityPlan | None) -> float:
    """Return the share of unseen seeds with which a fleet keeps its targets: under the plan's policy, or the best of all."""
    fixed = pool.scenario(scenario).replace(fleet=fleet)
    policies = suitable_policies(fixed)
    if plan is not None:
        chosen = plan.planned.plan
        drafts = [chosen]
    else:
        drafts = [drafts_of(fixed.replace(policy=each), pool.llm, pool.described, each.placement)[0] for each in policies]
    kept = 0
    for seed in SEEDS:
        other = pool.with_seed(seed)
        kept += any(judged(draft, [other])[0] for draft in drafts)
    return kept / len(SEEDS)


def seeds() -> None:
    """Try plans, and plans with a replica less, under seeds they were not chosen with."""
    cases = [
        ("chat-l4", 0.4),
        ("chat-l4", 0.2),
        *((str(FOLDER / f"{name}.toml"), None) for name in ("chat", "agentic", "long-context")),
    ]
    for name, rate in cases:
        scenario = catalog.scenario(name)
        plan = capacity(scenario, rate_per_s=rate)
        (pool,) = (each.pool for each in plan.pools)
        kept = kept_share(scenario, pool, plan.fleet, plan)
        fewer = []
        for index, entry in enumerate(plan.fleet):
            rest = [*plan.fleet[:index], *plan.fleet[index + 1 :]]
            if entry.count > 1:
                rest.insert(index, entry.replace(count=entry.count - 1))
            roles = {each.role for each in rest}
            if "mixed" in roles or {"prefill", "decode"} <= roles:
                fewer.append(kept_share(scenario, pool, tuple(rest), None))
        less = ", ".join(f"{share:.0%}" for share in fewer) or "none left"
        say(
            f"{name} at {pool.rate_per_s:g}/s: {in_words(plan.fleet)} keeps {kept:.1%} of {len(SEEDS)} seeds; one replica less {less}"
        )


PARTS = {"program": program, "forms": forms, "large": large, "h200": h200, "seeds": seeds}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()

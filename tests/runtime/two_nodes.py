"""Run by test_ray.py in a process of its own: a Ray cluster of two nodes that offer one GPU and two, and plans on it."""

from __future__ import annotations

import json
import os

from factories import make_plan, make_workload
from rank_processes import ended, ranks_of
from undisturbed import exact_setups, run_on

from optsched.domain.plan import Plan
from optsched.domain.scenario import EngineSpec, Role
from optsched.errors import InfeasibleError
from optsched.runtime import execute
from optsched.runtime.fleet import Fleet
from optsched.runtime.ray_actors import RayActors
from optsched.runtime.ray_cluster import ADDRESS_VARIABLE, LOOPBACK, tier_resource

WORKLOAD = make_workload([[(40, 6), (5, 4)], [(30, 1), (7, 2)], [(12, 1)], [(70, 9)]], [0.0, 0.0, 0.01, 0.02], gap_s=0.02)
ENGINE = EngineSpec(max_batched_tokens=32, max_sequences=4)


def plan_of(roles: list[Role], ranks: list[int]) -> Plan:
    plan = make_plan(roles, host="local", engine=ENGINE)
    return plan.replace(replicas=tuple(replica.replace(tp=tp) for replica, tp in zip(plan.replicas, ranks, strict=True)))


PLAN = plan_of(["prefill", "decode"], [1, 2])
CROWD = plan_of(["prefill", "decode", "decode"], [1, 1, 2])


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    tier = tier_resource(PLAN.replicas[0])
    node = {"num_cpus": 1, "resources": {tier: 1}, "object_store_memory": 80_000_000, "node_ip_address": LOOPBACK}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**{**node, "num_cpus": 2, "resources": {tier: 2}})
        cluster.wait_for_nodes()
        os.environ[ADDRESS_VARIABLE] = cluster.address
        with Fleet(exact_setups(PLAN, WORKLOAD), RayActors(PLAN, "cpu")) as fleet:
            nodes = sorted(node["Resources"].get(tier) for node in ray.nodes())
            log, tokens = run_on(fleet, PLAN, WORKLOAD)
            followers = [ranks_of(fleet.pid(index)) for index in range(fleet.size)]
            fleet.kill(1)
            left = not ended(followers[1], 20.0)
        try:
            execute(CROWD, WORKLOAD, seed=3, backend="ray", time_limit_s=60.0)
            refused = ""
        except InfeasibleError as error:
            refused = str(error)
        found = {
            "violations": log.violations(WORKLOAD), "tokens": tokens.tolist(), "nodes": nodes, "refused": refused,
            "transfers": [log.transfers.source.tolist(), log.transfers.target.tolist()], "connected": ray.is_initialized(),
            "followers": [len(each) for each in followers], "left": left,
        }  # fmt: skip
        print(json.dumps(found))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()

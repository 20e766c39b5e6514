"""A Ray cluster and what is reserved on it: tiers are custom resources, a bundle per replica, all or none.

References
----------
Ray: custom resources and placement groups (docs.ray.io, ray-core/scheduling).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from optsched.domain.plan import Plan, PlanReplica
from optsched.errors import InfeasibleError, MissingExtraError, WorkerError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

ADDRESS_VARIABLE = "RAY_ADDRESS"
PLACE_LIMIT_S = 60.0
_KNOCK_S = 5.0
LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by an address that other machines can reach


def check_ray() -> None:
    """Check that Ray is installed.

    Raises
    ------
    MissingExtraError
        If it is not.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("The backend 'ray'", "ray")


def tier_resource(replica: PlanReplica) -> str:
    """Return what a node must offer as a custom resource, one unit per GPU: ``a40@200W``."""
    return f"{replica.gpu}@{replica.power_cap_w:g}W"


def bundles(plan: Plan, device: str) -> list[dict[str, float]]:
    """Return what each replica takes of a node: per rank a GPU of its tier, a core, and on ``cuda`` a GPU that Ray knows."""
    kinds = ("CPU", "GPU") if device == "cuda" else ("CPU",)
    return [dict.fromkeys((tier_resource(replica), *kinds), float(replica.tp)) for replica in plan.replicas]


def connect(wanted: Sequence[dict[str, float]]) -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start one on the loopback interface that offers just what is wanted.

    Raises
    ------
    WorkerError
        If it cannot be reached.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    _refuse_who_does_not_answer(address)
    import ray

    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        total = _total(wanted)
        cores = max(int(total.pop("CPU")), os.cpu_count() or 1)
        ray.init(
            num_cpus=cores, resources={name: amount for name, amount in total.items() if name != "GPU"}, include_dashboard=False,
            log_to_driver=False, logging_level=logging.ERROR, _node_ip_address=LOOPBACK,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        where, reason = address or LOOPBACK, " ".join(str(error).split())
        raise WorkerError(f"no Ray cluster answers at {where} ({reason}); correct or unset {ADDRESS_VARIABLE}") from error


def _refuse_who_does_not_answer(address: str | None) -> None:
    """Knock first: Ray itself tries for minutes. Addresses that are no ``HOST:PORT`` ("auto", "ray://...") are left to Ray.

    Raises
    ------
    WorkerError
        If nobody listens there.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(f"no Ray cluster answers at {address} ({error}); correct or unset {ADDRESS_VARIABLE}") from error


def reserve(wanted: Sequence[dict[str, float]]) -> PlacementGroup:
    """Reserve a bundle per replica.

    Raises
    ------
    InfeasibleError
        If the cluster has not as much.
    WorkerError
        If somebody else uses it.
    """
    import ray

    have = ray.cluster_resources()
    for name, count in _total(wanted).items():
        if have.get(name, 0.0) < count:
            raise InfeasibleError(
                f"The plan needs {count:g} {name}; the Ray cluster offers {have.get(name, 0.0):g}. Start its nodes with "
                f"{_offer(name, count)} in all, or plan for what they offer."
            )
    refuse_what_no_node_offers(wanted, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    group = ray.util.placement_group(list(wanted), strategy="PACK")
    if not group.wait(PLACE_LIMIT_S):
        raise WorkerError(f"the Ray cluster had no room for all replicas within {PLACE_LIMIT_S:g} s; is it in use?")
    return group


def refuse_what_no_node_offers(wanted: Sequence[dict[str, float]], nodes: Sequence[dict[str, float]]) -> None:
    """Refuse a bundle that no node has room for: the ranks of a replica share a node, and Ray would wait for one without end.

    Raises
    ------
    InfeasibleError
        If a replica takes more of anything than any one node offers.
    """
    for bundle in wanted:
        for name, count in bundle.items():
            most = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if most < count:
                raise InfeasibleError(
                    f"A replica needs {count:g} {name} on one node; no node of the Ray cluster offers more than {most:g}. "
                    f"Start a node with {_offer(name, count)}, or plan replicas with a smaller tp."
                )


def nodes_of(group: PlacementGroup) -> set[str]:
    """Return the ids of the nodes that a group's bundles are on, without those that are gone."""
    import ray

    alive = {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}
    return alive & {str(node) for node in ray.util.placement_group_table(group)["bundles_to_node_id"].values()}


def _total(wanted: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in wanted:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _offer(name: str, count: float) -> str:
    """Return how a node is started so that it offers a resource."""
    if name in ("CPU", "GPU"):
        return f"--num-{name.lower()}s={count:g}"
    return f"""--resources='{{"{name}": {count:g}}}'"""

"""Workers as Ray actors, on one machine or several.

Ray starts the processes and tells of their death. What workers say and the caches that they move take lines of their own, as
they do without Ray (`optsched.runtime.fleet`, `optsched.runtime.handover`).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from optsched.domain.plan import Plan
from optsched.errors import WorkerError
from optsched.runtime.messages import Setup
from optsched.runtime.ray_cluster import bundles, connect, nodes_of, reserve
from optsched.runtime.ray_serving import CONNECT_LIMIT_S, Serving, clock_ahead_s, remove_flags, take_call

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

_TIDY_LIMIT_S = 10.0


class RayActors:
    """Start each worker as an actor on a node that offers its tier; the cluster is that of `connect`.

    The actor of a replica of several ranks is the first of them; it starts the others as processes of its node, and they end
    with it.

    Parameters
    ----------
    plan
        Whose replicas are started.
    device
        ``cpu`` (one core per rank) or ``cuda`` (one GPU, too).
    """

    def __init__(self, plan: Plan, device: str) -> None:
        self._bundles = bundles(plan, device)
        self._group: PlacementGroup | None = None
        self._flags = ""
        self._ahead_s: dict[int, float] = {}

    def start(self, setups: Sequence[Setup]) -> Iterator[tuple[ActorProcess, Connection]]:
        """Start workers and yield each, in order, with the line to it.

        Raises
        ------
        InfeasibleError
            If the cluster does not offer the plan's tiers.
        WorkerError
            If the cluster cannot be reached, has them in use, or a worker dies before it is there.
        """
        import ray

        secret = setups[0].secret
        connect(self._bundles)
        self._group = reserve(self._bundles)
        self._flags = f"optsched-{hashlib.sha256(secret).hexdigest()[:16]}"
        with socket.create_server((ray.util.get_node_ip_address(), 0), backlog=len(setups)) as listener:
            actors = [self._actor(index) for index in range(len(setups))]
            address = listener.getsockname()[:2]
            ends = [actor.serve.remote(address, index, secret, self._flags) for index, actor in enumerate(actors)]
            lines = self._meet(listener, secret, ends)
        for setup, actor, end in zip(setups, actors, ends, strict=True):
            pid, line = lines[setup.index]
            line.send(setup)
            yield ActorProcess(actor, end, pid), line

    def ahead_s(self, index: int) -> float:
        """Return by how much a worker's monotonic clock is ahead of this process's."""
        return self._ahead_s[index]

    def lost(self, index: int) -> None:
        """Do nothing: the flags are on the worker's node."""

    def close(self) -> None:
        """Give back what was reserved, and end the cluster if it was started here."""
        import ray

        if not ray.is_initialized():
            return
        if self._group is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                self._tidy(self._group)
                ray.util.remove_placement_group(self._group)
        self._group = None
        ray.shutdown()

    def _actor(self, index: int) -> ActorHandle[Serving]:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        tier = dict(self._bundles[index])
        cores, gpus = tier.pop("CPU"), tier.pop("GPU", 0.0)
        return ray.remote(Serving).options(num_cpus=cores, num_gpus=gpus, resources=tier, scheduling_strategy=strategy).remote()

    def _meet(self, listener: socket.socket, secret: bytes, ends: Sequence[ObjectRef[None]]) -> dict[int, tuple[int, Connection]]:
        """Wait until every worker has called, and compare clocks with it; return process number and line of each."""
        import ray

        lines: dict[int, tuple[int, Connection]] = {}
        deadline = time.monotonic() + CONNECT_LIMIT_S
        listener.settimeout(1.0)
        while len(lines) < len(ends):
            if over := ray.wait(list(ends), timeout=0)[0]:
                raise WorkerError(f"worker {ends.index(over[0])} died while it started: {_why(over[0])}")
            if time.monotonic() > deadline:
                raise WorkerError(f"{len(ends) - len(lines)} workers did not call back within {CONNECT_LIMIT_S:g} s")
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                continue
            if (call := take_call(caller, secret)) is not None:
                index, pid, line = call
                self._ahead_s[index] = clock_ahead_s(line)
                lines[index] = pid, line
        return lines

    def _tidy(self, group: PlacementGroup) -> None:
        """Remove the flags that workers of a node shared, on every node; those that are gone took theirs with them."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remove, nodes = ray.remote(remove_flags), nodes_of(group)
        strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        done = [remove.options(num_cpus=0, scheduling_strategy=each).remote(self._flags) for each in strategies]
        if done:
            ray.wait(done, num_returns=len(done), timeout=_TIDY_LIMIT_S)


class ActorProcess:
    """An actor seen as a process."""

    def __init__(self, actor: ActorHandle[Serving], end: ObjectRef[None], pid: int) -> None:
        self._actor, self._end, self._pid = actor, end, pid

    @property
    def pid(self) -> int | None:
        """Process number on its node."""
        return self._pid

    @property
    def exitcode(self) -> int | None:
        """None: Ray does not tell."""
        return None

    def is_alive(self) -> bool:
        """Tell whether it lives."""
        import ray

        return not ray.wait([self._end], timeout=0)[0]

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most so many seconds."""
        import ray

        ray.wait([self._end], timeout=timeout)

    def terminate(self) -> None:
        """End it at once: Ray knows no gentler way with an actor that is busy."""
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        import ray

        ray.kill(self._actor)

    def close(self) -> None:
        """Do nothing: the cluster frees what it keeps."""


def _why(end: ObjectRef[None]) -> str:
    """Return why a call ended."""
    import ray

    try:
        ray.get(end)
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())
    return "it returned"

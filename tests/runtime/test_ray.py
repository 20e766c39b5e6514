"""Workers as Ray actors. The cluster is one of two nodes on this machine, in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from factories import make_plan, make_workload
from two_nodes import WORKLOAD
from undisturbed import undisturbed_tokens

from optsched.errors import InfeasibleError, MissingExtraError, WorkerError
from optsched.runtime import execute
from optsched.runtime.ray_cluster import ADDRESS_VARIABLE, bundles, connect, refuse_what_no_node_offers, tier_resource
from optsched.runtime.ray_serving import _HELLO, clock_ahead_s, take_call

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra 'ray')")


def test_a_replica_takes_a_gpu_of_its_tier_and_a_core_for_each_rank() -> None:
    plan = make_plan(["prefill", "decode"])
    assert tier_resource(plan.replicas[0]) == "a40@300W"
    assert bundles(plan, "cpu") == [{"CPU": 1.0, "a40@300W": 1.0}] * 2
    assert bundles(plan, "cuda")[1] == {"CPU": 1.0, "GPU": 1.0, "a40@300W": 1.0}
    pair = plan.replace(replicas=(plan.replicas[0].replace(tp=2),))
    assert bundles(pair, "cuda") == [{"CPU": 2.0, "GPU": 2.0, "a40@300W": 2.0}]


def test_ranks_that_no_single_node_has_room_for_are_refused_at_once() -> None:
    wanted, nodes = [{"CPU": 1.0, "a40@300W": 1.0}, {"CPU": 2.0, "a40@300W": 2.0}], [{"CPU": 4.0, "a40@300W": 1.0}] * 3
    refuse_what_no_node_offers(wanted[:1], nodes)
    refuse_what_no_node_offers(wanted, [*nodes, {"CPU": 2.0, "a40@300W": 2.0}])
    with pytest.raises(
        InfeasibleError, match=r"needs 2 a40@300W on one node; no node .* offers more than 1\. Start a node with --res"
    ):
        refuse_what_no_node_offers(wanted, nodes)


def test_without_ray_its_backend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optsched.runtime.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"The backend 'ray' needs .*optsched\[ray\]"):
        execute(make_plan(["mixed"], host="local"), make_workload([[(4, 2)]], [0.0]), backend="ray")


def test_a_cluster_that_does_not_answer_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as freed:
        address = f"127.0.0.1:{freed.getsockname()[1]}"
    monkeypatch.setenv(ADDRESS_VARIABLE, address)
    with pytest.raises(WorkerError, match=rf"no Ray cluster answers at {address} .*; correct or unset RAY_ADDRESS"):
        connect([])


def test_clocks_are_compared_by_the_quickest_answer() -> None:
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())

    def answer() -> None:
        for number in range(8):
            theirs.recv()
            time.sleep(0.0 if number == 5 else 0.02)
            theirs.send(time.monotonic() + 100.0)

    thread = threading.Thread(target=answer)
    thread.start()
    ahead_s = clock_ahead_s(ours)
    thread.join()
    ours.close()
    theirs.close()
    assert ahead_s == pytest.approx(100.0, abs=0.009)  # a slow answer is 10 ms off


def test_only_workers_of_this_fleet_are_listened_to() -> None:
    for secret, said in ((b"right", b"right"), (b"right", b"wrong"), (b"right", b"")):
        ours, theirs = socket.socketpair()
        theirs.sendall(_HELLO.pack(said.ljust(32), 4, 77) if said else b"")
        theirs.shutdown(socket.SHUT_WR)
        call = take_call(ours, secret)
        theirs.close()
        assert (call is not None) == (said == secret)
        if call is not None:
            assert call[:2] == (4, 77)
            call[2].close()


@needs_ray
def test_a_plan_runs_on_two_nodes_one_with_a_replica_of_two_ranks_and_yields_the_bare_llms_tokens() -> None:
    script = Path(__file__).with_name("two_nodes.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False, env=environment
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["violations"] == []
    assert found["tokens"] == undisturbed_tokens(WORKLOAD).tolist()
    assert found["nodes"] == [1.0, 2.0]
    assert found["followers"] == [0, 1]
    assert not found["left"]
    assert found["transfers"] == [[0] * 3, [1] * 3]  # one conversation ends with its first token
    assert found["refused"].startswith("The plan needs 4 a40@300W; the Ray cluster offers 3. Start its nodes with")
    assert not found["connected"]

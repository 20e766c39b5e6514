"""Launch commands of vLLM: a script per replica, one that starts all of a node, and a proxy where caches move."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from optsched import catalog
from optsched.domain.plan import Plan
from optsched.export.serving import Serving

_HEAD = "#!/usr/bin/env bash\n{about}\nset -euo pipefail\n"
_FIRST_PORT, _FIRST_SIDE_PORT = 8100, 5600


@dataclass(frozen=True, slots=True)
class _Seat:
    """Where a replica runs: node, cards, script and ports."""

    serving: Serving
    script: str
    node: str
    cards: range
    port: int
    side_port: int

    @property
    def host(self) -> str:
        """The shell variable that names its node."""
        return "HOST_" + re.sub(r"\W", "_", self.node).upper()


def shell_files(plan: Plan, servings: list[Serving]) -> dict[str, str]:
    """Return the scripts by path.

    Parameters
    ----------
    plan
        What is exported.
    servings
        Its replicas.
    """
    seats = _seats(servings)
    moves = any(each.replica.role != "mixed" for each in servings)
    found = {f"replicas/{seat.script}": _script(seat, moves) for seat in seats}
    found["start-all.sh"] = _start_all(seats)
    if moves:
        found["proxy.sh"] = _proxy(seats)
    return found


def _seats(servings: list[Serving]) -> list[_Seat]:
    """Fill nodes of each kind of card, one after the other; ports rise over all of them."""
    free: dict[str, tuple[int, int]] = {}
    seats = []
    for index, each in enumerate(servings):
        gpu, size = each.replica.gpu, catalog.gpu(each.replica.gpu).datasheet.gpus_per_node
        node, first = free.get(gpu, (0, 0))
        if first and first + each.gpus > size:
            node, first = node + 1, 0
        free[gpu] = (node, first + each.gpus)
        name = re.sub(r"[^\w.-]+", "-", each.replica.id).strip("-.") or "replica"
        cards = range(first, first + each.gpus)
        seats.append(
            _Seat(each, f"{index:03d}-{name}.sh", f"{gpu}-{node}", cards, _FIRST_PORT + index, _FIRST_SIDE_PORT + 10 * index)
        )
    return seats


def _script(seat: _Seat, moves: bool) -> str:
    serving, replica = seat.serving, seat.serving.replica
    cards = ",".join(map(str, seat.cards))
    kind = f"{replica.role} on {serving.gpus} x {replica.gpu} at {replica.power_cap_w:g} W"
    about = [f"# {_plain(replica.id)}: {kind}, node {seat.node}."]
    if serving.capped:
        about.append(f"# Power cap, as root before the start: nvidia-smi --id={cards} --power-limit={replica.power_cap_w:g}")
    lines = [_HEAD.format(about="\n".join(about)), f"export CUDA_VISIBLE_DEVICES={cards}"]
    if moves:
        lines.append(f"export VLLM_NIXL_SIDE_CHANNEL_HOST=${{{seat.host}:-localhost}}")
        lines.append(f"export VLLM_NIXL_SIDE_CHANNEL_PORT={seat.side_port}")
    words = [[shlex.quote(part) for part in (name, value) if part is not None] for name, value in serving.options]
    command = [f"exec vllm serve {shlex.quote(serving.model)}", f"--port {seat.port}", *(" ".join(each) for each in words)]
    return "\n".join([*lines, " \\\n  ".join(command), ""])


def _start_all(seats: list[_Seat]) -> str:
    """Return the script that starts the replicas of one node, or of the only one."""
    nodes: dict[str, list[_Seat]] = {}
    for seat in seats:
        nodes.setdefault(seat.node, []).append(seat)
    about = f"# Start the replicas of a node and wait for them: start-all.sh NODE, one of {' '.join(nodes)}."
    default = next(iter(nodes)) if len(nodes) == 1 else ""
    lines = [
        _HEAD.format(about=about),
        'here=$(cd "$(dirname "$0")" && pwd)',
        f"node=${{1:-{default}}}",
        'case "$node" in',
        *(f"  {name}) replicas=({' '.join(shlex.quote(seat.script) for seat in own)}) ;;" for name, own in nodes.items()),
        f"  *) echo \"start-all.sh: '$node' is no node; give one of {' '.join(nodes)}\" >&2; exit 2 ;;",
        "esac",
        "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT",
        'for replica in "${replicas[@]}"; do',
        '  bash "$here/replicas/$replica" &',
        "done",
        "wait",
        "",
    ]
    return "\n".join(lines)


def _proxy(seats: list[_Seat]) -> str:
    """Return the command of the example proxy in vLLM's documentation; mixed replicas do both."""
    prefillers = [seat for seat in seats if seat.serving.replica.role in ("prefill", "mixed")]
    decoders = [seat for seat in seats if seat.serving.replica.role in ("decode", "mixed")]

    def hosts(chosen: list[_Seat]) -> str:
        return " ".join(f'"${{{seat.host}:-localhost}}"' for seat in chosen)

    def ports(chosen: list[_Seat]) -> str:
        return " ".join(str(seat.port) for seat in chosen)

    about = (
        "# The example proxy of vLLM's docs/features/nixl_connector_usage.md. VLLM_SOURCE is a checkout of vLLM;\n"
        "# HOST_NODE, as in the lines below, names each node's address where there are several."
    )
    command = [
        "exec python \"${VLLM_SOURCE:?name a checkout of vLLM}/tests/v1/kv_connector/nixl_integration/toy_proxy_server.py\"",
        "--port 8192",
        f"--prefiller-hosts {hosts(prefillers)}", f"--prefiller-ports {ports(prefillers)}",
        f"--decoder-hosts {hosts(decoders)}", f"--decoder-ports {ports(decoders)}",
    ]  # fmt: skip
    return "\n".join([_HEAD.format(about=about), " \\\n  ".join(command), ""])


def _plain(name: str) -> str:
    """Return a user's text as a comment of one line may carry it."""
    return "".join(letter for letter in name if letter.isprintable())

"""What becomes of a conversation between its steps: it starts a turn, waits for one, or moves to its decoder."""

from __future__ import annotations

from optsched.batching.blocks import blocks_for
from optsched.compiled import lean
from optsched.simulator.heap import TRANSFER_END, TURN_READY, push
from optsched.simulator.prefixes import release
from optsched.simulator.queues import enqueue, insert, remove, tell
from optsched.simulator.state import BLOCKED, MOVING, QUEUED, TURN_ARRIVED, Engine, State


@lean
def start_turn(state: State, slot: int, replica: int, stays: bool) -> None:
    """Queue a conversation's first turn on the replica that prefills it; it stays there to decode if `stays`."""
    turn = state.turn[slot]
    state.stays[slot] = stays
    state.requests.new_tokens[slot] = state.turns.new_tokens[turn]
    enqueue(state, slot, replica)


@lean
def hand_over(state: State, slot: int, target: int, block_tokens: int, hidden_ratio: float, kv_bytes: float) -> bool:
    """Move a prefilled cache to its decoder; False (and blocked) while the decoder's pool has no room for it.

    A replica sends one cache at a time, and receives one at a time: a later one waits for the link.
    """
    source = state.replica[slot]
    blocks = blocks_for(state.requests.context[slot], state.requests.cache[slot], block_tokens, hidden_ratio)
    state.target[slot] = target
    if blocks > state.replicas.free_blocks[target]:
        state.place[slot] = BLOCKED
        return False
    state.replicas.free_blocks[target] -= blocks
    state.place[slot] = MOVING
    ready_s = max(state.clock[0], state.sending_until_s[source], state.receiving_until_s[target])
    size = kv_bytes * state.requests.context[slot]
    end_s = ready_s + state.transfer_latency_s[source, target] + size * state.transfer_s_per_byte[source, target]
    state.sending_until_s[source] = state.receiving_until_s[target] = end_s
    state.moved_s[slot] = ready_s
    push(state.heap, end_s, TRANSFER_END, slot)
    return True


@lean
def land(state: State, slot: int, engine: Engine) -> None:
    """Give a conversation whose cache has arrived to its decoder."""
    source, target, turn = state.replica[slot], state.target[slot], state.turn[slot]
    cache = state.requests.cache[slot]
    release(state, slot, source)
    state.requests.cache[slot] = cache
    state.requests.blocks[slot] = blocks_for(state.requests.context[slot], cache, engine.block_tokens, engine.hidden_ratio)
    state.turns.decode_replica[turn] = target
    if state.requests.emitted[slot] == state.turns.output_tokens[turn]:
        become_idle(state, slot, target)
    else:
        enqueue(state, slot, target)


@lean
def become_idle(state: State, slot: int, replica: int) -> None:
    """Keep a conversation's cache until its next turn."""
    counts = state.replicas.counts[replica]
    insert(state.replicas, replica, counts[0] + counts[1] + counts[2], slot, 2)
    state.replica[slot] = replica
    state.place[slot] = QUEUED
    turn = state.turn[slot]
    ready = state.turns.end_s[turn] + state.turns.gap_s[turn + 1]
    push(state.heap, max(state.clock[0], ready), TURN_READY, slot)


@lean
def next_turn(state: State, slot: int, direct: bool) -> None:
    """Queue a conversation's next turn where its cache is."""
    ended = state.turn[slot]
    turn = ended + 1
    state.turn[slot] = turn
    arrival = state.turns.end_s[ended] + state.turns.gap_s[turn]
    state.turns.arrival_s[turn] = arrival
    state.requests.arrival_s[slot] = arrival
    state.requests.last_token_s[slot] = arrival
    state.requests.emitted[slot] = state.requests.late[slot] = 0
    state.requests.new_tokens[slot] += state.turns.new_tokens[turn]
    replica = state.replica[slot]
    remove(state.replicas, replica, slot)
    enqueue(state, slot, replica)
    if not direct:
        tell(state.outbox, TURN_ARRIVED, slot)


@lean
def stay(state: State, slot: int) -> None:
    """Let a prefilled conversation decode where it is."""
    replica, turn = state.replica[slot], state.turn[slot]
    if state.requests.emitted[slot] == state.turns.output_tokens[turn]:
        become_idle(state, slot, replica)
        return
    insert(state.replicas, replica, state.replicas.counts[replica, 0], slot, 0)
    state.place[slot] = QUEUED
    state.replicas.woken[replica] = True

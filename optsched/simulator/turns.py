"""What becomes of a conversation between its steps: it starts a turn, waits for one, or moves to its decoder."""

from __future__ import annotations

from optsched.batching.blocks import blocks_for
from optsched.compiled import inlined, lean
from optsched.simulator.coast import interrupt
from optsched.simulator.heap import TRANSFER_END, TURN_READY, push
from optsched.simulator.prefixes import release
from optsched.simulator.queues import enqueue, insert, note, remove, tell
from optsched.simulator.state import BLOCKED, MOVING, QUEUED, ROOM, TURN_ARRIVED, TURN_STAYED, Engine, State


@lean
def start_turn(state: State, engine: Engine, slot: int, replica: int, stays: bool) -> None:
    """Queue a conversation's first turn on the replica that prefills it; it stays there to decode if `stays`."""
    interrupt(state, engine, replica)
    turn = state.turn[slot]
    state.stays[slot] = stays
    state.requests.new_tokens[slot] = state.turns.new_tokens[turn]
    enqueue(state, slot, replica)


@lean
def hand_over(state: State, engine: Engine, slot: int, target: int, kv_bytes: float) -> bool:
    """Move a cache to another replica; False (and blocked) while that one's pool has no room for it.

    A replica sends one cache at a time, and receives one at a time: a later one waits for the link. Where a copy was kept,
    only what was added since moves.
    """
    interrupt(state, engine, target)
    source, tokens = state.replica[slot], state.requests.context[slot]
    blocks = blocks_for(tokens, state.requests.cache[slot], engine.block_tokens, engine.hidden_ratio)
    if state.home[slot] == target:
        blocks, tokens = blocks - state.home_blocks[slot], tokens - state.home_context[slot]
    elif state.home[slot] >= 0 and state.home[slot] != source:
        forget_copy(state, engine, slot)
    state.target[slot] = target
    if blocks > state.replicas.free_blocks[target]:
        state.place[slot] = BLOCKED
        return False
    state.replicas.free_blocks[target] -= blocks
    state.place[slot] = MOVING
    ready_s = max(state.clock[0], state.sending_until_s[source], state.receiving_until_s[target])
    size = kv_bytes * tokens
    took_s = state.transfer_latency_s[source, target] + size * state.transfer_s_per_byte[source, target]
    end_s = ready_s + took_s * _slowed(state, source, target)
    state.sending_until_s[source] = state.receiving_until_s[target] = end_s
    state.moved_s[slot], state.moved_tokens[slot] = ready_s, tokens
    push(state.heap, end_s, TRANSFER_END, slot)
    return True


@inlined
def _slowed(state: State, source: int, target: int) -> float:
    """Return the factor on a hand-over that begins now; either end that has work is about to be in a step, if it is not yet."""
    replicas, factors = state.replicas, state.transfer_slowdown[source, target]
    if len(factors) == 1 or replicas.host[source] < 0:
        return float(factors[0])
    busy = replicas.busy_on_host[replicas.host[source]]
    for end in (source, target):
        if not replicas.busy[end] and replicas.counts[end, 0] + replicas.counts[end, 1] > 0:
            busy += 1
    return float(factors[min(busy, len(factors) - 1)])


@lean
def land(state: State, slot: int, engine: Engine) -> None:
    """Give a conversation whose cache has arrived to its decoder."""
    source, target, turn = state.replica[slot], state.target[slot], state.turn[slot]
    cache = state.requests.cache[slot]
    interrupt(state, engine, source)
    interrupt(state, engine, target)
    if state.home[slot] == target:
        state.home[slot] = -1
    if state.home[slot] != source:
        release(state, slot, source)
        if state.replicas.blocked[source] > 0:
            tell(state.outbox, ROOM, source)
    state.requests.cache[slot] = cache
    state.requests.blocks[slot] = blocks_for(state.requests.context[slot], cache, engine.block_tokens, engine.hidden_ratio)
    state.turns.decode_replica[turn] = target
    if state.requests.emitted[slot] == state.turns.output_tokens[turn]:
        become_idle(state, slot, target)
    else:
        enqueue(state, slot, target)


@lean
def compute_anew(state: State, engine: Engine, slot: int, replica: int, stays: bool) -> None:
    """Drop the cache of a turn that has just arrived, and queue everything said so far on another replica."""
    home = state.replica[slot]
    interrupt(state, engine, home)
    interrupt(state, engine, replica)
    remove(state.replicas, home, slot)
    release(state, slot, home)
    state.requests.new_tokens[slot] += state.requests.context[slot]
    state.requests.context[slot] = 0
    state.away[slot] = True
    state.stays[slot] = stays
    enqueue(state, slot, replica)


@lean
def leave(state: State, engine: Engine, slot: int, stays: bool) -> None:
    """Take a turn that has just arrived out of its replica's queue; unless it stays where it goes, its cache is kept, too."""
    home = state.replica[slot]
    interrupt(state, engine, home)
    remove(state.replicas, home, slot)
    state.place[slot] = BLOCKED
    state.away[slot] = True
    state.stays[slot] = stays
    if not stays:
        state.home[slot] = home
        state.home_blocks[slot] = state.requests.blocks[slot]
        state.home_context[slot] = state.requests.context[slot]
        state.home_cache[slot] = state.requests.cache[slot]


@lean
def come_home(state: State, engine: Engine, slot: int, home: int) -> None:
    """Have a turn that is away and not computed yet computed at home, with what was kept there of its cache."""
    requests, visited = state.requests, state.replica[slot]
    interrupt(state, engine, visited)
    interrupt(state, engine, home)
    if visited != home:
        if state.place[slot] == QUEUED:
            remove(state.replicas, visited, slot)
        release(state, slot, visited)
        kept = state.home_context[slot] if state.home[slot] == home else 0
        requests.new_tokens[slot] += requests.context[slot] - kept
        requests.context[slot] = kept
        if kept > 0:
            requests.blocks[slot], requests.cache[slot] = state.home_blocks[slot], state.home_cache[slot]
    state.home[slot] = -1
    state.away[slot] = False
    enqueue(state, slot, home)


@lean
def forget_copy(state: State, engine: Engine, slot: int) -> None:
    """Free the copy that a slot's home kept of its cache."""
    home = state.home[slot]
    interrupt(state, engine, home)
    state.replicas.free_blocks[home] += state.home_blocks[slot]
    state.replicas.refused[home] = False
    state.replicas.woken[home] = True
    state.home[slot] = -1
    if state.replicas.blocked[home] > 0:
        tell(state.outbox, ROOM, home)


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
def next_turn(state: State, slot: int, engine: Engine) -> None:
    """Queue a conversation's next turn where its cache is; placement may send it elsewhere, or only has to know."""
    ended = state.turn[slot]
    turn = ended + 1
    state.turn[slot] = turn
    arrival = state.turns.end_s[ended] + state.turns.gap_s[turn]
    state.turns.arrival_s[turn] = arrival
    state.requests.arrival_s[slot] = arrival
    state.requests.last_token_s[slot] = arrival
    state.requests.emitted[slot] = state.requests.late[slot] = 0
    state.away[slot] = False
    state.requests.new_tokens[slot] += state.turns.new_tokens[turn]
    replica = state.replica[slot]
    interrupt(state, engine, replica)
    remove(state.replicas, replica, slot)
    enqueue(state, slot, replica)
    if engine.direct < 0 and engine.per_turn:
        tell(state.outbox, TURN_ARRIVED, slot)
    elif engine.direct < 0:
        note(state.outbox, TURN_STAYED, slot, turn, arrival)


@lean
def stay(state: State, engine: Engine, slot: int) -> None:
    """Let a prefilled conversation decode where it is."""
    replica, turn = state.replica[slot], state.turn[slot]
    interrupt(state, engine, replica)
    if state.requests.emitted[slot] == state.turns.output_tokens[turn]:
        become_idle(state, slot, replica)
        return
    insert(state.replicas, replica, state.replicas.counts[replica, 0], slot, 0)
    state.place[slot] = QUEUED
    state.replicas.woken[replica] = True

"""What ends with a step: its tokens are handed out, and turns and conversations end with them."""

from __future__ import annotations

from optsched.compiled import inlined, lean
from optsched.simulator.coast import end_run
from optsched.simulator.gaps import count_gaps, keep_gap
from optsched.simulator.heap import ARRIVAL, push
from optsched.simulator.prefixes import keep_prefixes, release
from optsched.simulator.queues import remove, tell
from optsched.simulator.state import BLOCKED, DONE, FINISHED, PREFILLED, ROOM, Engine, State
from optsched.simulator.turns import become_idle, forget_copy


@inlined
def _emit(state: State, engine: Engine, slot: int, replica: int) -> None:
    """Note a request's next token, and what ends with it."""
    requests, turns, turn, now_s = state.requests, state.turns, state.turn[slot], state.clock[0]
    gap_s, first = now_s - requests.last_token_s[slot], requests.emitted[slot] == 0
    if engine.record_tokens:
        turns.token_s[turns.token_offset[turn] + requests.emitted[slot]] = now_s
    elif not first:
        count_gaps(state.gaps, gap_s, 1)
        keep_gap(state.gaps, turn, gap_s)
    if gap_s >= (engine.ttft_slo_s if first else engine.tbt_slo_s):
        requests.late[slot] = 1
    requests.emitted[slot] += 1
    requests.last_token_s[slot] = now_s
    requests.new_tokens[slot] = 1
    if first:
        turns.first_token_s[turn] = now_s
    prefilled = first and (turn == turns.first_turn[slot] or state.away[slot])
    if prefilled and engine.direct < 0:
        tell(state.outbox, PREFILLED, slot)
    ended = requests.emitted[slot] == turns.output_tokens[turn]
    if ended:
        turns.end_s[turn] = now_s
    if ended and turn + 1 == turns.first_turn[slot + 1]:
        _finish(state, engine, slot, replica)
    elif prefilled and not state.stays[slot]:
        remove(state.replicas, replica, slot)
        state.place[slot] = BLOCKED
    elif ended:
        remove(state.replicas, replica, slot)
        become_idle(state, slot, replica)


@lean
def _finish(state: State, engine: Engine, slot: int, replica: int) -> None:
    """End a conversation; where the number in flight is fixed, the next one arrives."""
    remove(state.replicas, replica, slot)
    release(state, slot, replica)
    if state.home[slot] >= 0:
        forget_copy(state, engine, slot)
    state.place[slot] = DONE
    state.counters[2] += 1
    if engine.direct < 0:
        tell(state.outbox, FINISHED, slot)
    following = state.counters[2] + engine.concurrency - 1
    if engine.concurrency > 0 and following < len(state.turn):
        push(state.heap, state.clock[0], ARRIVAL, following)


@lean
def end_step(state: State, engine: Engine, replica: int) -> None:
    """Hand out a finished step's tokens, and see to the turns and conversations that end with it."""
    replicas, requests = state.replicas, state.requests
    replicas.busy[replica] = False
    replicas.woken[replica] = True
    if replicas.host[replica] >= 0:
        replicas.busy_on_host[replicas.host[replica]] -= 1
    for index in range(replicas.num_scheduled[replica]):
        slot = replicas.scheduled[replica, index]
        count = state.decision.tokens[slot]
        state.decision.tokens[slot] = 0  # policies find a decision that leaves everyone out
        requests.context[slot] += count
        requests.new_tokens[slot] -= count
        if engine.prefixes:
            keep_prefixes(state, slot, replica)
        if requests.new_tokens[slot] == 0:
            _emit(state, engine, slot, replica)
    if replicas.blocked[replica] > 0:
        tell(state.outbox, ROOM, replica)


@inlined
def end_steps(state: State, engine: Engine, replica: int, order: int) -> None:
    """End what an event with a serial number ends: a step, a run of them, or nothing, if the run was interrupted since."""
    if order != state.replicas.due[replica]:
        state.replicas.stale[replica] -= 1
    elif state.replicas.run[replica] > 0:
        end_run(state, engine, replica)
    else:
        end_step(state, engine, replica)

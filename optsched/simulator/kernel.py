"""The compiled event loop: steps, tokens and transfers; it returns to Python only when placement has to be asked.

All events of one moment are processed, then Python is told what happened (`Outbox`), then replicas start their steps.
"""

from __future__ import annotations

from optsched.compiled import lean
from optsched.simulator.heap import ARRIVAL, STEP_END, TRANSFER_END, TURN_READY, drop_first
from optsched.simulator.queues import tell
from optsched.simulator.state import ARRIVED, Engine, State
from optsched.simulator.steps import start_step
from optsched.simulator.tokens import end_steps
from optsched.simulator.turns import land, next_turn, start_turn

DRAINED, TELL, FULL, PAUSED = 0, 1, 2, 3
MOST_MOMENTS = 20_000  # before Python may show progress or be interrupted


@lean
def advance(state: State, engine: Engine, policy: int) -> int:
    """Run until Python has to be told something, the step buffer is nearly full, nothing is left to happen, or for a while."""
    replicas, heap = state.replicas, state.heap
    for _ in range(MOST_MOMENTS):
        for replica in range(len(replicas.woken)):
            if replicas.woken[replica]:
                start_step(state, engine, policy, replica)
        if state.outbox.questions[0] > 0 or 2 * state.outbox.size[0] > len(state.outbox.kind):
            return TELL
        while heap.size[0] > 0 and heap.kind[0] == STEP_END and heap.order[0] != replicas.due[heap.subject[0]]:
            replicas.stale[heap.subject[0]] -= 1
            drop_first(heap)
        if heap.size[0] == 0:
            return DRAINED
        filled = state.steps.size[0] + state.steps.size[1]
        if engine.record_steps and filled + len(replicas.woken) > len(state.steps.integers):
            return FULL
        now = heap.time_s[0]
        state.clock[0] = now
        while heap.size[0] > 0 and heap.time_s[0] == now:
            kind, subject, order = heap.kind[0], heap.subject[0], heap.order[0]
            drop_first(heap)
            if kind == STEP_END:
                end_steps(state, engine, subject, order)
            elif kind == TRANSFER_END:
                land(state, subject, engine)
            elif kind == TURN_READY:
                next_turn(state, subject, engine)
            elif kind == ARRIVAL:
                turn = state.turn[subject]
                state.turns.arrival_s[turn] = now
                state.requests.arrival_s[subject] = now
                state.requests.last_token_s[subject] = now
                if engine.direct >= 0:
                    start_turn(state, engine, subject, engine.direct, True)
                else:
                    tell(state.outbox, ARRIVED, subject)
        if state.outbox.questions[0] > 0 or 2 * state.outbox.size[0] > len(state.outbox.kind):
            return TELL
    return PAUSED

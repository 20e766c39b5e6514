"""One run of a simulation: the compiled event loop, and the placement policy it asks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optsched.batching.policies.dispatch import policy_address
from optsched.domain.log import Event, EventKind
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import SolveError
from optsched.placement.dispatcher import Dispatcher, Grant
from optsched.placement.policies import always_on, make_policy
from optsched.placement.view import ConversationView
from optsched.simulator import kernel, turns
from optsched.simulator import state as st
from optsched.simulator.handovers import Handovers
from optsched.simulator.layout import engine_of, initial_state

_STEP_CAPACITY = 1 << 16


class Run:
    """The compiled state, the dispatcher's books, and what the two tell each other.

    Parameters
    ----------
    plan, workload
        What is executed.
    record_steps, record_tokens, coast
        See `optsched.simulator.simulate.simulate`.

    Attributes
    ----------
    state, engine
        What the event loop knows.
    dispatcher, handovers
        The placement books, and the caches that move.
    granted_s, admission_s
        When a prefiller was granted, per conversation, and how long a turn waited for its decoder.
    steps
        Recorded steps, in chunks.
    """

    def __init__(self, plan: Plan, workload: Workload, record_steps: bool, record_tokens: bool, coast: bool) -> None:
        self.plan, self.workload = plan, workload
        shape = plan.llms[0].shape
        policy = make_policy(plan.placement.policy, plan.placement.parameters, self._assignments())
        direct = always_on(policy, [replica.role for replica in plan.replicas])
        self.engine = engine_of(
            plan, workload, direct, per_turn=policy.per_turn, coasts=coast,
            record_steps=record_steps, record_tokens=record_tokens,
        )  # fmt: skip
        self.prompt_tokens = workload.context_before + workload.new_tokens
        self.dispatcher = Dispatcher(
            policy, plan.replicas, plan.engine.block_tokens, plan.engine.max_batched_tokens, plan.links,
            shape.kv_bytes_per_token,
        )  # fmt: skip
        self.state = initial_state(plan, workload, _STEP_CAPACITY if record_steps else 0, record_tokens)
        self.granted_s = np.full(workload.num_conversations, np.nan)
        self.prefilled_s = np.full(workload.num_conversations, np.nan)
        self.admission_s = np.zeros(workload.num_turns)
        self.handovers = Handovers(self.state, self.engine, self.dispatcher, shape)
        self.steps: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def ended(self) -> int:
        """Conversations that have ended."""
        return int(self.state.counters[2])

    def _assignments(self) -> dict[int, tuple[int, int]]:
        index = {replica.id: position for position, replica in enumerate(self.plan.replicas)}
        return {a.conversation: (index[a.prefill], index[a.decode]) for a in self.plan.placement.assignments}

    def to_the_end(self, progress: Callable[[float], None] | None) -> None:
        """Alternate between the event loop and the placement policy until every conversation ended."""
        policy = policy_address(self.plan.batching.policy)
        while (code := kernel.advance(self.state, self.engine, policy)) != kernel.DRAINED or self._loosen():
            if code == kernel.FULL:
                self._keep_steps()
            self._listen()
            if progress is not None:
                progress(self.ended / self.workload.num_conversations)
        self._listen()
        self._keep_steps()
        missing = self.workload.num_conversations - self.ended
        if missing:
            raise SolveError(
                f"{missing} conversations wait for cache that is never freed; give the replicas more KV blocks, or the "
                "placement policy a larger reservation"
            )

    def _loosen(self) -> bool:
        """Have caches let go of what others may wait for, now that nothing else can happen; tell whether there was any."""
        for replica in range(len(self.plan.replicas)):
            if grants := self.handovers.settle(replica):
                self._apply(float(self.state.clock[0]), grants)
                return True
        return self.handovers.loosen()

    def _keep_steps(self) -> None:
        filled = int(self.state.steps.size[0])
        self.steps.append((self.state.steps.integers[:filled].copy(), self.state.steps.floats[:filled].copy()))
        self.state.steps.size[0] = 0

    def _listen(self) -> None:
        outbox, now = self.state.outbox, float(self.state.clock[0])
        filled = int(outbox.size[0])
        columns = (outbox.kind, outbox.subject, outbox.replica, outbox.time_s)
        told = list(zip(*(column[:filled].tolist() for column in columns), strict=True))
        outbox.size[0] = outbox.questions[0] = 0
        for kind, subject, replica, time_s in told:
            if kind == st.ARRIVED:
                self._apply(now, self.dispatcher.arrive(now, self._view(subject)))
            elif kind == st.PREFILLED:
                self.prefilled_s[subject] = now
                self._apply(now, self.dispatcher.prefilled(now, subject))
            elif kind == st.FINISHED:
                self._apply(now, self.dispatcher.finished(now, subject))
            elif kind == st.TURN_ARRIVED:
                self._later_turn(now, subject)
            elif kind == st.TURN_STAYED:
                self.dispatcher.grow(subject, int(self.prompt_tokens[replica]))
            elif kind == st.ROOM:
                self.handovers.retry(subject)
            elif kind == st.CROWDED:
                self.handovers.call_back(subject)
            elif kind == st.STARVED:
                self._apply(now, self.handovers.settle(subject))
            else:
                name: EventKind = "preempted" if kind == st.PREEMPTED else "evicted"
                self.handovers.events.append(Event(time_s, name, subject, replica))

    def _later_turn(self, now: float, conversation: int) -> None:
        """Have a turn's prompt computed where the placement policy wants it; most policies leave it where its cache is."""
        state, turn = self.state, int(self.state.turn[conversation])
        context, home = int(state.requests.context[conversation]), int(state.replica[conversation])
        number = turn - int(self.workload.first_turn[conversation])
        new, output = int(state.requests.new_tokens[conversation]), int(self.workload.output_tokens[turn])
        away, grants = self.dispatcher.later_turn(now, conversation, number, context, new, output, self.handovers.room)
        if away is None:
            return
        if away.reuse and context:
            turns.leave(state, self.engine, conversation, away.decode == away.prefill)
            self.handovers.line_up(conversation, away.prefill)
        else:
            turns.compute_anew(state, self.engine, conversation, away.prefill, away.decode == away.prefill)
            self.handovers.retry(home)
            if context:
                self.handovers.events.append(Event(now, "dropped", conversation, home))
        self._apply(now, grants)

    def _view(self, conversation: int) -> ConversationView:
        w = self.workload
        return ConversationView(
            conversation,
            float(self.state.turns.arrival_s[w.first_turn[conversation]]),
            int(w.first_turn_tokens[conversation]),
            int(w.peak_tokens[conversation]),
        )

    def _apply(self, now: float, grants: list[Grant]) -> None:
        for grant in grants:
            if grant.kind == "prefill":
                self.granted_s[grant.conversation] = now
                stays = self.dispatcher.decoder_of(grant.conversation) == grant.replica
                turns.start_turn(self.state, self.engine, grant.conversation, grant.replica, stays)
            elif self.state.place[grant.conversation] == st.BLOCKED:
                turn = int(self.state.turn[grant.conversation])
                self.admission_s[turn] = now - self.prefilled_s[grant.conversation]
                if grant.replica == self.state.replica[grant.conversation]:
                    turns.stay(self.state, self.engine, grant.conversation)
                else:
                    self.handovers.line_up(grant.conversation, grant.replica)

"""Simulate a plan on a workload: the compiled event loop, and the placement policy it asks."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np

from optsched.batching.policies.dispatch import policy_address
from optsched.batching.state import HIDDEN
from optsched.domain.gaps import Gaps
from optsched.domain.log import Event, EventKind, ExecutionLog, Steps, Transfers
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import PlanError, SolveError, SpecError
from optsched.placement.dispatcher import Dispatcher, Grant
from optsched.placement.policies import PER_TURN, always_on, make_policy
from optsched.placement.room import refuse_what_cannot_fit
from optsched.placement.view import ConversationView
from optsched.simulator import kernel, turns
from optsched.simulator import state as st
from optsched.simulator.coast import interrupt
from optsched.simulator.layout import engine_of, initial_state

_STEP_CAPACITY = 1 << 16


def simulate(
    plan: Plan,
    workload: Workload,
    *,
    seed: int = 0,
    record_steps: bool = True,
    record_tokens: bool = True,
    coast: bool = True,
    check: bool = True,
    progress: Callable[[float], None] | None = None,
) -> ExecutionLog:
    """Execute a workload on a plan's replicas, on a virtual clock.

    Parameters
    ----------
    plan
        Replicas with their step laws, links, batching and placement policies.
    workload
        The conversations.
    seed
        Recorded in the log; today's policies draw nothing at random.
    record_steps
        Keep every step in the log (needed by `ExecutionLog.violations` for tokens and by calibration).
    record_tokens
        Keep the time of every output token in the log. Otherwise its `gaps` say what the gaps between them were: per turn the
        longest and the 99th percentile, exactly, and of all together the mean and percentiles to 0.1 %.
    coast
        Take steps whose content is known beforehand in one go. Otherwise the batching policy is asked about every step: the
        same execution, more slowly.
    check
        Have the conservation laws checked at the end.
    progress
        Called now and then with the share of conversations that ended.

    Returns
    -------
    ExecutionLog
        With the energy above idle of each replica.

    Raises
    ------
    PlanError
        If the plan contradicts itself.
    InfeasibleError
        If a conversation fits no decoder.
    SpecError
        If prompts are to share cache and the workload, or the blocks' size, does not allow it.
    SolveError
        If conversations wait for each other for ever, or a conservation law is broken.
    """
    if broken := plan.violations():
        raise PlanError(broken)
    refuse_what_cannot_fit(plan, workload)
    _refuse_broken_units(plan, workload)
    run = _Simulation(plan, workload, record_steps, record_tokens, coast)
    run.to_the_end(progress)
    log = run.log(seed)
    if check:
        broken = log.violations(workload) if record_steps else []
        if np.any(run.state.replicas.free_blocks != run.state.replicas.total_blocks):
            broken.append("cache blocks were lost")
        if promised := int(run.state.counters[3]):
            broken.append(f"batching policy {plan.batching.policy!r} promised {promised} cache blocks that were not there")
        if broken:
            raise SolveError(f"The simulation broke a conservation law (a bug, please report it): {broken[0]}")
    return log


def _refuse_broken_units(plan: Plan, workload: Workload) -> None:
    unit, block = workload.prefix_block_tokens, plan.engine.block_tokens
    if plan.engine.prefix_caching and plan.placement.policy in PER_TURN:
        raise SpecError(
            f"true: prompts that share cache cannot leave it, as turns do under {plan.placement.policy!r}; leave it out",
            field="engine.prefix_caching",
        )
    if plan.engine.prefix_caching and workload.prefix_blocks is None:
        raise SpecError(
            "true: the workload does not say which prompts begin alike; use a trace that does (Mooncake's), or leave it out",
            field="engine.prefix_caching",
        )
    if plan.engine.prefix_caching and unit % block:
        raise SpecError(
            f"{block}: prompts share blocks of {unit} tokens; give a divisor of {unit}, or leave prefix_caching out",
            field="engine.block_tokens",
        )


class _Simulation:
    """One run: the compiled state, the dispatcher's books, and what the two tell each other."""

    def __init__(self, plan: Plan, workload: Workload, record_steps: bool, record_tokens: bool, coast: bool) -> None:
        self.plan, self.workload = plan, workload
        self.shape = plan.llms[0].shape
        policy = make_policy(plan.placement.policy, plan.placement.parameters, self._assignments())
        direct = always_on(policy, [replica.role for replica in plan.replicas])
        self.engine = engine_of(
            plan, workload, direct, per_turn=policy.per_turn, coasts=coast,
            record_steps=record_steps, record_tokens=record_tokens,
        )  # fmt: skip
        self.prompt_tokens = workload.context_before + workload.new_tokens
        self.dispatcher = Dispatcher(
            policy, plan.replicas, plan.engine.block_tokens, plan.engine.max_batched_tokens, plan.links,
            self.shape.kv_bytes_per_token,
        )  # fmt: skip
        self.state = initial_state(plan, workload, _STEP_CAPACITY if record_steps else 0, record_tokens)
        self.granted_s = np.full(workload.num_conversations, np.nan)
        self.prefilled_s = np.full(workload.num_conversations, np.nan)
        self.admission_s = np.zeros(workload.num_turns)
        self.blocked: defaultdict[int, deque[int]] = defaultdict(deque)
        self.transfers: list[tuple[int, int, int, float, float, float]] = []
        self.events: list[Event] = []
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
                self._retry(subject)
            elif kind == st.CROWDED:
                self._call_back(subject)
            else:
                name: EventKind = "preempted" if kind == st.PREEMPTED else "evicted"
                self.events.append(Event(time_s, name, subject, replica))

    def _later_turn(self, now: float, conversation: int) -> None:
        """Have a turn's prompt computed where the placement policy wants it; most policies leave it where its cache is."""
        state, turn = self.state, int(self.state.turn[conversation])
        context, home = int(state.requests.context[conversation]), int(state.replica[conversation])
        number = turn - int(self.workload.first_turn[conversation])
        new, output = int(state.requests.new_tokens[conversation]), int(self.workload.output_tokens[turn])
        away, grants = self.dispatcher.later_turn(now, conversation, number, context, new, output, self._room)
        if away is None:
            return
        if away.reuse and context:
            turns.leave(state, self.engine, conversation, away.decode == away.prefill)
            self.blocked[away.prefill].append(conversation)
            self._retry(away.prefill)
        else:
            turns.compute_anew(state, self.engine, conversation, away.prefill, away.decode == away.prefill)
            self._retry(home)
            if context:
                self.events.append(Event(now, "dropped", conversation, home))
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
                    self.blocked[grant.replica].append(grant.conversation)
                    self._retry(grant.replica)

    def _retry(self, target: int) -> None:
        """Start the hand-overs that found no room in a decoder's pool, first come, first served.

        Who waits there for room holds none: copies kept for what is still to come back are dropped.
        """
        waiting = self.blocked[target]
        while waiting:
            if self._hand_over(waiting[0], target):
                waiting.popleft()
                continue
            copies = [slot for slot in waiting if self.state.home[slot] == target]
            for slot in copies:
                turns.forget_copy(self.state, self.engine, slot)
            if not copies:
                break
        self.state.replicas.blocked[target] = len(waiting)

    def _hand_over(self, slot: int, target: int) -> bool:
        """Start a hand-over if there is room for it, and note it."""
        state = self.state
        hidden = state.requests.cache[slot] == HIDDEN
        per_token = self.shape.hidden_bytes_per_token if hidden else self.shape.kv_bytes_per_token
        if not turns.hand_over(state, self.engine, slot, target, per_token):
            return False
        source, size = int(state.replica[slot]), per_token * int(state.moved_tokens[slot])
        start_s, end_s = float(state.moved_s[slot]), float(state.receiving_until_s[target])
        self.transfers.append((slot, source, target, start_s, end_s, size))
        return True

    def _room(self, replica: int) -> int:
        """Return how many tokens a replica's pool has room for now; none where others wait for it."""
        if self.blocked[replica]:
            return 0
        interrupt(self.state, self.engine, replica)
        return int(self.state.replicas.free_blocks[replica]) * self.engine.block_tokens

    def _call_back(self, replica: int) -> None:
        """Have visits that wait there or were to come back there computed at home, now that a replica's memory is short."""
        state = self.state
        for slot in np.flatnonzero(state.away & (state.requests.emitted == 0) & (state.place == st.QUEUED)).tolist():
            home, visited = self.dispatcher.decoder_of(slot), int(state.replica[slot])
            running = state.replicas.queue[visited, : state.replicas.counts[visited, 0]]
            if home is not None and home != visited and replica in (home, visited) and slot not in running:
                self._bring_home(slot, home)

    def _bring_home(self, slot: int, home: int) -> None:
        """Have a turn that is away and not computed yet computed at home after all."""
        state, visited = self.state, int(self.state.replica[slot])
        kept = int(state.home_context[slot]) if state.home[slot] == home else 0
        if visited != home and state.requests.context[slot] > kept:
            self.events.append(Event(float(state.clock[0]), "dropped", slot, visited))
        turns.come_home(state, self.engine, slot, home)
        self.dispatcher.stayed(slot)
        self._retry(visited)

    def _loosen(self) -> bool:
        """Let go of what turns that are away hold, now that nothing else can happen; tell whether there was any.

        Those who were not computed yet are computed at home after all; else the copies at their homes are dropped.
        """
        state, loosened = self.state, False
        for slot in np.flatnonzero(state.away & (state.requests.emitted == 0) & (state.place != st.DONE)).tolist():
            home = self.dispatcher.decoder_of(slot)
            if home is None or (home == state.replica[slot] and state.place[slot] == st.QUEUED):
                continue
            for queue in self.blocked.values():
                if slot in queue:
                    queue.remove(slot)
            self._bring_home(slot, home)
            loosened = True
        if not loosened:
            for slot in np.flatnonzero(state.home >= 0).tolist():
                turns.forget_copy(state, self.engine, slot)
                loosened = True
        for target in list(self.blocked):
            self._retry(target)
        return loosened

    def log(self, seed: int) -> ExecutionLog:
        """Assemble the record of the run."""
        record, first = self.state.turns, self.workload.first_turn[:-1]
        queue_s = np.zeros(self.workload.num_turns)
        prefiller = self.state.replicas.prefill_only[record.prefill_replica[first]]
        granted_s = self.granted_s if self.engine.direct < 0 else record.arrival_s[first]
        queue_s[first] = np.where(prefiller, record.start_s[first], granted_s) - record.arrival_s[first]
        integers = np.concatenate([chunk for chunk, _ in self.steps])
        floats = np.concatenate([chunk for _, chunk in self.steps])
        order = np.lexsort((integers[:, 0], floats[:, 1]))
        integers, floats = integers[order], floats[order]
        moves = np.array(self.transfers, dtype=float).reshape(-1, 6)
        dynamic = self.state.replicas.dynamic_j.copy()
        gaps, kept = None, self.state.gaps
        if not self.engine.record_tokens:
            gaps = Gaps.of_largest(kept.largest_s, self.workload, kept.histogram, float(kept.total_s[0]))
        joules = {(link.source, link.target): link.joules_per_byte for link in self.plan.links}
        for _, source, target, _, _, size in self.transfers:
            dynamic[source] += size * joules[self.plan.replicas[source].id, self.plan.replicas[target].id]
        return ExecutionLog(
            origin="simulated",
            arrival_s=record.arrival_s, start_s=record.start_s, first_token_s=record.first_token_s, end_s=record.end_s,
            prefill_replica=record.prefill_replica, decode_replica=record.decode_replica,
            queue_s=queue_s, admission_s=self.admission_s,
            token_s=record.token_s if self.engine.record_tokens else None,
            steps=Steps(
                replica=integers[:, 0], start_s=floats[:, 0], end_s=floats[:, 1], prefill_tokens=integers[:, 1],
                pairs=floats[:, 2], prefill_context_tokens=integers[:, 7], sequences=integers[:, 2],
                decode_sequences=integers[:, 3], kv_tokens=integers[:, 4], hidden_tokens=integers[:, 5],
                busy_replicas=integers[:, 6],
            ),
            transfers=Transfers(
                moves[:, 0].astype(np.int64), moves[:, 1].astype(np.int64), moves[:, 2].astype(np.int64),
                moves[:, 3], moves[:, 4], moves[:, 5],
            ),
            dynamic_j=dynamic,
            events=tuple(self.events),
            preemptions=int(self.state.counters[1]),
            seed=seed,
            gaps=gaps,
            reused_tokens=int(self.state.prefixes.reused_tokens[0]),
        )  # fmt: skip

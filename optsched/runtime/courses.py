"""Where every conversation is, and what the workers are told about it: turns, hand-overs, and starting again after a loss.

A conversation is at one replica at a time; another may be sending its cache away, or keep a copy for its return. Whatever is
lost, the controller knows all tokens said so far: it has every replica that holds something of the conversation drop it, waits
until they have, and places it again with what was said as its prompt.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int64

from optsched.domain.log import Event, EventKind
from optsched.domain.workload import Workload
from optsched.placement.dispatcher import Dispatcher, Grant
from optsched.placement.view import ConversationView
from optsched.runtime.course import Course, Held
from optsched.runtime.fleet import Fleet
from optsched.runtime.messages import (
    Drop,
    Dropped,
    Incident,
    News,
    Park,
    Parked,
    Prefilled,
    Receive,
    Received,
    Send,
    Sent,
    StartTurn,
    Stay,
    TurnEnded,
    Unreceived,
)
from optsched.runtime.observation import Observation
from optsched.runtime.prompts import Prompts

Array = np.ndarray
ARRIVAL, TURN = 0, 1
_NOTHING: Int64[Array, " 0"] = np.zeros(0, np.int64)
_MOST_LOOSENED = 20  # without a turn that ended: what waits then waits for ever


class Courses:
    """All conversations of a run.

    Parameters
    ----------
    workload, prompts
        The conversations.
    fleet, dispatcher, observed
        The workers, the placement books, and what is known of the run.
    now
        The clock.

    Attributes
    ----------
    due
        A heap of what happens at a known time: time, `ARRIVAL` or `TURN`, and conversation or turn.
    ended, ended_turns
        How many conversations and turns have.
    """

    def __init__(
        self, workload: Workload, prompts: Prompts, fleet: Fleet, dispatcher: Dispatcher, observed: Observation,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._workload, self._prompts = workload, prompts
        self._fleet, self._dispatcher, self._observed, self._now = fleet, dispatcher, observed, now
        self._courses = [Course(int(turn)) for turn in workload.first_turn[:-1]]
        self._broken: set[tuple[int, int]] = set()
        self._postponed: list[int] = []
        self._transfers = self._drops = self._loosened = 0
        self.due = [(float(time_s), ARRIVAL, index) for index, time_s in enumerate(workload.arrival_s[: workload.concurrency])]
        self.ended = self.ended_turns = 0

    # --- what happens by itself

    def arrive(self, conversation: int, arrival_s: float) -> None:
        """Have a new conversation placed."""
        w = self._workload
        self._observed.arrival_s[w.first_turn[conversation]] = arrival_s
        first_turn, peak = int(w.first_turn_tokens[conversation]), int(w.peak_tokens[conversation])
        self._apply(self._dispatcher.arrive(self._now(), ConversationView(conversation, arrival_s, first_turn, peak)))

    def turn_due(self, turn: int) -> None:
        """Start a later turn, where its conversation's cache is or where the policy sends it."""
        w, conversation = self._workload, int(self._workload.conversation_of_turn[turn])
        course = self._courses[conversation]
        if course.held or course.awaited:
            course.due = turn
            return
        course.turn, course.due = turn, -1
        if course.homeless:
            self._place_again(conversation)
            return
        prompt, number = int(w.context_before[turn] + w.new_tokens[turn]), int(w.turn_in_conversation[turn])
        context = 0 if course.evicted else int(w.context_before[turn]) - 1
        course.evicted = False
        away, grants = self._dispatcher.later_turn(
            self._now(), conversation, number, context, prompt - context, int(w.output_tokens[turn])
        )
        course.away = away
        self._fleet.send(course.at, self._turn(turn, stays=True) if away is None else Park(conversation))
        self._apply(grants)

    # --- what workers say

    def hear(self, replica: int, news: News) -> None:
        """Act on what a worker says of a conversation."""
        course = self._courses[news.conversation]
        if isinstance(news, Incident):
            course.evicted |= news.kind == "evicted"
        elif isinstance(news, Sent):
            if news.transfer == course.transfer:
                course.leaving = -1
        elif isinstance(news, Dropped):
            self._dropped(news.conversation, replica, news.number)
        elif isinstance(news, TurnEnded):
            self._end_turn(news)
        elif not course.awaited:  # what else was said by those who are about to drop it is of no use any more
            self._go_on(course, news)

    def _go_on(self, course: Course, news: Prefilled | Parked | Received | Unreceived) -> None:
        if isinstance(news, Prefilled):
            course.away = None
            if not news.over and self._dispatcher.decoder_of(news.conversation) != course.at:
                course.held = Held(news.time_s, news.cache, news.context)
            self._apply(self._dispatcher.prefilled(self._now(), news.conversation))
        elif isinstance(news, Parked):
            self._leave_home(course, news)
        elif news.transfer == course.transfer:
            if isinstance(news, Received):
                course.arrived = True
            else:
                self._lose_link(course, news)

    def _end_turn(self, news: TurnEnded) -> None:
        w, course = self._workload, self._courses[news.conversation]
        self.ended_turns += 1
        self._loosened = 0
        course.evicted = False
        self._place_postponed()
        if news.turn + 1 < w.first_turn[news.conversation + 1]:
            ready_s = news.time_s + float(w.gap_s[news.turn + 1])
            self._observed.arrival_s[news.turn + 1] = ready_s
            heapq.heappush(self.due, (ready_s, TURN, news.turn + 1))
            return
        self.ended += 1
        course.done = True
        self._drop_copy(news.conversation)
        following = self.ended - 1 + (w.concurrency or w.num_conversations)
        if following < w.num_conversations:
            heapq.heappush(self.due, (news.time_s, ARRIVAL, following))
        self._apply(self._dispatcher.finished(self._now(), news.conversation))

    # --- starting and moving

    def _turn(self, turn: int, *, stays: bool, everything: bool = False) -> StartTurn:
        """Return a turn for a worker: with its prompt, or with everything said so far."""
        w = self._workload
        conversation, number = int(w.conversation_of_turn[turn]), int(w.turn_in_conversation[turn])
        new, emitted = int(w.new_tokens[turn]), int(self._observed.emitted[turn])
        tokens: Int64[Array, " n"] | None = None
        if everything and (number or emitted):
            tokens = self._said(turn)
        elif not self._prompts.drawn:
            tokens = self._prompts.of(conversation, number, new, self._observed.outputs(turn - 1) if number else _NOTHING)
        last = turn + 1 == w.first_turn[conversation + 1]
        arrival_s, outputs = float(self._observed.arrival_s[turn]), int(self._observed.output_tokens[turn])
        return StartTurn(conversation, turn, number, arrival_s, new, outputs, last, stays, tokens=tokens, emitted=emitted)

    def _said(self, turn: int) -> Int64[Array, " n"]:
        """Return all tokens of a conversation up to those that are known of a turn."""
        w, parts = self._workload, [_NOTHING]
        conversation = int(w.conversation_of_turn[turn])
        for number, each in enumerate(range(int(w.first_turn[conversation]), turn + 1)):
            parts += [self._prompts.of(conversation, number, int(w.new_tokens[each]), parts[-1]), self._observed.outputs(each)]
        return np.concatenate(parts)

    def _apply(self, grants: list[Grant]) -> None:
        for grant in grants:
            course = self._courses[grant.conversation]
            if grant.kind == "prefill":
                if np.isnan(self._observed.granted_s[grant.conversation]):
                    self._observed.granted_s[grant.conversation] = self._now()
                self._compute_at(course, grant.replica, self._dispatcher.decoder_of(grant.conversation) == grant.replica)
            elif course.held is not None:
                self._observed.admission_s[course.turn] += self._now() - course.held.time_s
                self._move(course, grant.conversation, grant.replica)

    def _compute_at(self, course: Course, replica: int, stays: bool) -> None:
        """Have everything said so far computed on a replica that holds nothing of it."""
        course.at, course.homeless = replica, False
        self._fleet.send(replica, self._turn(course.turn, stays=stays, everything=True))

    def _move(self, course: Course, conversation: int, target: int) -> None:
        """Let a held conversation decode on its decoder, handing its cache over if that is another replica."""
        if course.at == target:
            course.held = None
            self._drop_copy(conversation)
            self._fleet.send(target, Stay(conversation))
        elif (course.at, target) not in self._broken:
            self._hand_over(course, conversation, target, stays=True, keep=False)
        elif self._is_over(course.turn):
            self._recover(conversation, "recovered", course.at, "its cache could not be moved")
            return
        else:
            self._note("recovered", conversation, course.at, "its cache could not be moved")
            course.held = None
            self._drop_copy(conversation)
            self._drop_at(conversation, course.at)
            self._compute_at(course, target, stays=True)
        if course.due >= 0:
            self.turn_due(course.due)

    def _is_over(self, turn: int) -> bool:
        return bool(self._observed.emitted[turn] == self._observed.output_tokens[turn])

    def _leave_home(self, course: Course, news: Parked) -> None:
        """Have a later turn computed elsewhere: with its cache, if the policy says so and there is one."""
        away = course.away
        assert away is not None
        conversation, home = news.conversation, course.at
        stays = away.decode == away.prefill
        if away.reuse and news.context and (home, away.prefill) not in self._broken:
            course.held = Held(news.time_s, news.cache, news.context)
            self._hand_over(course, conversation, away.prefill, stays=stays, keep=away.decode == home)
            return
        self._drop_at(conversation, home)
        if news.context:
            self._note("dropped", conversation, home)
        self._compute_at(course, away.prefill, stays)

    def _hand_over(self, course: Course, conversation: int, target: int, *, stays: bool, keep: bool) -> None:
        """Move a held cache: what was added since to where a copy was kept, else all of it."""
        held, course.held = course.held, None
        assert held is not None
        copied = course.copied if course.copy_at == target else None
        if copied is None or copied.cache != held.cache or copied.context > held.context:
            self._drop_copy(conversation)
            copied = None
        source, kept = course.at, 0 if copied is None else copied.context
        self._transfers += 1
        course.transfer, course.leaving, course.at, course.arrived = self._transfers, source, target, False
        course.copy_at, course.copied = (source, held) if keep else (-1, None)
        turn = self._turn(course.turn, stays=stays, everything=True)
        token_s, address = self._observed.last_token_s(course.turn), self._fleet.address(source)
        self._fleet.send(target, Receive(course.transfer, turn, source, address, held.cache, held.context, token_s, kept))
        self._fleet.send(source, Send(course.transfer, conversation, target, kept, keep))

    # --- losses

    def lose(self, replica: int, reason: str) -> None:
        """Place again what a replica that is gone held."""
        self._note("worker_died", -1, replica, reason)
        self._apply(self._dispatcher.lost(self._now(), replica, []))
        for conversation, course in self._open():
            if replica in course.awaited:
                self._dropped(conversation, replica, course.awaited[replica])
            elif course.depends_on(replica):
                self._recover(conversation, "recovered", replica, reason)
            elif course.leaving == replica:
                course.leaving = -1

    def _lose_link(self, course: Course, news: Unreceived) -> None:
        """Send nothing along that link any more, and place the conversation again."""
        self._broken.add((news.source, course.at))
        self._note("link_lost", news.conversation, course.at, f"from replica {news.source}: {news.reason}")
        self._recover(news.conversation, "recovered", news.source, "its cache did not arrive")

    def loosen(self) -> bool:
        """Drop caches that others may wait for, where nothing else can happen any more; tell whether there was any.

        First turns whose cache finds no room where it should be computed are placed anew; then the copies at homes are dropped;
        then the last cache that finds no room at its decoder, or all that wait for one, which are computed again when a turn
        has ended.
        """
        self._loosened += 1
        if self._loosened > _MOST_LOOSENED or self._place_postponed():
            return self._loosened <= _MOST_LOOSENED
        stuck = [conversation for conversation, course in self._open() if course.away and course.leaving >= 0]
        copies = [] if stuck else [conversation for conversation, course in self._open() if course.copy_at >= 0]
        moving = [] if stuck or copies else [c for c, course in self._open() if course.leaving >= 0 and not course.arrived][-1:]
        held = moving or ([] if stuck or copies else [conversation for conversation, course in self._open() if course.held])
        for conversation in copies:
            self._drop_copy(conversation)
        self._postponed = held
        for conversation in [*stuck, *held]:
            self._recover(conversation, "dropped", self._courses[conversation].at, "others waited for the room that it took")
        return bool(stuck or copies or held)

    def _place_postponed(self) -> bool:
        postponed, self._postponed = self._postponed, []
        for conversation in postponed:
            if not self._courses[conversation].awaited:
                self._resume(conversation)
        return bool(postponed)

    def _recover(self, conversation: int, kind: EventKind, replica: int, why: str) -> None:
        """Have every replica drop what it holds of a conversation; the last to confirm has it placed again."""
        course = self._courses[conversation]
        self._note(kind, conversation, replica, why)
        holders = [holder for holder in course.holders() if self._fleet.lives(holder)]
        course.at = course.leaving = course.copy_at = course.transfer = -1
        course.copied = course.held = course.away = None
        for holder in holders:
            course.awaited[holder] = self._drop_at(conversation, holder)
        if not holders:
            self._resume(conversation)

    def _dropped(self, conversation: int, replica: int, number: int) -> None:
        course = self._courses[conversation]
        if course.awaited.get(replica) == number:
            del course.awaited[replica]
            if not (course.awaited or course.done or conversation in self._postponed):
                self._resume(conversation)

    def _resume(self, conversation: int) -> None:
        """Go on with a conversation of which no replica holds anything: now, or when its next turn arrives."""
        course = self._courses[conversation]
        if not self._is_over(course.turn):
            self._place_again(conversation)
            return
        course.homeless = True
        self._apply(self._dispatcher.finished(self._now(), conversation))
        if course.due >= 0:
            self.turn_due(course.due)

    def _place_again(self, conversation: int) -> None:
        w, turn = self._workload, self._courses[conversation].turn
        said = len(self._said(turn))
        arrival_s = float(self._observed.arrival_s[w.first_turn[conversation]])
        view = ConversationView(conversation, arrival_s, said, int(w.peak_tokens[conversation]))
        self._apply(self._dispatcher.again(self._now(), [view]))

    def _drop_copy(self, conversation: int) -> None:
        course = self._courses[conversation]
        if course.copy_at >= 0:
            self._drop_at(conversation, course.copy_at)
        course.copy_at, course.copied = -1, None

    def _drop_at(self, conversation: int, replica: int) -> int:
        self._drops += 1
        self._fleet.send(replica, Drop(conversation, self._drops))
        return self._drops

    def _open(self) -> Iterator[tuple[int, Course]]:
        """Return the conversations that have not ended, one after the other."""
        for conversation, course in enumerate(self._courses):
            if not course.done:
                yield conversation, course

    def _note(self, kind: EventKind, conversation: int, replica: int, detail: str = "") -> None:
        self._observed.events.append(Event(self._now(), kind, conversation, replica, detail))

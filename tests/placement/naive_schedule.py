"""The rules of ``event-v1`` once more, one step at a time and with no closed forms: an oracle for the compiled loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optsched.placement.problem import PlacementPlan, PlacementProblem

MOMENT_S = 1e-9


@dataclass
class Engine:
    free: int
    jobs: list[int] = field(default_factory=list)
    residents: list[int] = field(default_factory=list)
    joining: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    until_s: float = math.inf
    chunk: int = 0
    energy_j: float = 0.0


class Naive:
    def __init__(self, problem: PlacementProblem, plan: PlacementPlan) -> None:
        self.problem, self.work = problem, problem.workload
        self.p, self.d = plan.prefill.tolist(), plan.decode.tolist()
        self.engines = [Engine(replica.kv_blocks) for replica in problem.replicas]
        count, turns = self.work.num_conversations, self.work.num_turns
        self.turn = [self.work.turns(c)[0] for c in range(count)]
        self.context, self.todo, self.left = [0] * count, [0] * count, [0] * count
        self.first_token_s, self.end_s = [math.nan] * turns, [math.nan] * turns
        self.held = [False] * count
        self.events = [(float(r), c, "first") for c, r in enumerate(self.work.arrival_s)]
        for c in range(count):
            self.todo[c] = int(self.work.new_tokens[self.turn[c]])

    def run(self) -> None:
        while True:
            first = min([e[0] for e in self.events] + [engine.until_s for engine in self.engines], default=math.inf)
            if first == math.inf:
                return
            now = first
            for index, engine in enumerate(self.engines):
                if engine.until_s <= first + MOMENT_S:
                    now = max(now, engine.until_s)
                    self.finish(index, engine, engine.until_s)
            while True:
                due = [e for e in self.events if e[0] <= first + MOMENT_S]
                self.events = [e for e in self.events if e not in due]
                now = max([now] + [e[0] for e in due])
                for _, c, kind in sorted(due, key=lambda e: e[1]):
                    self.happen(c, kind)
                for index, engine in enumerate(self.engines):
                    self.admit(index, engine, now)
                if not any(e[0] <= first + MOMENT_S for e in self.events):
                    break
            for index, engine in enumerate(self.engines):
                if engine.until_s == math.inf:
                    self.start(index, engine, now)

    def happen(self, c: int, kind: str) -> None:
        if kind == "first" and self.p[c] != self.d[c]:
            self.engines[self.p[c]].jobs.append(c)
        elif kind in ("first", "ready"):
            self.engines[self.d[c]].waiting.append(c)
        elif kind == "moved":
            self.engines[self.d[c]].joining.append(c)
        else:
            self.engines[self.d[c]].jobs.append(c)

    def admit(self, index: int, engine: Engine, now: float) -> None:
        while engine.waiting and self.problem.blocks[engine.waiting[0]] <= engine.free:
            c = engine.waiting.pop(0)
            engine.free -= int(self.problem.blocks[c])
            self.held[c] = True
            if self.p[c] == index:
                engine.jobs.append(c)
                continue
            link = self.problem.link_of[self.p[c], index]
            moved = (
                now + link.latency_s + self.problem.kv_bytes_per_token * int(self.work.first_turn_tokens[c]) / link.bytes_per_s
            )
            if self.left[c] > 0:
                self.events.append((moved, c, "moved"))
            else:
                ended = self.end_s[self.turn[c]]
                self.next_turn(c)
                self.events.append((max(moved, ended + float(self.work.gap_s[self.turn[c]])), c, "later"))

    def start(self, index: int, engine: Engine, now: float) -> None:
        engine.residents += engine.joining
        engine.joining = []
        if not engine.jobs and not engine.residents:
            return
        law = self.problem.replicas[index].coefficients
        kv, pairs, context = sum(self.context[c] for c in engine.residents), 0.0, 0
        engine.chunk = 0
        if engine.jobs:
            job = engine.jobs[0]
            engine.chunk = min(self.problem.chunks[index], self.todo[job])
            context = self.context[job]
            pairs = engine.chunk * (context + engine.chunk / 2)
        tokens, sequences = engine.chunk + len(engine.residents), len(engine.residents) + bool(engine.jobs)
        engine.until_s = now + float(law.step_s(tokens, pairs, kv, sequences, 0.0, context))
        engine.energy_j += float(law.energy_j(tokens, pairs, kv, sequences, 0.0, context))

    def finish(self, index: int, engine: Engine, now: float) -> None:
        engine.until_s = math.inf
        for c in list(engine.residents):
            self.context[c] += 1
            self.left[c] -= 1
            if self.left[c] == 0:
                engine.residents.remove(c)
                self.end_turn(c, now)
        if not engine.chunk:
            return
        c = engine.jobs[0]
        self.context[c] += engine.chunk
        self.todo[c] -= engine.chunk
        if self.todo[c]:
            return
        engine.jobs.pop(0)
        turn = self.turn[c]
        self.first_token_s[turn] = now
        self.left[c] = int(self.work.output_tokens[turn]) - 1
        turns = self.work.turns(c)
        moves = turn == turns[0] and self.d[c] != index and (len(turns) > 1 or self.left[c] > 0)
        if moves:
            if self.left[c] == 0:
                self.end_s[turn] = now
            self.events.append((now, c, "ready"))
        elif self.left[c] > 0:
            engine.residents.append(c)
        else:
            self.end_turn(c, now)

    def next_turn(self, c: int) -> None:
        self.turn[c] += 1
        self.todo[c] = int(self.work.new_tokens[self.turn[c]]) + 1

    def end_turn(self, c: int, now: float) -> None:
        self.end_s[self.turn[c]] = now
        if self.turn[c] != self.work.turns(c)[-1]:
            self.next_turn(c)
            self.events.append((now + float(self.work.gap_s[self.turn[c]]), c, "later"))
        elif self.held[c]:
            self.engines[self.d[c]].free += int(self.problem.blocks[c])

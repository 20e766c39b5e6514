"""Placement problems as files: ``{"schema": "optsched/placement-problem", "version": 1, ...}``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from optsched import files
from optsched.domain.frozen import Frozen
from optsched.domain.plan import PlanLink, PlanReplica, PlanSlo, Status
from optsched.domain.workload import Workload
from optsched.errors import OptschedError, SpecError
from optsched.placement.problem import Goal, PlacementPlan, PlacementProblem

KIND = "placement-problem"


class ConversationRecord(Frozen):
    """One conversation: its arrival, and per turn the appended tokens, the output tokens and the gap before it."""

    arrival_s: float = Field(ge=0)
    new_tokens: tuple[int, ...] = Field(min_length=1)
    output_tokens: tuple[int, ...]
    gap_s: tuple[float, ...] = ()


class BestKnown(Frozen):
    """The best placement known, by replica indices, with its value and bound."""

    value: float
    bound: float
    status: Status
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    found_by: str

    @property
    def plan(self) -> PlacementPlan:
        """The placement."""
        return PlacementPlan.of(self.prefill, self.decode)


class ProblemRecord(Frozen):
    """A whole problem file; the fields are those of `PlacementProblem`."""

    title: str = ""
    objective: Goal
    kv_bytes_per_token: float = Field(ge=0)
    block_tokens: int = Field(default=16, gt=0)
    max_batched_tokens: int = Field(default=2048, gt=0)
    conversations: tuple[ConversationRecord, ...] = Field(min_length=1)
    replicas: tuple[PlanReplica, ...] = Field(min_length=1)
    links: tuple[PlanLink, ...] = ()
    slo: PlanSlo | None = None
    best_known: BestKnown | None = None

    def problem(self) -> PlacementProblem:
        """Return the problem.

        Raises
        ------
        SpecError
            If a conversation's lists differ in length, or arrivals are not sorted.
        ProblemError
            If the data contradict each other.
        """
        for number, conversation in enumerate(self.conversations):
            turns = len(conversation.new_tokens)
            if len(conversation.output_tokens) != turns or len(conversation.gap_s) not in (0, turns):
                raise SpecError(
                    f"{turns} new_tokens, {len(conversation.output_tokens)} output_tokens, {len(conversation.gap_s)} gap_s; "
                    "give one of each per turn (gap_s may be left out)",
                    field=f"conversations.{number}",
                )
        turns_of = [len(conversation.new_tokens) for conversation in self.conversations]
        gaps = [conversation.gap_s or (0.0,) * len(conversation.new_tokens) for conversation in self.conversations]
        workload = Workload(
            conversation_id=np.arange(len(turns_of), dtype=np.int64),
            arrival_s=np.array([conversation.arrival_s for conversation in self.conversations], dtype=np.float64),
            first_turn=np.concatenate([[0], np.cumsum(turns_of)]).astype(np.int64),
            new_tokens=np.concatenate([conversation.new_tokens for conversation in self.conversations]).astype(np.int64),
            output_tokens=np.concatenate([conversation.output_tokens for conversation in self.conversations]).astype(np.int64),
            gap_s=np.concatenate(gaps).astype(np.float64),
        )
        return PlacementProblem(
            workload=workload,
            replicas=self.replicas,
            links=self.links,
            kv_bytes_per_token=self.kv_bytes_per_token,
            objective=self.objective,
            block_tokens=self.block_tokens,
            max_batched_tokens=self.max_batched_tokens,
            slo=self.slo,
        )


def record_of(problem: PlacementProblem, *, title: str = "", best_known: BestKnown | None = None) -> ProblemRecord:
    """Return a problem as a record that can be written."""
    workload = problem.workload
    return ProblemRecord(
        title=title,
        objective=problem.objective,
        kv_bytes_per_token=problem.kv_bytes_per_token,
        block_tokens=problem.block_tokens,
        max_batched_tokens=problem.max_batched_tokens,
        conversations=tuple(
            ConversationRecord(
                arrival_s=float(workload.arrival_s[c]),
                new_tokens=tuple(workload.new_tokens[turns.start : turns.stop].tolist()),
                output_tokens=tuple(workload.output_tokens[turns.start : turns.stop].tolist()),
                gap_s=tuple(workload.gap_s[turns.start : turns.stop].tolist()),
            )
            for c, turns in enumerate(workload)
        ),
        replicas=problem.replicas,
        links=problem.links,
        slo=problem.slo,
        best_known=best_known,
    )


def read_problem(path: Path | str) -> ProblemRecord:
    """Read a problem file.

    Raises
    ------
    SpecError
        If anything about the file is wrong; the message names it.
    """
    record = files.load(ProblemRecord, KIND, path)
    try:
        record.problem()
    except SpecError as error:
        raise SpecError(error.reason, file=path, field=error.field) from error
    except OptschedError as error:
        raise SpecError(str(error), file=path) from error
    return record


def write_problem(record: ProblemRecord, path: Path | str) -> None:
    """Write a problem file, whole or not at all."""
    files.save(record, KIND, path)

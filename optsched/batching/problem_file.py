"""Batch problems as JSON files of schema ``optsched/batch-problem``."""

from __future__ import annotations

from pathlib import Path

from optsched.batching.problem import BatchProblem
from optsched.domain.frozen import Frozen
from optsched.errors import ProblemError, SpecError
from optsched.files import load

KIND = "batch-problem"


class BatchProblemFile(Frozen):
    """The file's fields; see `optsched.batching.problem.BatchProblem`."""

    pending_s: tuple[float, ...]
    kv_blocks: tuple[int, ...]
    hidden_blocks: tuple[int, ...]
    hidden_penalty_s: tuple[float, ...]
    memory_blocks: int
    tokens: tuple[int, ...] | None = None
    token_budget: int | None = None
    max_sequences: int | None = None

    def problem(self) -> BatchProblem:
        """Return the problem.

        Raises
        ------
        ProblemError
            If the fields contradict each other.
        """
        return BatchProblem(
            pending_s=self.pending_s,
            kv_blocks=self.kv_blocks,
            hidden_blocks=self.hidden_blocks,
            hidden_penalty_s=self.hidden_penalty_s,
            memory_blocks=self.memory_blocks,
            tokens=self.tokens,
            token_budget=self.token_budget,
            max_sequences=self.max_sequences,
        )


def read_problem(path: Path | str) -> BatchProblem:
    """Read a batch problem.

    Raises
    ------
    SpecError
        If the file is unreadable, of another schema, or its problem contradicts itself.
    """
    record = load(BatchProblemFile, KIND, path)
    try:
        return record.problem()
    except ProblemError as error:
        raise SpecError(str(error), file=path) from error

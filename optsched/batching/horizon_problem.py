"""Requests over some iterations, and the referee of what is chosen for them; see `optsched.batching.horizon`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8, Int64

from optsched.batching.problem import SKIP, TAKE_HIDDEN
from optsched.errors import ProblemError

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class HorizonProblem:
    """Requests over some iterations of equal length.

    Parameters
    ----------
    release
        Iteration from which a request may be served.
    context_tokens, output_tokens
        Tokens cached before its first step, and tokens to compute, one per step.
    first_within, next_within
        Iterations within which its first token is on time after release, and each further one after the one before was due.
    memory_blocks, iterations
        M and the number of iterations.
    hidden_ratio
        Size of hidden cache relative to KV cache.
    hidden_cost
        What a step as hidden cache costs the others, per KV block, in tokens on time.
    block_tokens
        Tokens per block.

    Raises
    ------
    ProblemError
        If lengths differ or a number is negative.
    """

    release: Int64[Array, " n"]
    context_tokens: Int64[Array, " n"]
    output_tokens: Int64[Array, " n"]
    first_within: Int64[Array, " n"]
    next_within: Int64[Array, " n"]
    memory_blocks: int
    iterations: int
    hidden_ratio: float = 0.5
    hidden_cost: float = 0.0
    block_tokens: int = 16

    def __post_init__(self) -> None:
        arrays = (self.release, self.context_tokens, self.output_tokens, self.first_within, self.next_within)
        if len({len(values) for values in arrays}) > 1:
            raise ProblemError(f"The arrays have {[len(values) for values in arrays]} entries; there must be one per request.")
        smallest = min([int(values.min(initial=0)) for values in arrays] + [self.memory_blocks, self.iterations])
        if smallest < 0 or self.hidden_cost < 0 or self.hidden_ratio < 0 or self.block_tokens < 1:
            raise ProblemError(
                f"A horizon has a negative number, {min(smallest, self.hidden_cost, self.hidden_ratio):g}; "
                "none may be. Correct it."
            )

    def blocks(self, request: int, done: int) -> tuple[int, int]:
        """Return KV and hidden blocks of a request that computes one more token after `done`."""
        kv = -(-(int(self.context_tokens[request]) + done + 1) // self.block_tokens)
        return kv, int(np.ceil(self.hidden_ratio * kv))

    def due(self, request: int, done: int) -> int:
        """Return the last iteration in which the token after `done` is on time."""
        return int(self.release[request] + self.first_within[request] + done * self.next_within[request]) - 1


def replay(problem: HorizonProblem, choice: Int8[Array, "k n"]) -> float:
    """Referee a plan: return its value, tokens on time less the cost of hidden steps.

    Raises
    ------
    ProblemError
        If it serves a request before its release or after its end, or over-commits the memory.
    """
    done, value = [0] * len(problem.release), 0.0
    for iteration in range(problem.iterations):
        used = 0
        for request, chosen in enumerate(choice[iteration].tolist()):
            if chosen == SKIP:
                continue
            if iteration < problem.release[request] or done[request] >= problem.output_tokens[request]:
                raise ProblemError(f"Request {request} is served in iteration {iteration}, outside of its life.")
            kv, hidden = problem.blocks(request, done[request])
            used += hidden if chosen == TAKE_HIDDEN else kv
            value += float(iteration <= problem.due(request, done[request]))
            value -= problem.hidden_cost * kv if chosen == TAKE_HIDDEN else 0.0
            done[request] += 1
        if used > problem.memory_blocks:
            raise ProblemError(f"Iteration {iteration} takes {used} blocks; there are {problem.memory_blocks}.")
    return value

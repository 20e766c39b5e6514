"""Families of batch problems drawn from a few parameters and a seed: what the instances and benchmarks are made of.

The four families are moments of a serving engine: *early*: it has just started, everyone has waited for little;
*overload*: most requests have missed their targets and are worth next to nothing; *bursty*: requests arrived in a few
waves; *agentic*: contexts of thousands of tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from optsched.batching.problem import BatchProblem
from optsched.domain.frozen import Frozen
from optsched.errors import ProblemError
from optsched.files import load

Array = np.ndarray
Family = Literal["early", "overload", "bursty", "agentic"]
Attention = Literal["mha", "gqa"]

BLOCK_TOKENS = 16
LONGEST_PROMPT = 2048
VIOLATOR_DENSITY_S = 1e-6  # per block: what Apt-Serve's fallback leaves of a violator's value


class BatchRecipe(Frozen):
    """Parameters of one random problem.

    Attributes
    ----------
    family
        Where pending times and contexts come from.
    requests
        n.
    memory_share
        Memory, as a share of all requests' KV blocks together.
    rho
        Hidden penalty relative to the critical one, at which hidden cache is worth as much per block as KV cache at the
        margin.
    attention
        ``mha``: hidden cache takes half the blocks of KV cache; ``gqa``: twice as many (Llama-3-8B's shape).
    rows
        Also limit tokens and sequences, about as tightly as the memory.
    seed
        Of all draws.
    """

    family: Family
    requests: int
    memory_share: float
    rho: float
    attention: Attention
    rows: bool = False
    seed: int = 0


class KnownRecipe(BatchRecipe):
    """A recipe with the best known value of its problem and a proven bound, in seconds."""

    name: str
    value_s: float
    bound_s: float


class RecipeFile(Frozen):
    """Fields of a file of schema ``optsched/batch-recipes``."""

    recipes: tuple[KnownRecipe, ...]


def read_recipes(path: Path | str) -> tuple[KnownRecipe, ...]:
    """Read recipes and the best known answers to their problems.

    Raises
    ------
    SpecError
        If the file is unreadable or of another schema.
    """
    return load(RecipeFile, "batch-recipes", path).recipes


def _pending_s(family: Family, num: int, draw: np.random.Generator) -> Float64[Array, " n"]:
    if family == "early":
        return draw.uniform(0.0, 1.5, num)
    if family == "overload":
        return draw.exponential(0.4, num)
    if family == "bursty":
        return np.abs(draw.choice(np.array([0.04, 0.4, 1.7, 4.0]), num) + draw.normal(0.0, 0.02, num))
    return draw.gamma(2.0, 0.5, num)


def generate(recipe: BatchRecipe) -> BatchProblem:
    """Draw the problem of a recipe; the same recipe gives the same problem.

    Raises
    ------
    ProblemError
        If a parameter is out of its range.
    """
    if recipe.requests < 0 or recipe.memory_share < 0 or recipe.rho < 0:
        raise ProblemError(
            f"requests is {recipe.requests}, memory_share {recipe.memory_share:g}, rho {recipe.rho:g}; none may be negative. "
            "Correct the recipe."
        )
    num, draw = recipe.requests, np.random.default_rng(recipe.seed)
    middle, spread, longest = (5.0, 1.0, 4096) if recipe.family == "agentic" else (2.5, 0.8, 256)
    kv = np.clip(draw.lognormal(middle, spread, num), 1, longest).astype(np.int64)
    pending = _pending_s(recipe.family, num, draw)
    if recipe.family == "overload":
        pending = np.where(draw.random(num) < 0.6, VIOLATOR_DENSITY_S * kv, pending)
    memory = int(kv.sum() * recipe.memory_share)
    penalty = recipe.rho * _critical_s(pending, kv, memory) * kv
    hidden = -(-kv // 2) if recipe.attention == "mha" else 2 * kv
    if not recipe.rows:
        return BatchProblem(pending, kv, hidden, penalty, memory)
    tokens = np.minimum(BLOCK_TOKENS * kv - draw.integers(0, BLOCK_TOKENS, num), LONGEST_PROMPT)
    budget = int(tokens.sum() * recipe.memory_share * draw.uniform(0.8, 1.2))
    sequences = int(num * recipe.memory_share * draw.uniform(0.8, 1.3))
    return BatchProblem(pending, kv, hidden, penalty, memory, tokens, budget, sequences)


def _critical_s(pending: Float64[Array, " n"], kv: Float64[Array, " n"], memory: int) -> float:
    """Return the penalty per block above which hidden cache at half the size is worth less per block, at the margin."""
    if len(kv) == 0:
        return 0.0
    density = pending / kv
    order = np.argsort(-density)
    last = int(np.searchsorted(np.cumsum(kv[order]), memory))
    return float(density[order[min(last, len(kv) - 1)]]) / 2.0

"""What is executed: the conversations, when they arrive, and which of their turns are wrongly sent away."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from optsched import catalog
from optsched.domain.workload import Workload
from optsched.traces.importers import import_trace
from optsched.traces.synthesis import synthesise

from .settings import Settings

Array = np.ndarray


@lru_cache(maxsize=4)
def read_conversations(trace: str | None, recipe: str, recipe_seed: int, conversations: int, turns: int) -> Workload:
    """Return the first conversations of a trace or of a recipe, cut to their first turns; read once."""
    found = synthesise(catalog.recipe(recipe), conversations, recipe_seed) if trace is None else import_trace(Path(trace))
    return found.head(conversations, turns)


def conversations(settings: Settings) -> Workload:
    """Return the conversations, arrivals left open."""
    return read_conversations(settings.trace, settings.recipe, settings.recipe_seed, settings.conversations, settings.turns)


def arrivals(settings: Settings, rate_per_s: float, seed: int) -> Float64[Array, " C"]:
    """Return Poisson arrivals as the artifact's client draws them: the first at 0, gaps of ``Random(seed).expovariate``."""
    generator = random.Random(seed)
    gaps = [generator.expovariate(rate_per_s) for _ in range(settings.conversations - 1)]
    return np.concatenate([[0.0], np.cumsum(gaps)])


def wrong_turns(settings: Settings, workload: Workload, share: float) -> Bool[Array, " T"]:
    """Return the later turns that are wrongly sent away, drawn in the artifact's order and with its generator and seed."""
    generator = random.Random(settings.wrong_seed)
    later = workload.turn_in_conversation > 0
    wrong = np.zeros(workload.num_turns, bool)
    wrong[later] = [generator.random() < share for _ in range(int(later.sum()))]
    return wrong

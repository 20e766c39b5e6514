"""Families of placement problems drawn from a few parameters and a seed: what the instances and benchmarks are made of.

The families: *agents*: long first prompts, short turns without gaps (the shape of ConServe's SWE-bench conversations, arXiv
2606.01839); *tools*: thousands of tokens of tool output per turn, with gaps of seconds; *chat*: short prompts, long answers,
gaps while a person reads; *bursts*: agents that arrive in waves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from optsched.domain.frozen import Frozen
from optsched.domain.plan import PlanLink, PlanReplica, PlanSlo, Standalone, Status
from optsched.domain.scenario import LatencyTarget, Role
from optsched.domain.step_law import StepLaw
from optsched.domain.workload import Workload
from optsched.errors import UnknownNameError
from optsched.files import load
from optsched.placement.problem import Goal, PlacementProblem

Array = np.ndarray
Family = Literal["agents", "tools", "chat", "bursts"]
WAVES = 4
"""Conversations of a wave in the family `bursts`."""


class Tier(Frozen):
    """A GPU under a cap as an instance fixes it: what the catalog said once, so that best-known values stay true."""

    gpu: str
    power_cap_w: float
    kv_blocks: int
    usd_per_hour: float
    coefficients: StepLaw


class FleetPart(Frozen):
    """Some replicas of one tier and role."""

    tier: str
    role: Role
    count: int = Field(gt=0)


class PlacementRecipe(Frozen):
    """Parameters of one random problem, and what is known of it.

    Attributes
    ----------
    name
        Of the instance.
    family, conversations, rate_per_s, seed
        The workload.
    fleet
        Replicas.
    links
        Whether caches may move between replicas that do not have to: prefillers are joined to decoders always.
    objective, slo_factor
        What is minimised; targets for TTFET and last-turn TBT as factors of the standalone latency on the first tier.
    value, bound, status
        Best known value, and the best proven bound; None where only the generator is shipped.
    """

    name: str
    family: Family
    conversations: int = Field(gt=0)
    rate_per_s: float = Field(gt=0)
    fleet: tuple[FleetPart, ...] = Field(min_length=1)
    links: bool = False
    objective: Goal = "ttfet"
    slo_factor: float = 5.0
    seed: int = 0
    value: float | None = None
    bound: float | None = None
    status: Status = "FEASIBLE"


class PlacementRecipes(Frozen):
    """A file of recipes: the tiers and links that they share."""

    tiers: dict[str, Tier]
    kv_bytes_per_token: float
    link_latency_s: float
    link_bytes_per_s: float
    link_joules_per_byte: float
    max_batched_tokens: int
    recipes: tuple[PlacementRecipe, ...]


def read_recipes(path: Path | str) -> PlacementRecipes:
    """Read a file of recipes.

    Raises
    ------
    SpecError
        If anything about the file is wrong; the message names it.
    """
    return load(PlacementRecipes, "placement-recipes", path)


def generate(recipe: PlacementRecipe, shared: PlacementRecipes) -> PlacementProblem:
    """Draw the problem of a recipe.

    Raises
    ------
    UnknownNameError
        If its fleet names a tier that is not there.
    """
    replicas: list[PlanReplica] = []
    for part in recipe.fleet:
        if part.tier not in shared.tiers:
            raise UnknownNameError("tier", part.tier, tuple(shared.tiers))
        tier = shared.tiers[part.tier]
        replicas += [
            PlanReplica(
                id=f"{part.role}-{part.tier}-{len(replicas) + k}", llm="recipe", gpu=tier.gpu, power_cap_w=tier.power_cap_w,
                role=part.role, kv_blocks=tier.kv_blocks, coefficients=tier.coefficients, origin="assumed",
                usd_per_hour=tier.usd_per_hour,
            )
            for k in range(part.count)
        ]  # fmt: skip
    reference = shared.tiers[recipe.fleet[0].tier]
    target = LatencyTarget(standalone_factor=recipe.slo_factor)
    slo = PlanSlo(
        ttfet=target, tbt=target,
        standalone=Standalone(
            gpu=reference.gpu, power_cap_w=reference.power_cap_w, max_batched_tokens=shared.max_batched_tokens,
            coefficients=reference.coefficients,
        ),
    )  # fmt: skip
    return PlacementProblem(
        workload=draw_workload(recipe), replicas=tuple(replicas), links=_links(recipe, shared, replicas),
        kv_bytes_per_token=shared.kv_bytes_per_token, objective=recipe.objective, max_batched_tokens=shared.max_batched_tokens,
        slo=slo,
    )  # fmt: skip


def _links(recipe: PlacementRecipe, shared: PlacementRecipes, replicas: list[PlanReplica]) -> tuple[PlanLink, ...]:
    def joined(a: PlanReplica, b: PlanReplica) -> bool:
        needed = a.role == "prefill" or b.role == "decode"
        return a.id != b.id and a.role != "decode" and b.role != "prefill" and (recipe.links or needed)

    return tuple(
        PlanLink(
            source=a.id, target=b.id, latency_s=shared.link_latency_s, bytes_per_s=shared.link_bytes_per_s,
            joules_per_byte=shared.link_joules_per_byte,
        )
        for a in replicas
        for b in replicas
        if joined(a, b)
    )  # fmt: skip


def _arrivals(recipe: PlacementRecipe, generator: np.random.Generator) -> Float64[Array, " C"]:
    count = recipe.conversations
    if recipe.family != "bursts":
        return np.asarray(np.cumsum(generator.exponential(1 / recipe.rate_per_s, count)))
    waves = np.cumsum(generator.exponential(WAVES / recipe.rate_per_s, -(-count // WAVES)))
    return np.asarray(np.sort(np.repeat(waves, WAVES)[:count] + generator.uniform(0, 0.2, count)))


def draw_workload(recipe: PlacementRecipe) -> Workload:
    """Draw the conversations of a recipe: lengths log-normal, gaps exponential."""
    generator = np.random.default_rng(recipe.seed)
    count = recipe.conversations
    arrival_s = _arrivals(recipe, generator)
    typical: dict[Family, tuple[int, int, float, float, float, float]] = {
        # fewest and most turns, first prompt, appended, output, mean gap
        "agents": (5, 5, 14_000, 67, 110, 0.0), "tools": (3, 8, 6_000, 3_000, 150, 4.0),
        "chat": (1, 5, 600, 80, 350, 8.0), "bursts": (5, 5, 14_000, 67, 110, 0.0),
    }  # fmt: skip
    fewest, most, prompt, appended, output, gap = typical[recipe.family]
    turns = generator.integers(fewest, most + 1, count)
    first_turn = np.concatenate([[0], np.cumsum(turns)]).astype(np.int64)
    is_first = np.zeros(first_turn[-1], bool)
    is_first[first_turn[:-1]] = True

    def lengths(mean: Float64[Array, " T"], spread: float) -> Float64[Array, " T"]:
        return np.asarray(mean * generator.lognormal(-spread * spread / 2, spread, len(mean)))

    new = np.where(is_first, lengths(np.full(len(is_first), prompt), 0.3), lengths(np.full(len(is_first), appended), 0.6))
    # a few conversations answer at great length: they are what a placement cannot see coming
    lengthy = np.repeat(np.where(generator.random(count) < 0.1, 4.0, 1.0), turns)
    return Workload(
        conversation_id=np.arange(count, dtype=np.int64), arrival_s=arrival_s, first_turn=first_turn,
        new_tokens=np.clip(new, 1, 30_000).astype(np.int64),
        output_tokens=np.clip(lengths(output * lengthy, 0.6), 1, 4_000).astype(np.int64),
        gap_s=np.where(is_first, 0.0, generator.exponential(gap, len(is_first)) if gap else 0.0),
    )  # fmt: skip

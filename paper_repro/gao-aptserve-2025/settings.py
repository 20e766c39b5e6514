"""Read ``config.toml`` and ``expected.toml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from optsched.domain.frozen import Frozen

from ..checks import Claim, read_expected, read_settings

HERE = Path(__file__).resolve().parent


class EngineSettings(Frozen):
    """The engine that every replica runs; ``overheads`` names one of the gpu's engines."""

    gpu: str
    overheads: str | None = None
    block_tokens: int
    max_batched_tokens: int
    max_sequences: int
    watermark: float
    qkv_flops_per_s: float


class Fit(Frozen):
    """What the time between steps is fitted to, and on which seeds."""

    llm: str
    workload: str
    rate_per_s: float
    attainment: float
    seeds: tuple[int, ...]
    largest_s: float


class Fitted(Frozen):
    """The fitted constant."""

    step_overhead_s: float = Field(ge=0)


class Variant(Frozen):
    """A policy as it takes part: its parameters, where its rho comes from, and whether it knows the targets."""

    policy: str
    rho: Literal["physical", "code"] = "physical"
    demotion: bool = True
    parameters: dict[str, float] = {}


class Matrix(Frozen):
    """Effective throughput of every llm on every workload."""

    variants: tuple[str, ...]
    all_variants_llm: str


class Curves(Frozen):
    """Rates of the curves, as multiples of where vllm attains 90 %."""

    multiples: tuple[float, ...]


class Bursts(Frozen):
    """Coefficients of variation of the arrivals, and rates per workload."""

    cv: tuple[float, ...]
    sharegpt: tuple[float, ...]
    longbench: tuple[float, ...]
    variants: tuple[str, ...]


class SloSweep(Frozen):
    """Targets to cross with each other."""

    ttft_s: tuple[float, ...]
    tbt_s: tuple[float, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]


class LengthSweep(Frozen):
    """Recipes to compare."""

    workloads: tuple[str, ...]
    variants: tuple[str, ...]


class Tail(Frozen):
    """At which rate, and of which variants, the latencies are listed."""

    rate_per_s: float
    variants: tuple[str, ...]


class Scheduler(Frozen):
    """Candidates of the timed decisions, and repeats of each."""

    candidates: tuple[int, ...]
    repeats: int


class Grouped(Frozen):
    """Llms whose hidden cache has another size."""

    llms: tuple[str, ...]
    variants: tuple[str, ...]


class BeyondCell(Frozen):
    """An llm on a workload, and the rates at which starved requests are counted."""

    llm: str
    workload: str
    rates_per_s: tuple[float, ...]


class Beyond(Frozen):
    """Variants that are ours and not the paper's, whom they are compared with, and on which seeds."""

    seeds: tuple[int, ...] = Field(min_length=1)
    targets: tuple[float, ...]
    ours: dict[str, Variant]
    others: tuple[str, ...]
    cells: tuple[BeyondCell, ...]


class Settings(Frozen):
    """The whole of ``config.toml``."""

    requests: int = Field(gt=0)
    seeds: tuple[int, ...] = Field(min_length=1)
    shortest_tokens: int
    longest_tokens: int
    ttft_slo_s: float
    tbt_slo_s: float
    targets: tuple[float, ...]
    tolerance: float
    starved_s: float
    engine: EngineSettings
    fit: Fit
    tensor_parallel: dict[str, int]
    workloads: dict[str, str]
    variants: dict[str, Variant]
    matrix: Matrix
    curves: Curves
    points: dict[str, tuple[float, ...]]
    bursts: Bursts
    slo_sweep: SloSweep
    length_sweep: LengthSweep
    tail: Tail
    scheduler: Scheduler
    grouped: Grouped
    beyond: Beyond
    frozen: Fitted | None = None


class Expected(Frozen):
    """The whole of ``expected.toml``."""

    claims: tuple[Claim, ...] = Field(alias="claim")


def settings(smoke: bool = False) -> Settings:
    """Return the configuration, or its cut for a smoke run.

    Raises
    ------
    SpecError
        If the file is wrong.
    """
    return read_settings(Settings, HERE / "config.toml", smoke, whole=("tensor_parallel",))


def facts(settings: Settings) -> dict[str, float | Sequence[int]]:
    """Return what the figures depend on, for the stamp."""
    return {"seeds": list(settings.seeds), "requests": settings.requests}


def expected() -> Expected:
    """Return the claims.

    Raises
    ------
    SpecError
        If the file is wrong.
    """
    return read_expected(Expected, HERE / "expected.toml")

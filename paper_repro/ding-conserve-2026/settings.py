"""Read ``config.toml`` and ``expected.toml``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from optsched import files
from optsched.domain.frozen import Frozen
from optsched.errors import SpecError

from ..checks import Claim, read_expected, read_settings

HERE = Path(__file__).resolve().parent
TRACE = Path("conserve") / "trace_profile_summary.csv"


class Points(Frozen):
    """Which of the artifact's microbenchmarks the step law is fitted to, and what is taken from its own fits."""

    prompts: tuple[int, int]
    kv_tokens: tuple[int, int]
    sequence_s: float
    floor_s: float
    alone_s: float
    capped_decode: float


class Law(Frozen):
    """A fitted step law, in seconds per chunk, token, pair of prefill attention and cached token that a decode reads; by cap."""

    chunk_s: float
    token_s: dict[str, float]
    pair_s: dict[str, float]
    kv_s: dict[str, float]


class Power(Frozen):
    """Factors on the packaged energy of decoding, by cap; and the cells they are fitted to, in context tokens per joule."""

    factor: dict[str, float]
    fitted_to: dict[str, float] = {}


class Pause(Frozen):
    """The artifact's model of a turn that is wrongly sent to the prefiller (``per_turn_cost_model.py``)."""

    compound_tokens: int
    short_transfer_s: float
    short_transfer_tokens: int
    transfer_s: float
    transfer_token_s: float
    short_hit_s: float
    short_hit_tokens: int
    hit_s: float
    hit_token_s: float
    side_s: float
    block_s: float
    block_tokens: int


class Sweep(Frozen):
    """Shares of wrongly placed turns, at the last rate."""

    shares: tuple[float, ...]
    seeds: tuple[int, ...]


class Settings(Frozen):
    """The whole of ``config.toml``; `trace` is the authors' trace, or None for the recipe."""

    conversations: int = Field(gt=0)
    turns: int = Field(gt=0)
    recipe: str
    recipe_seed: int
    scenario: str
    rates_per_s: tuple[float, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    wrong_seed: int
    wrong_share: float
    error: float
    caps: tuple[tuple[int, int], ...]
    passes: int
    slo_factor: float
    sweep: Sweep
    points: Points
    pause: Pause
    law: Law
    power: Power
    trace: str | None = None


class Table(Frozen):
    """A published curve or table: a row of figures per condition, with one tolerance.

    Attributes
    ----------
    metric
        Column of the table ``cells`` (or ``sweep``), which the checks are named after.
    at
        What the columns of `rows` are: rates, shares or metrics.
    relative, absolute
        Half width of the limits, as a share of the published figure and in its unit; both together widen.
    factor
        Instead, the factor between the published figure and either limit.
    fitted
        Names of checks that the energy was fitted to.
    """

    id: str
    says: str
    source: str
    metric: str = ""
    at: tuple[float | str, ...]
    relative: float = 0.0
    absolute: float = 0.0
    factor: float | None = None
    rows: dict[str, tuple[float, ...]]
    fitted: tuple[str, ...] = ()


class Expected(Frozen):
    """The whole of ``expected.toml``."""

    claims: tuple[Claim, ...] = Field(default=(), alias="claim")
    tables: tuple[Table, ...] = Field(default=(), alias="table")


def settings(smoke: bool = False, trace: Path | None = None) -> Settings:
    """Return the configuration, or its cut for a smoke run.

    The trace is the one given, or ``conserve/trace_profile_summary.csv`` in the folder that ``OPTSCHED_DATA`` names, if it is
    there; a smoke run takes the recipe unless a trace is given.

    Raises
    ------
    SpecError
        If the file is wrong, or the trace is not there.
    """
    folder = os.environ.get("OPTSCHED_DATA")
    if trace is None and folder and not smoke:
        trace = Path(folder) / TRACE
    if trace is not None and not trace.is_file():
        raise SpecError("no such file; put the trace there, or unset OPTSCHED_DATA to use the recipe", file=trace)
    return read_settings(Settings, HERE / "config.toml", smoke, more={} if trace is None else {"trace": str(trace)})


def facts(settings: Settings) -> dict[str, str | float | Sequence[int] | None]:
    """Return what the figures depend on, for the stamp."""
    return {
        "source": settings.recipe if settings.trace is None else Path(settings.trace).name,
        "source_sha256": None if settings.trace is None else files.sha256_of(Path(settings.trace)),
        "seeds": list(settings.seeds),
        "conversations": settings.conversations,
    }


def notes(settings: Settings) -> tuple[str, ...]:
    """Return what a reader of the figures must know about this run."""
    if settings.trace is not None:
        return ()
    return (
        f"The authors' trace is not there (--trace, OPTSCHED_DATA): lengths are drawn from recipe {settings.recipe!r} instead.",
    )


def expected() -> Expected:
    """Return the claims.

    Raises
    ------
    SpecError
        If the file is wrong.
    """
    return read_expected(Expected, HERE / "expected.toml")

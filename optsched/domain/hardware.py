"""GPUs, tiers (a gpu at a power cap) and links; datasheet facts apart from fitted coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from optsched.domain.frozen import Frozen
from optsched.domain.step_law import StepLaw
from optsched.errors import SpecError
from optsched.units import Bytes, BytesPerSecond, FlopsPerSecond, Seconds, Watts

Dtype = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4"]
Origin = Literal["assumed", "fitted"]

DTYPE_BYTES: dict[str, float] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5}


class Datasheet(Frozen):
    """What the vendor publishes; every number has its source in `sources`.

    Attributes
    ----------
    memory_bytes
        Device memory.
    memory_bytes_per_s
        Peak memory bandwidth.
    flops_per_s
        Peak dense (not sparse) rate by data type; integer types count operations.
    power_w
        Board power limit (TDP).
    interconnect
        Name of the link in ``models/links`` between GPUs of one node.
    sources
        Source by field name; ``default`` covers the fields that are not named.
    """

    memory_bytes: Bytes = Field(alias="memory")
    memory_bytes_per_s: BytesPerSecond = Field(alias="memory_bandwidth")
    flops_per_s: dict[Dtype, FlopsPerSecond] = Field(alias="flops", min_length=1)
    power_w: Watts = Field(alias="power")
    interconnect: str
    gpus_per_node: int = Field(default=8, gt=0)
    sources: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_number_is_sourced(self) -> Self:
        missing = {"memory", "memory_bandwidth", "flops", "power"} - set(self.sources)
        if missing and "default" not in self.sources:
            raise ValueError(f"sources: {', '.join(sorted(missing))} without a source; add it, or a 'default' source")
        return self


class Price(Frozen):
    """What an hour of one GPU costs, with the day and place it was read."""

    usd_per_hour: float = Field(ge=0)
    source: str


class Efficiency(Frozen):
    """Coefficients that turn datasheet peaks into achieved rates; assumed until fitted on measurements.

    Attributes
    ----------
    compute
        Share of the peak FLOP rate that a large matrix product reaches.
    attention
        Share of the peak FLOP rate that prefill attention reaches.
    memory
        Share of the peak memory bandwidth that large reads reach.
    half_rate_tokens
        Rows M of a matrix product at which half of `compute` is reached: ``M / (M + half_rate_tokens)``.
    layer_overhead_s
        Launch and synchronisation time per transformer layer.
    step_overhead_s
        Time between two steps: scheduling, sampling, detokenisation.
    sequence_overhead_s
        Time per sequence in a step (sampling, bookkeeping).
    idle_w
        Power of the idle card with a loaded model.
    dynamic_memory_share
        Dynamic power at full memory bandwidth over dynamic power at full compute.
    cap_exponent
        Clock under a power cap is ``((cap - idle) / (power - idle)) ** (1 / cap_exponent)``.
    reserve_bytes
        Device memory that is neither weights nor cache (context, graphs, workspace).
    """

    origin: Origin = "assumed"
    source: str
    compute: float = Field(default=0.7, gt=0, le=1)
    attention: float = Field(default=0.4, gt=0, le=1)
    memory: float = Field(default=0.8, gt=0, le=1)
    half_rate_tokens: float = Field(default=64.0, ge=0)
    layer_overhead_s: Seconds = 20e-6
    step_overhead_s: Seconds = 2e-3
    sequence_overhead_s: Seconds = 10e-6
    idle_w: Watts
    dynamic_memory_share: float = Field(default=0.83, ge=0, le=1)
    cap_exponent: float = Field(default=3.0, ge=1)
    reserve_bytes: Bytes = Field(default=1.5e9, alias="reserve")


class FittedStepLaw(Frozen):
    """A step law measured on this tier for one llm (today: `local-cpu`), with its origin."""

    llm: str
    tp: int = Field(default=1, gt=0)
    origin: str
    law: StepLaw


class Gpu(Frozen):
    """A kind of card: datasheet facts, price, and efficiency coefficients, each with its origin."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    title: str
    datasheet: Datasheet
    price: Price
    efficiency: Efficiency
    memory_utilisation: float = Field(default=0.9, gt=0, le=1)
    shared_host: bool = False
    step_laws: tuple[FittedStepLaw, ...] = ()

    @model_validator(mode="after")
    def _idle_below_board_power(self) -> Self:
        if self.efficiency.idle_w >= self.datasheet.power_w:
            raise ValueError(
                f"idle power {self.efficiency.idle_w:g} W must be below the board power {self.datasheet.power_w:g} W"
            )
        return self


class Link(Frozen):
    """A connection between two GPUs: ``seconds = latency_s + bytes / bytes_per_s``."""

    name: str
    title: str
    bytes_per_s: BytesPerSecond = Field(alias="bandwidth")
    latency_s: Seconds = Field(alias="latency")
    joules_per_byte: float = Field(default=0.0, ge=0)
    source: str


@dataclass(frozen=True, slots=True)
class Tier:
    """A gpu at a power cap, written ``a40@200W``."""

    gpu: Gpu
    power_cap_w: float

    def __post_init__(self) -> None:
        """Refuse a cap outside (idle power, board power]."""
        idle, board = self.gpu.efficiency.idle_w, self.gpu.datasheet.power_w
        if not idle < self.power_cap_w <= board:
            raise SpecError(
                f"power cap {self.power_cap_w:g} W of {self.gpu.name} must lie above its idle power {idle:g} W and at most "
                f"at its board power {board:g} W; choose another cap",
            )

    @property
    def name(self) -> str:
        """Return the tier's name, for example ``a40@200W``."""
        return f"{self.gpu.name}@{self.power_cap_w:g}W"

"""GPUs, tiers (a gpu at a power cap) and links; datasheet facts apart from fitted coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from optsched.domain.collective_law import CollectiveLaw
from optsched.domain.dtypes import Dtype
from optsched.domain.efficiency import Efficiency
from optsched.domain.frozen import Frozen
from optsched.domain.slowdown import Slowdown
from optsched.domain.step_law import StepLaw
from optsched.errors import SpecError
from optsched.units import Bytes, BytesPerSecond, FlopsPerSecond, Seconds, Watts


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
    cache_bytes
        Last-level cache; None: unknown. Benchmarks that repeat themselves find small weights there, which serving never does.
    sources
        Source by field name; ``default`` covers the fields that are not named.
    """

    memory_bytes: Bytes = Field(alias="memory")
    memory_bytes_per_s: BytesPerSecond = Field(alias="memory_bandwidth")
    flops_per_s: dict[Dtype, FlopsPerSecond] = Field(alias="flops", min_length=1)
    power_w: Watts = Field(alias="power")
    interconnect: str
    gpus_per_node: int = Field(default=8, gt=0)
    cache_bytes: Bytes | None = Field(default=None, alias="cache")
    sources: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_number_is_sourced(self) -> Self:
        needed = {"memory", "memory_bandwidth", "flops", "power"} | ({"cache"} if self.cache_bytes else set())
        missing = needed - set(self.sources)
        if missing and "default" not in self.sources:
            raise ValueError(f"sources: {', '.join(sorted(missing))} without a source; add it, or a 'default' source")
        return self


class Price(Frozen):
    """What an hour of one GPU costs, with the day and place it was read."""

    usd_per_hour: float = Field(ge=0)
    source: str


class FittedStepLaw(Frozen):
    """A step law measured on this tier for one llm (today: `local-cpu`), with its origin."""

    llm: str
    tp: int = Field(default=1, gt=0)
    origin: str
    law: StepLaw


class Gpu(Frozen):
    """A kind of card: datasheet facts, price, and efficiency laws, each with its origin.

    `network` names the link in ``models/links`` between GPUs of different nodes.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    title: str
    datasheet: Datasheet
    price: Price
    efficiency: Efficiency
    memory_utilisation: float = Field(default=0.9, gt=0, le=1)
    shared_host: bool = False
    network: str = "infiniband-ndr"
    step_laws: tuple[FittedStepLaw, ...] = ()

    @model_validator(mode="after")
    def _idle_below_board_power(self) -> Self:
        if self.efficiency.idle_w >= self.datasheet.power_w:
            raise ValueError(
                f"idle power {self.efficiency.idle_w:g} W must be below the board power {self.datasheet.power_w:g} W"
            )
        return self


class Link(Frozen):
    """A connection between two GPUs: ``seconds = latency_s + bytes / bytes_per_s``.

    Attributes
    ----------
    bytes_per_s, latency_s
        In one direction, as published; time of a message of no bytes.
    gpus_per_port
        GPUs of a node that share it on their way to other nodes; 1: each has its own.
    busy_slowdown
        Between workers of one shared host: factor on the time of a message while 0, 1, 2, ... of the host's replicas are in a
        step; the last entry continues.
    collectives
        How near to these numbers messages and collectives come; None: the gpu's law, or the assumed one.
    """

    name: str
    title: str
    bytes_per_s: BytesPerSecond = Field(alias="bandwidth")
    latency_s: Seconds = Field(alias="latency")
    joules_per_byte: float = Field(default=0.0, ge=0)
    gpus_per_port: int = Field(default=1, gt=0)
    busy_slowdown: Slowdown = (1.0,)
    source: str
    collectives: CollectiveLaw | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """A gpu at a power cap, written ``a40@200W``, and the serving engine on it.

    Attributes
    ----------
    gpu, power_cap_w
        The card, and its cap.
    engine
        Whose overheads a step has, by a name of `Efficiency.engines` (``eager``: without CUDA graphs); None: the default
        ones of the gpu's file.
    """

    gpu: Gpu
    power_cap_w: float
    engine: str | None = None

    def __post_init__(self) -> None:
        """Refuse a cap outside (idle power, board power], and an engine that the gpu's file does not name."""
        idle, board = self.gpu.efficiency.idle_w, self.gpu.datasheet.power_w
        if not idle < self.power_cap_w <= board:
            raise SpecError(
                f"power cap {self.power_cap_w:g} W of {self.gpu.name} must lie above its idle power {idle:g} W and at most "
                f"at its board power {board:g} W; choose another cap",
            )
        self.gpu.efficiency.overheads(self.engine)

    @property
    def name(self) -> str:
        """Return the tier's name, for example ``a40@200W``."""
        return f"{self.gpu.name}@{self.power_cap_w:g}W"

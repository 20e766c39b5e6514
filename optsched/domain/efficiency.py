"""How far a card's kernels stay below its datasheet: one law per family of operations and data type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import Field

from optsched.domain.attention_law import DecodeAttentionLaw, PrefillAttentionLaw
from optsched.domain.collective_law import CollectiveLaw
from optsched.domain.dtypes import NEAREST_DTYPES, Dtype
from optsched.domain.elementwise_law import ElementwiseLaw
from optsched.domain.experts_law import ExpertsLaw
from optsched.domain.frozen import Frozen
from optsched.domain.gemm_law import GemmLaw
from optsched.domain.overheads import Overheads
from optsched.domain.power_law import PowerLaw
from optsched.errors import UnknownNameError
from optsched.units import Bytes, Seconds, Watts

Origin = Literal["assumed", "fitted"]


LawT = TypeVar("LawT", GemmLaw, PrefillAttentionLaw, DecodeAttentionLaw, ExpertsLaw)


def nearest_law(laws: Mapping[Dtype, LawT], dtype: Dtype, default: LawT) -> LawT:
    """Return the law of a data type: its own, else that of the type with the nearest kernels, else the default."""
    for candidate in (*NEAREST_DTYPES[dtype], *laws):
        if candidate in laws:
            return laws[candidate]
    return default


class Efficiency(Frozen):
    """What turns datasheet peaks into times and watts; assumed until fitted on measurements.

    Attributes
    ----------
    origin, source
        Whether the numbers were fitted, and to what.
    sibling
        Name of the gpu whose laws stand in for the ones that this one lacks.
    gemm, prefill_attention, decode_attention, experts
        Laws by data type: of the weights, or for attention of the cache; see `gemm_law` and its like for missing ones.
    latent_prefill_attention, latent_decode_attention
        Laws of llms with latent attention (MLA), whose kernels are others; without them, as the plain ones.
    elementwise, collectives
        Laws of memory passes, and of messages over the gpu's own interconnect (None: the link's own law).
    layer_overhead_s
        Launch and synchronisation time per transformer layer: a floor under the device's work.
    step_overhead_s
        Time between two steps: scheduling, sampling, detokenisation.
    sequence_overhead_s
        Time per sequence in a step (sampling, bookkeeping).
    engines
        Overheads of named engines (``eager``: without CUDA graphs) in place of the three above.
    idle_w
        Power of the idle card with a loaded model.
    power
        Power while steps run, and the clock under a cap.
    reserve_bytes
        Device memory that is neither weights nor cache (context, graphs, workspace).
    """

    origin: Origin = "assumed"
    source: str
    sibling: str | None = None
    gemm: dict[Dtype, GemmLaw] = {}
    prefill_attention: dict[Dtype, PrefillAttentionLaw] = {}
    decode_attention: dict[Dtype, DecodeAttentionLaw] = {}
    latent_prefill_attention: dict[Dtype, PrefillAttentionLaw] = {}
    latent_decode_attention: dict[Dtype, DecodeAttentionLaw] = {}
    experts: dict[Dtype, ExpertsLaw] = {}
    elementwise: ElementwiseLaw = ElementwiseLaw()
    collectives: CollectiveLaw | None = None
    layer_overhead_s: Seconds = 20e-6
    step_overhead_s: Seconds = 2e-3
    sequence_overhead_s: Seconds = 10e-6
    engines: dict[str, Overheads] = {}
    idle_w: Watts
    power: PowerLaw = PowerLaw()
    reserve_bytes: Bytes = Field(default=1.5e9, alias="reserve")

    def overheads(self, engine: str | None = None) -> Overheads:
        """Return the overheads of an engine; None: those of the file's own three numbers.

        Raises
        ------
        UnknownNameError
            If the file names no such engine.
        """
        if engine is None:
            return Overheads(
                source=self.source,
                layer_overhead_s=self.layer_overhead_s,
                step_overhead_s=self.step_overhead_s,
                sequence_overhead_s=self.sequence_overhead_s,
            )
        if engine not in self.engines:
            knob = "Leave the engine out for the default one, or add [efficiency.engines.NAME] to the gpu's file."
            raise UnknownNameError("engine", engine, self.engines, knob)
        return self.engines[engine]

    def gemm_law(self, dtype: Dtype) -> GemmLaw:
        """Return the law of matrix products with weights of a data type."""
        return nearest_law(self.gemm, dtype, GemmLaw())

    def prefill_attention_law(self, dtype: Dtype, *, latent: bool = False) -> PrefillAttentionLaw:
        """Return the law of prefill attention on a cache of a data type, of latent attention if asked for and known."""
        laws = self.latent_prefill_attention if latent and self.latent_prefill_attention else self.prefill_attention
        return nearest_law(laws, dtype, PrefillAttentionLaw())

    def decode_attention_law(self, dtype: Dtype, *, latent: bool = False) -> DecodeAttentionLaw:
        """Return the law of decode attention on a cache of a data type, of latent attention if asked for and known."""
        laws = self.latent_decode_attention if latent and self.latent_decode_attention else self.decode_attention
        return nearest_law(laws, dtype, DecodeAttentionLaw())

    def experts_law(self, dtype: Dtype) -> ExpertsLaw:
        """Return the law of routed experts with weights of a data type."""
        return nearest_law(self.experts, dtype, ExpertsLaw())

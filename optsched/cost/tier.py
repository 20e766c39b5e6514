"""The numbers of a tier that a step's time and energy depend on, as one differentiable module."""

from __future__ import annotations

from typing import Self

import equinox as eqx

from optsched import catalog
from optsched.cost.collectives import CollectiveParameters, Fabric
from optsched.cost.decode_attention import DecodeAttentionParameters
from optsched.cost.elementwise import ElementwiseParameters
from optsched.cost.experts import ExpertsParameters
from optsched.cost.gemm import GemmParameters
from optsched.cost.power import Limits, PowerParameters
from optsched.cost.precision import Scalar, scalar
from optsched.cost.prefill_attention import PrefillAttentionParameters
from optsched.cost.rates import activation_dtype, peak_flops_per_s
from optsched.cost.roofline import Card
from optsched.domain.collective_law import CollectiveLaw
from optsched.domain.hardware import Link, Tier
from optsched.domain.llm import Llm


class TierParameters(eqx.Module):
    """Peaks, laws, overheads, powers and links of a tier; every leaf a float64 scalar (or a stack of them).

    Attributes
    ----------
    flops_per_s, memory_bytes_per_s
        Datasheet peaks, the former at the data type of the llm's weights.
    wide_rate
        Peak at the data type of the activations over `flops_per_s`: attention computes in it.
    gemm, prefill_attention, decode_attention, experts, elementwise, collectives
        The laws of each family of operations, at the llm's data types.
    layer_overhead_s, step_overhead_s, sequence_overhead_s
        Launch time per layer (a floor under the device's work), time between steps, and time per sequence.
    prefill_layer_overhead_s, compute_rate, message_overhead_s, slow_message_bytes, slow_message_s_per_byte
        Of the engine; see `optsched.domain.overheads.Overheads`.
    idle_w, board_w, cap_w
        Power of the idle card, its board limit, and the cap of the tier.
    power
        Power while steps run, and what a cap does to the clock.
    clock
        Clock of the step at hand over the clock at the board's limit: it slows compute and leaves memory, which has a clock
        of its own. `optsched.cost.step.running` sets it from the cap and the step's load.
    link_bytes_per_s, link_latency_s, link_j_per_byte
        The link between the GPUs of one node.
    network_bytes_per_s, network_latency_s, gpus_per_port, gpus_per_node
        The link between nodes, and the GPUs of a stage that share one port to it, and a node.
    """

    flops_per_s: Scalar
    wide_rate: Scalar
    memory_bytes_per_s: Scalar
    gemm: GemmParameters
    prefill_attention: PrefillAttentionParameters
    decode_attention: DecodeAttentionParameters
    experts: ExpertsParameters
    elementwise: ElementwiseParameters
    collectives: CollectiveParameters
    layer_overhead_s: Scalar
    step_overhead_s: Scalar
    sequence_overhead_s: Scalar
    prefill_layer_overhead_s: Scalar
    compute_rate: Scalar
    message_overhead_s: Scalar
    slow_message_bytes: Scalar
    slow_message_s_per_byte: Scalar
    idle_w: Scalar
    board_w: Scalar
    cap_w: Scalar
    power: PowerParameters
    clock: Scalar
    link_bytes_per_s: Scalar
    link_latency_s: Scalar
    link_j_per_byte: Scalar
    network_bytes_per_s: Scalar
    network_latency_s: Scalar
    gpus_per_port: Scalar
    gpus_per_node: Scalar

    @classmethod
    def of(
        cls,
        tier: Tier,
        llm: Llm,
        link: Link | None = None,
        network: Link | None = None,
        tp: int = 2,
    ) -> Self:
        """Collect the parameters of a tier for an llm's data types.

        Parameters
        ----------
        tier, llm
            Where, and what.
        link
            Between the GPUs of one replica and node; None where a replica has one GPU.
        network
            Between the nodes of one replica; None where it fits a node.
        tp
            GPUs that share every layer: the group of the collectives.

        Raises
        ------
        SpecError
            If the datasheet lists no FLOP rate for the llm's data type.
        """
        sheet, achieved = tier.gpu.datasheet, tier.gpu.efficiency
        overheads = achieved.overheads(tier.engine)
        peak = peak_flops_per_s(tier, llm.dtype)
        latent = llm.mla is not None
        # A replica of one GPU sends nothing, so any positive bandwidth serves; so for one node and the network.
        near = (link.bytes_per_s, link.latency_s, link.joules_per_byte) if link else (sheet.memory_bytes_per_s, 0.0, 0.0)
        far = (network.bytes_per_s, network.latency_s) if network else near[:2]
        return cls(
            flops_per_s=scalar(peak),
            wide_rate=scalar(peak_flops_per_s(tier, activation_dtype(llm)) / peak),
            memory_bytes_per_s=scalar(sheet.memory_bytes_per_s),
            gemm=GemmParameters.of(achieved.gemm_law(llm.dtype)),
            prefill_attention=PrefillAttentionParameters.of(achieved.prefill_attention_law(llm.cache_dtype, latent=latent)),
            decode_attention=DecodeAttentionParameters.of(achieved.decode_attention_law(llm.cache_dtype, latent=latent)),
            experts=ExpertsParameters.of(achieved.experts_law(llm.dtype)),
            elementwise=ElementwiseParameters.of(achieved.elementwise),
            collectives=CollectiveParameters.of(
                collective_law(tier, link), (network and network.collectives) or CollectiveLaw(), tp, sheet.gpus_per_node
            ),
            layer_overhead_s=scalar(overheads.layer_overhead_s),
            step_overhead_s=scalar(overheads.step_overhead_s),
            sequence_overhead_s=scalar(overheads.sequence_overhead_s),
            prefill_layer_overhead_s=scalar(overheads.prefill_layer_overhead_s),
            compute_rate=scalar(overheads.compute_rate),
            message_overhead_s=scalar(overheads.message_overhead_s),
            slow_message_bytes=scalar(overheads.slow_message_bytes),
            slow_message_s_per_byte=scalar(overheads.slow_message_s_per_byte),
            idle_w=scalar(achieved.idle_w),
            board_w=scalar(sheet.power_w),
            cap_w=scalar(tier.power_cap_w),
            power=PowerParameters.of(achieved.power),
            clock=scalar(1.0),
            link_bytes_per_s=scalar(near[0]),
            link_latency_s=scalar(near[1]),
            link_j_per_byte=scalar(near[2]),
            network_bytes_per_s=scalar(far[0]),
            network_latency_s=scalar(far[1]),
            gpus_per_port=scalar(min(tp, network.gpus_per_port) if network else 1),
            gpus_per_node=scalar(sheet.gpus_per_node),
        )

    @property
    def limits(self) -> Limits:
        """Idle power, board limit and cap of one GPU."""
        return Limits(self.idle_w, self.board_w, self.cap_w)

    @property
    def card(self) -> Card:
        """The card at the data type of the weights."""
        return Card(self.flops_per_s, self.memory_bytes_per_s, self.clock * self.compute_rate)

    @property
    def wide_card(self) -> Card:
        """The card at the data type of the activations."""
        return Card(self.flops_per_s * self.wide_rate, self.memory_bytes_per_s, self.clock * self.compute_rate)

    @property
    def fabric(self) -> Fabric:
        """The links of a replica."""
        return Fabric(
            self.link_bytes_per_s, self.link_latency_s, self.network_bytes_per_s, self.network_latency_s, self.gpus_per_port,
            self.gpus_per_node,
        )  # fmt: skip

    @property
    def gemm_j_per_flop(self) -> Scalar:
        """Dynamic energy of one FLOP of a matrix product at the full clock."""
        return self.power.gemm * self.limits.board_above_idle_w / self.flops_per_s

    @property
    def attention_j_per_flop(self) -> Scalar:
        """Dynamic energy of one FLOP of attention at the full clock."""
        return self.power.attention * self.limits.board_above_idle_w / (self.flops_per_s * self.wide_rate)

    @property
    def memory_j_per_byte(self) -> Scalar:
        """Dynamic energy of one byte read or written at the full clock."""
        return self.power.memory * self.limits.board_above_idle_w / self.memory_bytes_per_s


def collective_law(tier: Tier, link: Link | None) -> CollectiveLaw:
    """Return the law of messages: the gpu's own over its own interconnect, else the link's, else the default."""
    own = tier.gpu.efficiency.collectives
    if own is not None and (link is None or link.name == tier.gpu.datasheet.interconnect):
        return own
    return (link.collectives if link else None) or CollectiveLaw()


def link_of(tier: Tier, link: Link | None, num_gpus: int) -> Link | None:
    """Return the link between a replica's GPUs: the one given, else the gpu's own interconnect; None for a single GPU.

    Raises
    ------
    UnknownNameError
        If the gpu's interconnect is in no link file.
    """
    if num_gpus == 1:
        return None
    return link or catalog.link(tier.gpu.datasheet.interconnect)


def network_of(tier: Tier, num_gpus: int) -> Link | None:
    """Return the link between the nodes of a replica; None for a replica within one node.

    Raises
    ------
    UnknownNameError
        If the gpu's network is in no link file.
    """
    return catalog.link(tier.gpu.network) if num_gpus > tier.gpu.datasheet.gpus_per_node else None

"""Messages between the GPUs of a replica, within a node and across nodes."""

from __future__ import annotations

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import LawParameters
from optsched.domain.collective_law import CollectiveLaw

SWITCH_SHARPNESS = 8.0  # engines change kernels at one size: within a factor of 1.3 of it, both count
_TICK_S = 1e-15  # keeps logarithms and roots finite where a group of one GPU sends nothing


class ExchangeParameters(LawParameters):
    """Coefficients of an `optsched.domain.collective_law.ExchangeLaw`."""

    hops: Scalar
    two_shot_hops: Scalar
    bandwidth: Scalar
    ring_hops: Scalar
    ring_ramp: Scalar
    ring_bandwidth: Scalar
    switch_bytes: Scalar


class CollectiveParameters(eqx.Module):
    """The laws of the collectives of one replica at its group sizes.

    Attributes
    ----------
    all_reduce, all_gather, reduce_scatter, all_to_all
        Among the GPUs of a group within a node.
    send
        From one GPU of a node to another.
    network_all_reduce, network_send
        Between nodes; a gather or an exchange between nodes is a number of sends.
    """

    all_reduce: ExchangeParameters
    all_gather: ExchangeParameters
    reduce_scatter: ExchangeParameters
    all_to_all: ExchangeParameters
    send: ExchangeParameters
    network_all_reduce: ExchangeParameters
    network_send: ExchangeParameters

    @classmethod
    def of(cls, link: CollectiveLaw, network: CollectiveLaw, gpus: int, gpus_per_node: int) -> Self:
        """Take the laws of a group of some GPUs from those of the link within a node and of the one between nodes."""
        within = min(gpus, gpus_per_node)
        return cls(
            all_reduce=ExchangeParameters.of(link.all_reduce.at(within)),
            all_gather=ExchangeParameters.of(link.all_gather.at(within)),
            reduce_scatter=ExchangeParameters.of(link.reduce_scatter.at(within)),
            all_to_all=ExchangeParameters.of(link.all_to_all.at(within)),
            send=ExchangeParameters.of(link.send),
            network_all_reduce=ExchangeParameters.of(network.all_reduce.at(gpus / within)),
            network_send=ExchangeParameters.of(network.send),
        )


class Fabric(eqx.Module):
    """The links of a replica: between the GPUs of a node, and between nodes.

    Attributes
    ----------
    link_bytes_per_s, link_latency_s
        Within a node.
    network_bytes_per_s, network_latency_s
        Between nodes, of one port.
    gpus_per_port
        GPUs of a node that share one port; 1 where each has its own.
    gpus_per_node
        GPUs that share a node.
    """

    link_bytes_per_s: Scalar
    link_latency_s: Scalar
    network_bytes_per_s: Scalar
    network_latency_s: Scalar
    gpus_per_port: Scalar
    gpus_per_node: Scalar


def exchange_s(
    law: ExchangeParameters,
    bytes_per_s: Scalar,
    latency_s: Scalar,
    num_bytes: Scalar,
    share: Scalar,
    one_shot_share: Scalar,
) -> Scalar:
    """Return the time of one collective on one kind of link in seconds.

    Parameters
    ----------
    law
        At the group's size.
    bytes_per_s, latency_s
        Of the link.
    num_bytes
        n, the whole vector; less than a byte counts as one.
    share
        f: each GPU sends f n bytes where every byte travels as seldom as it can.
    one_shot_share
        g >= f: what it sends if it sends everything to everybody at once; f where there is no such kernel.

    Notes
    -----
    Small messages take ``s(n) = l + t (1 - exp(-(g - f) n / (t B))) + f n / B`` with l = hops x latency, t = two-shot hops x
    latency and B = bandwidth x the link's: with growing n it turns from one exchange of everything, ``l + g n / B``, to two
    of shards, ``l + t + f n / B``. Large ones take ``r(n) = L + f n / B' + 2 ramp sqrt(L f n / B')``, a ring whose pieces are
    chosen as well as can be for the size (ramp = 1). An engine passes from the one to the other at a size N:
    ``s(min(n, N)) + w max(r(n) - s(N), 0)`` with ``w = 1 / (1 + (N / n)^8)`` and smooth minimum and maximum. That never falls
    with n, and never rises with the bandwidth or falls with the latency.
    """
    size = jnp.maximum(num_bytes, 1.0)
    weight = jax.nn.sigmoid(SWITCH_SHARPNESS * jnp.log(size / law.switch_bytes))
    # n / (1 + (n / N)^8)^(1/8), without powers that overflow.
    least = size * jnp.exp(jax.nn.log_sigmoid(-SWITCH_SHARPNESS * jnp.log(size / law.switch_bytes)) / SWITCH_SHARPNESS)
    small, most = (_small_s(law, bytes_per_s, latency_s, each, share, one_shot_share) for each in (least, law.switch_bytes))
    start_s, sending_s = law.ring_hops * latency_s + _TICK_S, share * size / (bytes_per_s * law.ring_bandwidth) + _TICK_S
    large = start_s + sending_s + 2.0 * law.ring_ramp * jnp.sqrt(start_s * sending_s)
    excess = large - most
    return small + weight * 0.5 * (excess + jnp.sqrt(excess**2 + (1e-3 * most) ** 2))


def _small_s(
    law: ExchangeParameters, bytes_per_s: Scalar, latency_s: Scalar, size: Scalar, share: Scalar, one_shot_share: Scalar
) -> Scalar:
    rate, sync_s = bytes_per_s * law.bandwidth, law.two_shot_hops * latency_s + _TICK_S
    spared = -jnp.expm1(-(one_shot_share - share) * size / (rate * sync_s))
    return law.hops * latency_s + sync_s * spared + share * size / rate + _TICK_S


def all_reduce_bytes(num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return what each GPU sends to sum `num_bytes` over all of them, the ring bound ``2 n (p - 1) / p``."""
    return 2.0 * num_bytes * (gpus - 1.0) / gpus


def all_gather_bytes(num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return what each GPU receives to hold all of `num_bytes` that were split over them."""
    return num_bytes * (gpus - 1.0) / gpus


def _levels(fabric: Fabric, gpus: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """Return how many of the GPUs share a node, how many nodes they span, and 1 where they span several, else 0."""
    within = jnp.minimum(gpus, fabric.gpus_per_node)
    nodes = gpus / within
    return within, nodes, jnp.minimum(nodes - 1.0, 1.0)


def _sharers(fabric: Fabric, within: Scalar) -> Scalar:
    """Return the GPUs of a group that share a port."""
    return jnp.minimum(within, fabric.gpus_per_port)


def _near_s(fabric: Fabric, law: ExchangeParameters, num_bytes: Scalar, share: Scalar, one_shot_share: Scalar) -> Scalar:
    return exchange_s(law, fabric.link_bytes_per_s, fabric.link_latency_s, num_bytes, share, one_shot_share)


def _far_s(fabric: Fabric, law: ExchangeParameters, num_bytes: Scalar, share: Scalar) -> Scalar:
    return exchange_s(law, fabric.network_bytes_per_s, fabric.network_latency_s, num_bytes, share, share)


def all_reduce_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time to sum `num_bytes` over p GPUs in seconds.

    Parameters
    ----------
    law, fabric
        How near to the links' numbers collectives come, and the links.
    num_bytes
        n, bytes of the summed vector; positive.
    gpus
        p; at least 2 for a meaningful time.

    Notes
    -----
    Each GPU sends ``2 n (p - 1) / p`` in a ring (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009), ``n (p - 1)``
    in one shot. Over several nodes: reduce-scatter within each, all-reduce of the shards between them, all-gather within
    each; GPUs that share a port send their shards one after another.
    """
    within, nodes, several = _levels(fabric, gpus)
    shards = num_bytes / within * _sharers(fabric, within)
    near = _near_s(fabric, law.all_reduce, num_bytes, 2.0 * (within - 1.0) / within, within - 1.0)
    return near + several * _far_s(fabric, law.network_all_reduce, shards, 2.0 * (nodes - 1.0) / nodes)


def _half_all_reduce_s(
    near: ExchangeParameters, far: ExchangeParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar
) -> Scalar:
    within, nodes, several = _levels(fabric, gpus)
    share = (within - 1.0) / within
    shards = num_bytes / within * _sharers(fabric, within)
    return _near_s(fabric, near, num_bytes, share, share) + several * _far_s(fabric, far, shards, (nodes - 1.0) / nodes)


def all_gather_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time until each of p GPUs holds all of `num_bytes` in seconds: each receives ``n (p - 1) / p``."""
    return _half_all_reduce_s(law.all_gather, law.network_send, fabric, num_bytes, gpus)


def reduce_scatter_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time until each of p GPUs holds its share of the sum of `num_bytes` in seconds."""
    return _half_all_reduce_s(law.reduce_scatter, law.network_send, fabric, num_bytes, gpus)


def all_to_all_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time in which each of p GPUs sends a different part of its `num_bytes` to each of the others, in seconds."""
    within, _, several = _levels(fabric, gpus)
    share = (within - 1.0) / gpus
    leaving = num_bytes * _sharers(fabric, within)
    return _near_s(fabric, law.all_to_all, num_bytes, share, share) + several * _far_s(
        fabric, law.network_send, leaving, (gpus - within) / gpus
    )


def hand_over_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, crossing: Scalar) -> Scalar:
    """Return the time in which each GPU of a stage sends `num_bytes` to its peer of the next stage in seconds.

    Parameters
    ----------
    law, fabric
        As in `all_reduce_s`.
    num_bytes
        From each GPU.
    crossing
        Share of the hand-overs that cross nodes; the GPUs that share a port then send one after another.
    """
    whole = jnp.ones_like(num_bytes)
    near = _near_s(fabric, law.send, num_bytes, whole, whole)
    return (1.0 - crossing) * near + crossing * _far_s(fabric, law.network_send, num_bytes * fabric.gpus_per_port, whole)

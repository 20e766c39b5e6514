"""Messages between the GPUs of a replica, within a node and across nodes."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import LawParameters


class CollectiveParameters(LawParameters):
    """Coefficients of a `optsched.domain.efficiency.CollectiveLaw`."""

    bandwidth: Scalar
    hop: Scalar
    launch_s: Scalar


class Fabric(eqx.Module):
    """The links of a replica: between the GPUs of a node, and between nodes.

    Attributes
    ----------
    link_bytes_per_s, link_latency_s
        Within a node.
    network_bytes_per_s, network_latency_s
        Between nodes, each GPU with its own adapter.
    gpus_per_node
        GPUs that share a node.
    """

    link_bytes_per_s: Scalar
    link_latency_s: Scalar
    network_bytes_per_s: Scalar
    network_latency_s: Scalar
    gpus_per_node: Scalar


def _levels(fabric: Fabric, gpus: Scalar) -> tuple[Scalar, Scalar]:
    """Return how many of the GPUs share a node, and how many nodes they span."""
    within = jnp.minimum(gpus, fabric.gpus_per_node)
    return within, gpus / within


def _seconds(
    law: CollectiveParameters,
    fabric: Fabric,
    near: tuple[Scalar, Scalar],
    far: tuple[Scalar, Scalar],
) -> Scalar:
    """Return the time of (bytes per GPU, messages in a row) within nodes and between them."""
    sent = near[0] / fabric.link_bytes_per_s + far[0] / fabric.network_bytes_per_s
    waited = near[1] * fabric.link_latency_s + far[1] * fabric.network_latency_s
    return law.launch_s + law.hop * waited + sent / law.bandwidth


def all_reduce_bytes(num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return what each GPU sends to sum `num_bytes` over all of them, the ring bound ``2 n (p - 1) / p``."""
    return 2.0 * num_bytes * (gpus - 1.0) / gpus


def all_reduce_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time to sum `num_bytes` over p GPUs in seconds.

    Parameters
    ----------
    law, fabric
        How near to the links' numbers messages come, and the links.
    num_bytes
        n, bytes of the summed vector.
    gpus
        p; at least 2 for a meaningful time.

    Notes
    -----
    Each GPU sends ``2 n (p - 1) / p`` (ring bound; Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009) in
    ``2 log2 p`` dependent messages (double binary trees; Sanders, Speck and Traff, Parallel Computing 35, 2009). Over
    several nodes: reduce-scatter within each, all-reduce of the shards between them, all-gather within each.
    """
    within, nodes = _levels(fabric, gpus)
    return _seconds(
        law,
        fabric,
        (all_reduce_bytes(num_bytes, within), 2.0 * jnp.log2(within)),
        (all_reduce_bytes(num_bytes / within, nodes), 2.0 * jnp.log2(nodes)),
    )


def all_gather_bytes(num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return what each GPU receives to hold all of `num_bytes` that were split over them."""
    return num_bytes * (gpus - 1.0) / gpus


def all_gather_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time until each of p GPUs holds all of `num_bytes` in seconds; half an all-reduce."""
    within, nodes = _levels(fabric, gpus)
    return _seconds(
        law,
        fabric,
        (all_gather_bytes(num_bytes, within), jnp.log2(within)),
        (all_gather_bytes(num_bytes / within, nodes), jnp.log2(nodes)),
    )


def all_to_all_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, gpus: Scalar) -> Scalar:
    """Return the time in which each of p GPUs sends a different part of its `num_bytes` to each of the others, in seconds."""
    within, nodes = _levels(fabric, gpus)
    return _seconds(
        law,
        fabric,
        (num_bytes * (within - 1.0) / gpus, jnp.log2(within)),
        (num_bytes * (gpus - within) / gpus, jnp.log2(nodes)),
    )


def hand_over_s(law: CollectiveParameters, fabric: Fabric, num_bytes: Scalar, crossing: Scalar) -> Scalar:
    """Return the time to send `num_bytes` from one GPU to another in seconds; `crossing` is the share between nodes."""
    stays = 1.0 - crossing
    return _seconds(law, fabric, (num_bytes * stays, stays), (num_bytes * crossing, crossing))

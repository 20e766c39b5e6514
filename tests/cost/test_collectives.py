"""Collectives: the ring bound by hand, never faster than the link, monotone, smooth."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optsched import catalog
from optsched.cost import collectives
from optsched.cost.collectives import CollectiveParameters, Fabric
from optsched.cost.precision import scalar
from optsched.domain.collective_law import CollectiveLaw, ExchangeLaw, GroupLaws
from optsched.domain.hardware import Link

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
TIMES = {kind: jax.jit(getattr(collectives, f"{kind}_s")) for kind in KINDS}
SIZES = st.floats(1.0, 1e9)
GPUS = st.sampled_from([2, 4, 8])


def fabric(link: Link, network: Link | None = None, gpus_per_node: int = 8) -> Fabric:
    far = network or link
    return Fabric(
        scalar(link.bytes_per_s), scalar(link.latency_s), scalar(far.bytes_per_s), scalar(far.latency_s),
        scalar(far.gpus_per_port), scalar(gpus_per_node),
    )  # fmt: skip


def seconds(kind: str, link: Link, num_bytes: float, gpus: int, network: Link | None = None, gpus_per_node: int = 8) -> float:
    law = CollectiveParameters.of(
        link.collectives or CollectiveLaw(), (network and network.collectives) or CollectiveLaw(), gpus, gpus_per_node
    )
    return float(TIMES[kind](law, fabric(link, network, gpus_per_node), scalar(num_bytes), scalar(gpus)))


def plain(name: str = "nvlink4") -> Link:
    return catalog.link(name).replace(collectives=None)


@pytest.mark.parametrize(
    ("kind", "share", "hops"),
    [("all_reduce", 1.75, 6), ("all_gather", 0.875, 3), ("reduce_scatter", 0.875, 3), ("all_to_all", 0.875, 3)],
)
def test_without_measurements_a_collective_sends_the_ring_bound_in_tree_depth_messages(
    kind: str, share: float, hops: int
) -> None:
    # Patarasuk and Yuan 2009: 2 n (p - 1) / p for an all-reduce, half of it for each of its halves; p = 8.
    link = plain()
    assert seconds(kind, link, 4e6, 8) == pytest.approx(hops * link.latency_s + share * 4e6 / link.bytes_per_s, rel=1e-9)


def test_a_group_of_one_sends_nothing() -> None:
    for kind in KINDS:
        # Latencies of a group of one are those of two, and a replica of one GPU counts no collectives.
        assert seconds(kind, plain().replace(latency_s=0.0), 1e6, 1) == pytest.approx(0.0, abs=1e-12)


def test_one_shot_turns_into_two_with_growing_messages() -> None:
    law = ExchangeLaw(hops=1.0, two_shot_hops=2.0)
    link = plain().replace(collectives=CollectiveLaw(all_reduce=GroupLaws(eight=law)))
    latency, rate = link.latency_s, link.bytes_per_s
    assert seconds("all_reduce", link, 1e4, 8) == pytest.approx(latency + 7e4 / rate, rel=1e-3)
    assert seconds("all_reduce", link, 1e9, 8) == pytest.approx(latency + 1.75e9 / rate, rel=1e-2)
    middle = seconds("all_reduce", link, 4e6, 8)
    assert middle == pytest.approx(3 * latency + 1.75 * 4e6 / rate, rel=0.2)


def test_over_nodes_shards_are_summed_between_them() -> None:
    link, network = plain(), plain("infiniband-ndr")
    near = seconds("all_reduce", link, 8e6, 8)
    far = 2 * network.latency_s + 2 * (1 / 2) * 1e6 / network.bytes_per_s
    assert seconds("all_reduce", link, 8e6, 16, network) == pytest.approx(near + far, rel=1e-9)
    shared = network.replace(gpus_per_port=8)
    assert seconds("all_reduce", link, 8e6, 16, shared) == pytest.approx(near + 2 * network.latency_s + 8e6 / network.bytes_per_s)


@given(name=st.sampled_from(catalog.links()), kind=st.sampled_from(KINDS), gpus=GPUS, num_bytes=SIZES)
@example(name="ethernet-100g", kind="all_reduce", gpus=2, num_bytes=1e9)  # beyond every measured size
def test_no_collective_is_faster_than_its_link(name: str, kind: str, gpus: int, num_bytes: float) -> None:
    link = catalog.link(name)
    # A switch that sums on the way spares each GPU all but its own vector, once (NVLink SHARP).
    least = num_bytes if kind == "all_reduce" else num_bytes * (gpus - 1) / gpus
    assert seconds(kind, link, num_bytes, gpus) >= least / link.bytes_per_s * (1 - 1e-9)


@given(name=st.sampled_from(catalog.links()), kind=st.sampled_from(KINDS), gpus=GPUS, num_bytes=SIZES, faster=st.floats(1.0, 4.0))
def test_a_faster_link_never_slows_a_collective(name: str, kind: str, gpus: int, num_bytes: float, faster: float) -> None:
    link = catalog.link(name)
    before = seconds(kind, link, num_bytes, gpus)
    assert seconds(kind, link.replace(bytes_per_s=link.bytes_per_s * faster), num_bytes, gpus) <= before * (1 + 1e-12)
    assert seconds(kind, link.replace(latency_s=link.latency_s / faster), num_bytes, gpus) <= before * (1 + 1e-12)


@pytest.mark.parametrize("name", catalog.links())
@pytest.mark.parametrize("kind", KINDS)
def test_more_bytes_never_take_less_time(name: str, kind: str) -> None:
    link, sizes = catalog.link(name), np.geomspace(1e2, 1e9, 60)
    for gpus in (2, 4, 8):
        law = CollectiveParameters.of(link.collectives or CollectiveLaw(), CollectiveLaw(), gpus, 8)
        times = np.asarray(TIMES[kind](law, fabric(link), sizes, scalar(gpus)))
        assert np.all(np.diff(times) >= -1e-9 * times[1:])


@given(num_bytes=st.floats(1e3, 1e8), gpus=GPUS)
def test_gradients_are_finite_differences(num_bytes: float, gpus: int) -> None:
    link = catalog.link("nvlink4")
    law = CollectiveParameters.of(link.collectives or CollectiveLaw(), CollectiveLaw(), gpus, 8)
    base = fabric(link)

    def time(log_size: jax.Array, log_rate: jax.Array) -> jax.Array:
        faster = Fabric(
            base.link_bytes_per_s * jax.numpy.exp(log_rate), base.link_latency_s, base.network_bytes_per_s,
            base.network_latency_s, base.gpus_per_port, base.gpus_per_node,
        )  # fmt: skip
        return jax.numpy.log(TIMES["all_reduce"](law, faster, jax.numpy.exp(log_size), scalar(gpus)))

    at, zero, step = scalar(math.log(num_bytes)), scalar(0.0), 1e-5
    slopes = jax.grad(time, argnums=(0, 1))(at, zero)
    by_size = (time(at + step, zero) - time(at - step, zero)) / (2 * step)
    by_rate = (time(at, scalar(step)) - time(at, scalar(-step))) / (2 * step)
    assert float(slopes[0]) == pytest.approx(float(by_size), abs=1e-6)
    assert float(slopes[1]) == pytest.approx(float(by_rate), abs=1e-6)


def test_laws_between_measured_groups_are_interpolated_and_beyond_them_latency_grows() -> None:
    laws = GroupLaws(
        two=ExchangeLaw(hops=1.0), four=ExchangeLaw(hops=3.0, bandwidth=0.5), eight=ExchangeLaw(hops=4.0, bandwidth=0.25)
    )
    assert laws.at(1).hops == laws.at(2).hops == 1.0
    assert laws.at(math.sqrt(8)).hops == pytest.approx(2.0)
    assert laws.at(math.sqrt(32)).bandwidth == pytest.approx(0.375)
    assert (laws.at(16).hops, laws.at(16).bandwidth) == (5.0, 0.25)
    assert GroupLaws(four=ExchangeLaw(hops=9.0)).at(64).hops == 1.0

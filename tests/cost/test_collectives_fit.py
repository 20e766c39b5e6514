"""Fitting collectives: a known law is found again from its own times, and bad input is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optsched import catalog
from optsched.cost.collective_fit import fit_exchange, fit_link, fit_network, prior_law, sent_shares
from optsched.cost.collectives import ExchangeParameters, exchange_s
from optsched.cost.precision import scalar
from optsched.domain.collective_law import CollectiveLaw, ExchangeLaw, GroupLaws
from optsched.errors import ProblemError
from optsched.profiles.collectives import CollectiveRows

LINK = catalog.link("nvlink4").replace(collectives=None)
SIZES = np.geomspace(256, 1e9, 80).round()


def timed(law: ExchangeLaw, kind: str, gpus: int, nodes: int = 1) -> CollectiveRows:
    share, one_shot_share = map(scalar, sent_shares(kind, gpus))
    parameters = ExchangeParameters.of(law)
    seconds = exchange_s(parameters, scalar(LINK.bytes_per_s), scalar(LINK.latency_s), SIZES, share, one_shot_share)
    count = len(SIZES)
    return CollectiveRows(
        kind=np.full(count, kind), gpus=np.full(count, gpus), nodes=np.full(count, nodes), num_bytes=SIZES,
        seconds=np.asarray(seconds), source="made here",
    )  # fmt: skip


def test_a_law_is_found_again_from_its_own_times() -> None:
    law = prior_law("all_reduce", 4).replace(hops=1.9, bandwidth=0.42, ring_bandwidth=0.81, ring_hops=3.0)
    found = fit_exchange(timed(law, "all_reduce", 4), LINK, "2026-01-01", ridge=1e-3)
    assert found.fitted.fit.train_mape < 1e-3
    assert found.fitted.fit.heldout_shapes_mape is not None
    assert found.fitted.fit.heldout_shapes_mape < 2e-3
    for name in ("hops", "bandwidth", "ring_bandwidth"):
        assert getattr(found.fitted.law, name) == pytest.approx(getattr(law, name), rel=0.02)


def test_a_link_without_sends_sends_as_two_gpus_exchange() -> None:
    parts = [timed(prior_law("all_to_all", gpus), "all_to_all", gpus) for gpus in (2, 4, 8)]
    law, fits = fit_link(parts, LINK, "2026-01-01")
    assert len(fits) == 3
    assert law.send.ring_bandwidth == law.all_to_all.two.ring_bandwidth
    assert law.all_reduce == CollectiveLaw().all_reduce


def test_a_network_without_all_reduces_sums_in_two_sends() -> None:
    law, fits = fit_network([timed(prior_law("send", 2), "send", 2, nodes=2)], LINK, LINK, "2026-01-01")
    assert len(fits) == 1
    assert law.all_reduce.eight.hops == pytest.approx(2 * law.send.hops)
    assert law.all_reduce.eight.fit is None


def test_all_reduces_of_full_nodes_give_the_law_between_them() -> None:
    between = ExchangeLaw(hops=3.0, bandwidth=0.4, ring_hops=5.0, ring_bandwidth=0.6, ring_ramp=0.3, switch_bytes=1e6)
    inner = timed(prior_law("all_reduce", 8), "all_reduce", 8)
    near = LINK.replace(collectives=CollectiveLaw(all_reduce=GroupLaws(eight=prior_law("all_reduce", 8))))
    network = LINK.replace(bytes_per_s=1e10, latency_s=2e-5, gpus_per_port=8)
    share = map(scalar, (network.bytes_per_s, network.latency_s))
    outer = exchange_s(ExchangeParameters.of(between), *share, SIZES, scalar(1.0), scalar(1.0))
    both = replace(inner, gpus=inner.gpus * 2, nodes=inner.nodes * 2, seconds=inner.seconds + np.asarray(outer))
    law, fits = fit_network([timed(prior_law("send", 2), "send", 2, nodes=2), both], network, near, "2026-01-01")
    assert len(fits) == 2
    assert fits[1].fitted.fit.train_mape < 0.01
    assert law.all_reduce.two.ring_bandwidth == pytest.approx(0.6, rel=0.05)


def test_between_nodes_no_law_exceeds_the_rate_of_a_port() -> None:
    faster = timed(prior_law("send", 2).replace(ring_bandwidth=1.4), "send", 2, nodes=2)
    law = fit_exchange(faster, LINK, "2026-01-01").fitted.law
    assert law.ring_bandwidth == 1.0
    assert "ring_bandwidth" not in law.fit.parameters


def test_mixed_rows_and_unknown_kinds_are_named() -> None:
    rows = timed(prior_law("send", 2), "send", 2)
    mixed = replace(rows, kind=np.where(SIZES > 1e6, "send", "all_to_all"))
    with pytest.raises(ProblemError, match="rows of 2 kinds and group sizes"):
        fit_exchange(mixed, LINK, "2026-01-01")
    with pytest.raises(ProblemError, match="'broadcast' is no collective; there are all_reduce"):
        sent_shares("broadcast", 2)

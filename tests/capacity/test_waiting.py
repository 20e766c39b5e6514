"""Waiting before a pool, against formulas and a simulation of the same queue."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.capacity.queueing import Wait, dispersion, erlang_c, sojourn_percentile_s, wait_of
from optsched.errors import ProblemError


def waits(arrival_s: np.ndarray, service_s: np.ndarray, servers: int) -> np.ndarray:
    """Serve first come, first served (Kiefer and Wolfowitz)."""
    free, found = [0.0] * servers, np.empty(len(arrival_s))
    for index, (arrival, service) in enumerate(zip(arrival_s.tolist(), service_s.tolist(), strict=True)):
        start = max(arrival, free[0])
        found[index] = start - arrival
        heapq.heapreplace(free, start + service)
    return found


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_erlang_c_is_its_series(servers: int, share: float) -> None:
    offered = servers * share
    terms = [math.exp(k * math.log(offered) - math.lgamma(k + 1)) for k in range(servers + 1)]
    last = terms[-1] / (1 - share)
    assert erlang_c(servers, offered) == pytest.approx(last / (sum(terms[:-1]) + last), rel=1e-9)


def test_one_server_waits_as_pollaczek_and_khinchine_say() -> None:
    service = np.random.default_rng(0).lognormal(0, 0.8, 10_000)
    rate = 0.7 / service.mean()
    wait = wait_of(rate, 1.0, service, 1)
    assert wait.chance == pytest.approx(0.7)
    assert wait.chance * wait.mean_s == pytest.approx(rate * np.mean(service**2) / 2 / 0.3)


@pytest.mark.parametrize(("servers", "share"), [(1, 0.5), (4, 0.8), (16, 0.9)])
def test_exponential_service_and_poisson_arrivals_wait_as_simulated(servers: int, share: float) -> None:
    rng = np.random.default_rng(servers)
    arrival, service = np.cumsum(rng.exponential(1 / (servers * share), 400_000)), rng.exponential(1.0, 400_000)
    found, wait = waits(arrival, service, servers), wait_of(servers * share, 1.0, service, servers)
    for percent in (50, 90, 99):
        assert wait.percentile_s(percent) == pytest.approx(np.quantile(found, percent / 100), rel=0.08, abs=0.02)


@pytest.mark.parametrize(("cv", "off"), [(0.5, 0.10), (2.0, 0.25)])
def test_other_arrivals_and_service_wait_within_the_stated_validity(cv: float, off: float) -> None:
    rng = np.random.default_rng(7)
    shape = 1 / cv**2
    arrival = np.cumsum(rng.gamma(shape, 1 / (4 * 0.85 * shape), 400_000))
    service = rng.gamma(2.0, 0.5, 400_000)
    found, wait = waits(arrival, service, 4), wait_of(4 * 0.85, cv**2, service, 4)
    assert wait.chance * wait.mean_s == pytest.approx(found.mean(), rel=off)
    assert wait.percentile_s(95) == pytest.approx(np.quantile(found, 0.95), rel=off)


def test_the_percentile_of_wait_plus_service_is_the_convolution_s() -> None:
    rng = np.random.default_rng(1)
    served = rng.lognormal(-1, 0.5, 2000)
    wait = Wait(0.6, 0.8)
    drawn = np.where(rng.random(400_000) < 0.6, rng.exponential(0.8, 400_000), 0.0) + rng.choice(served, 400_000)
    for percent in (50, 95, 99):
        assert sojourn_percentile_s(wait, served, percent) == pytest.approx(np.quantile(drawn, percent / 100), rel=0.02)
    assert sojourn_percentile_s(Wait(0.0, 0.0), served, 95) == pytest.approx(np.quantile(served, 0.95))


@given(st.integers(1, 20), st.floats(0.05, 0.9), st.floats(0.1, 4))
def test_more_servers_and_less_traffic_never_wait_longer(servers: int, share: float, cv2: float) -> None:
    service = np.array([0.5, 1.0, 1.5])
    now = wait_of(servers * share, cv2, service, servers)
    assert wait_of(servers * share, cv2, service, servers + 1).percentile_s(95) <= now.percentile_s(95) + 1e-9
    assert wait_of(servers * share * 0.9, cv2, service, servers).percentile_s(95) <= now.percentile_s(95) + 1e-9


def test_independent_gaps_disperse_by_their_own_variation_and_spells_by_more() -> None:
    rng = np.random.default_rng(3)
    assert dispersion(np.cumsum(rng.exponential(1, 50_000))) == pytest.approx(1, rel=0.1)
    assert dispersion(np.cumsum(rng.gamma(0.25, 4, 50_000))) == pytest.approx(4, rel=0.1)
    spells = np.repeat(rng.choice([0.2, 1.8], 500), 100)
    assert dispersion(np.cumsum(rng.exponential(spells))) > 5


def test_a_queue_that_would_grow_for_ever_is_refused() -> None:
    with pytest.raises(ProblemError, match="2 servers' work arrives and there are 2; the queue would grow for ever"):
        wait_of(2.0, 1.0, np.array([1.0]), 2)

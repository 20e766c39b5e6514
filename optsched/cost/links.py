"""How long a cache takes from one replica to another."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.domain.collective_law import ExchangeLaw
from optsched.domain.hardware import Link
from optsched.domain.llm import Llm


@dataclass(frozen=True, slots=True)
class TransferLaw:
    """``seconds = latency_s + tokens * seconds_per_token`` and ``joules = tokens * joules_per_token`` for one llm's cache."""

    latency_s: float
    seconds_per_token: float
    joules_per_token: float

    def transfer_s(self, tokens: float) -> float:
        """Return the time to move the cache of some tokens in seconds; nothing to move takes no time."""
        return self.latency_s + tokens * self.seconds_per_token if tokens > 0 else 0.0

    def transfer_j(self, tokens: float) -> float:
        """Return the energy to move the cache of some tokens in joules."""
        return tokens * self.joules_per_token


def achieved(link: Link) -> tuple[float, float]:
    """Return the latency in seconds and the bytes per second of long messages over a link.

    Notes
    -----
    Those of its measured sends, where there are some (`optsched.domain.collective_law.ExchangeLaw`); else as published.
    """
    law = link.collectives.send if link.collectives else ExchangeLaw()
    return link.latency_s * law.ring_hops, link.bytes_per_s * law.ring_bandwidth


def transfer_law(link: Link, llm: Llm, *, hidden: bool = False) -> TransferLaw:
    """Return the law of moving an llm's cache over a link.

    Parameters
    ----------
    link
        Between the two replicas.
    llm
        Whose cache moves.
    hidden
        Whether the hidden cache moves instead of K and V.
    """
    per_token = llm.hidden_bytes_per_token if hidden else llm.kv_bytes_per_token
    latency_s, bytes_per_s = achieved(link)
    return TransferLaw(latency_s, per_token / bytes_per_s, per_token * link.joules_per_byte)

"""How long a cache takes from one replica to another."""

from __future__ import annotations

from dataclasses import dataclass

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
    return TransferLaw(link.latency_s, per_token / link.bytes_per_s, per_token * link.joules_per_byte)

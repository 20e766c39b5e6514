"""Refuse conversations that no pool of a plan can ever hold, before simulator or workers start."""

from __future__ import annotations

import numpy as np

from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.errors import InfeasibleError


def refuse_what_cannot_fit(plan: Plan, workload: Workload) -> None:
    """Check the longest conversation against the largest decoder, and the longest first turn against the largest prefiller.

    Raises
    ------
    InfeasibleError
        If one does not fit.
    """
    if not workload.num_conversations:
        return
    block = plan.engine.block_tokens
    for what, tokens, without, of in (
        ("at its end", workload.peak_tokens, "prefill", "decoder"),
        ("in its first turn", workload.first_turn_tokens, "decode", "prefiller"),
    ):
        blocks = max(replica.kv_blocks for replica in plan.replicas if replica.role != without)
        worst = int(np.argmax(tokens))
        held = int(tokens[worst])
        if -(-held // block) > blocks:
            name = int(workload.conversation_id[worst])
            raise InfeasibleError(
                f"Conversation {name} holds {held:,} tokens {what}; the largest {of} has KV cache for {blocks * block:,}. "
                "Use a larger tier or more tensor parallelism, or shorten its context."
            )

"""Classes of conversations: what a capacity plan routes instead of single requests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from optsched.domain.workload import Workload

PROMPT_QUANTILES = (0.5, 0.9)
OUTPUT_QUANTILES = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class LengthClass:
    """Conversations of similar size; all figures are means per conversation.

    Attributes
    ----------
    name
        ``SERVICE:prompt A-B, output C-D`` in tokens.
    share
        Share of the service's conversations.
    first_turn_tokens, appended_tokens, output_tokens
        Prompt tokens of the first turn, of all later turns together, and output tokens of all turns.
    later_turns, gap_s
        Turns after the first, and the time between turns altogether.
    pairs, appended_context
        Of the later turns' prompts: ``sum n (c + n/2)`` and ``sum c`` over turns with n new tokens on a context of c.
    decode_context
        Context that a decode step reads, averaged over output tokens.
    peak_tokens
        Context at the very end.
    """

    name: str
    share: float
    first_turn_tokens: float
    appended_tokens: float
    output_tokens: float
    later_turns: float
    gap_s: float
    pairs: float
    appended_context: float
    decode_context: float
    peak_tokens: float


def length_classes(service: str, workload: Workload) -> list[LengthClass]:
    """Divide a workload by quantiles of first prompts and of outputs; empty classes are left out."""
    outputs = np.add.reduceat(workload.output_tokens, workload.first_turn[:-1])
    prompts = workload.first_turn_tokens
    found = []
    for low, high in _bins(prompts, PROMPT_QUANTILES):
        for least, most in _bins(outputs, OUTPUT_QUANTILES):
            chosen = (prompts >= low) & (prompts < high) & (outputs >= least) & (outputs < most)
            if chosen.any():
                name = f"{service}:prompt {low}-{high - 1}, output {least}-{most - 1}"
                found.append(_class_of(name, workload, chosen))
    return found


def _bins(values: np.ndarray, quantiles: tuple[float, ...]) -> list[tuple[int, int]]:
    inner = np.ceil(np.quantile(values, quantiles)).astype(int)
    edges = sorted({int(values.min()), *inner.tolist(), int(values.max()) + 1})
    return list(pairwise(edges))


def _class_of(name: str, workload: Workload, chosen: np.ndarray) -> LengthClass:
    number = float(chosen.sum())
    mine = chosen[workload.conversation_of_turn]
    later = mine & (workload.turn_in_conversation > 0)
    new, context = workload.new_tokens.astype(float), workload.context_before.astype(float)
    output = workload.output_tokens.astype(float)
    read = (context + new + output / 2) * output
    return LengthClass(
        name,
        share=number / workload.num_conversations,
        first_turn_tokens=float(workload.first_turn_tokens[chosen].mean()),
        appended_tokens=float(new[later].sum()) / number,
        output_tokens=float(output[mine].sum()) / number,
        later_turns=float(later.sum()) / number,
        gap_s=float(workload.gap_s[mine].sum()) / number,
        pairs=float((new * (context + new / 2))[later].sum()) / number,
        appended_context=float(context[later].sum()) / number,
        decode_context=float(read[mine].sum() / output[mine].sum()),
        peak_tokens=float(workload.peak_tokens[chosen].mean()),
    )

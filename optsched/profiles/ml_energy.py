"""Powers, token gaps and energies that the ML.ENERGY leaderboard v3 published for H100 (vLLM 0.11, bf16, chat prompts).

References
----------
github.com/ml-energy/leaderboard, public/data/models, Llama-3.1-8B-Instruct and 70B-Instruct, lm-arena-chat; arXiv 2601.22076.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "ML.ENERGY leaderboard v3 (github.com/ml-energy/leaderboard; arXiv 2601.22076)"
GPU = "h100-sxm"


@dataclass(frozen=True, slots=True)
class ServedPoint:
    """A server kept at a number of running requests.

    Attributes
    ----------
    llm, tp, batch
        What ran, on how many GPUs, and how many requests on average.
    watts
        Mean power of all GPUs together, prefills included.
    gap_s
        Median time between two tokens of a request.
    j_per_token
        Energy over output tokens, prefills and ramps included.
    output_tokens
        Mean of a request.
    """

    llm: str
    tp: int
    batch: float
    watts: float
    gap_s: float
    j_per_token: float
    output_tokens: float


POINTS = (
    ServedPoint("llama-3.1-8b", 1, 15.95, 513.3, 7.912e-3, 0.2627, 404.2),
    ServedPoint("llama-3.1-8b", 1, 31.91, 559.7, 8.907e-3, 0.1651, 390.3),
    ServedPoint("llama-3.1-8b", 1, 127.6, 669.2, 16.48e-3, 0.0951, 404.6),
    ServedPoint("llama-3.1-8b", 1, 191.7, 688.3, 20.91e-3, 0.0837, 396.8),
    ServedPoint("llama-3.1-8b", 1, 255.2, 690.5, 26.13e-3, 0.0766, 404.2),
    ServedPoint("llama-3.1-70b", 4, 15.95, 1803.8, 17.70e-3, 2.0910, 354.4),
    ServedPoint("llama-3.1-70b", 4, 31.88, 1794.2, 20.05e-3, 1.2069, 350.6),
    ServedPoint("llama-3.1-70b", 4, 127.6, 2183.8, 27.87e-3, 0.5634, 358.9),
    ServedPoint("llama-3.1-70b", 4, 191.6, 2293.1, 33.70e-3, 0.5140, 357.2),
    ServedPoint("llama-3.1-70b", 4, 255.3, 2354.3, 39.84e-3, 0.4790, 349.0),
)
# The two that a limit on the error is set for.
JUDGED = (POINTS[2], POINTS[9])

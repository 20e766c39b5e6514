"""What the ConServe artifact measured on NVIDIA A40 (Qwen3-0.6B, vLLM 0.11 eager, bf16), and which of it is fitted to.

References
----------
github.com/jerryding95/conserve (figures and notebooks of section 3; Apache-2.0); arXiv 2606.01839.
"""

from __future__ import annotations

SOURCE = "ConServe artifact (github.com/jerryding95/conserve; arXiv 2606.01839)"
LLM, GPU, CHUNK_TOKENS = "qwen3-0.6b", "a40", 8192

# Cold prefill by power cap and prompt tokens, in seconds: wall time less 0.03 s that lie outside the prefill.
PREFILL_S = {
    300: {4000: 0.12, 8000: 0.26, 10000: 0.34, 12000: 0.43, 16000: 0.67, 20000: 0.95, 24000: 1.28, 32000: 2.07, 49000: 4.23,
          65000: 7.07},
    200: {4000: 0.12, 8000: 0.28, 12000: 0.50, 16000: 0.80, 24000: 1.64, 32000: 2.75, 65000: 10.21},
}  # fmt: skip
# Slow-down of prefill at 200 W against 300 W as the artifact's figure shows it; its tables say less (16k: +19 %).
PENALTY_IN_FIGURE = {4000: 0.115, 8000: 0.18, 12000: 0.20, 16000: 0.26, 20000: 0.35, 32000: 0.36, 57000: 0.47}
# Decode step at 300 W by (sequences, cached tokens of all of them), in seconds.
DECODE_S = {
    (1, 128): 0.0142,
    (32, 16_000): 0.0142,
    (32, 65_600): 0.0176,
    (32, 98_500): 0.0236,
    (32, 131_000): 0.0300,
    (32, 197_000): 0.0440,
}
# At 200 W the step is 1 to 3 % longer from 64,000 cached tokens on: the middle, for one of these shapes.
CAPPED_DECODE_S = {(32, 98_500): 0.0236 * 1.02}
# Mean power of loaded decoders by cap, worked back from the artifact's tokens per joule; and of lightly loaded ones.
LOADED_DECODER_W = {300: 262.0, 200: 184.0}
LIGHT_DECODER_W = 200.0
LOADED_KV_TOKENS, LIGHT_KV_TOKENS = (32, 197_000), (32, 16_000)
IDLE_W = 77.0
KV_TOKEN_BUDGET = 308_448

# Chosen before any fit; everything else is held out.
FITTED_PROMPTS = {300: (4000, 8000, 16000, 32000, 65000), 200: (8000, 24000, 65000)}
FITTED_DECODES = ((1, 128), (32, 65_600), (32, 131_000))

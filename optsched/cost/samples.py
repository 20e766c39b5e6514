"""Steps on which the full cost model is sampled: a fixed grid to fit a step law to, and random ones to judge it on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import jax
import numpy as np
from jaxtyping import Float64

from optsched.cost.features import StepFeatures, WindowedTotals, attended_pairs, attended_tokens

Array = np.ndarray
_MOST_CACHED = 4e6  # cached tokens beyond which no replica of today holds a batch
_PREFILL = tuple(round(2 ** (power / 2)) for power in range(33))
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
TILE_STEPS = 8  # tiles whose steps a law follows; beyond, each is a tenth of the time and less
_CONTEXTS = (16, 256, 2048, 8192, 32768)


def gemm_knots(tile: float = 0.0) -> Float64[Array, " K"]:
    """Return the knots of gemm(T): 0, the powers of two to 65,536, and the middles where the efficiency ramp bends.

    Parameters
    ----------
    tile
        Rows of the kernels' largest tile, if their times show it: then also both sides of the steps of the staircase.
    """
    knots = {0, 24, 48, 96, 192, 384, 768, *(2**power for power in range(17))}
    if tile:
        edges = {int(tile * share) for share in (1 / 16, 1 / 4, 1 / 2, *range(1, 1 + TILE_STEPS))}
        knots |= edges | {edge + 1 for edge in edges}
    return np.array(sorted(knots), dtype=np.float64)


def joined(parts: Sequence[StepFeatures]) -> StepFeatures:
    """Return the steps of several sets as one set."""
    together: StepFeatures = jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)
    return together


def _windowed(
    window: int | None,
    prefill: tuple[Array, Array] | None = None,
    decode: tuple[Array, Array, Array] | None = None,
) -> WindowedTotals | None:
    """Return what layers with a window see of new tokens on a context, and of a batch with cached tokens, a share of them hidden.

    None without a window. The batch's contexts are alike.
    """
    if window is None:
        return None
    new, context = prefill if prefill else (np.zeros(1), np.zeros(1))
    batch, cached, hidden = decode if decode else (np.zeros(1), np.zeros(1), np.zeros(1))
    held = batch * attended_tokens(cached / np.maximum(batch, 1.0), window)
    return WindowedTotals.of(
        pairs=attended_pairs(new, context, window),
        prefill_context_tokens=attended_tokens(context, window),
        kv_tokens=held * (1 - hidden),
        hidden_tokens=held * hidden,
    )


def prefill_steps(most_context: float = np.inf, window: int | None = None, tile: float = 0.0) -> StepFeatures:
    """Return steps of one sequence in prefill, new tokens times context, and the same tokens without attention.

    Parameters
    ----------
    most_context
        Cached tokens that no sequence exceeds: the llm's positions.
    window
        That of the layers with a sliding window, if the llm has others without.
    tile
        As in `gemm_knots`.

    Notes
    -----
    The latter pin gemm(T): in prefill alone tokens and pairs grow together, and attention could pass for matrix products.
    """
    new, context = np.array(list(product(_PREFILL, (0, 1024, 8192, 65536))), dtype=np.float64).T
    context = np.minimum(context, most_context)
    bare = gemm_knots(tile)[1:]
    none = np.zeros_like(bare)
    windowed = _windowed(window, (new, context))
    padded = None if windowed is None else jax.tree.map(lambda leaf: np.append(np.broadcast_to(leaf, new.shape), none), windowed)
    return StepFeatures.of(
        prefill_tokens=np.concatenate([new, bare]),
        pairs=np.concatenate([attended_pairs(new, context), none]),
        prefill_context_tokens=np.concatenate([context, none]),
        windowed=padded,
    )


def decode_steps(most_context: float = np.inf, window: int | None = None) -> StepFeatures:
    """Return decode steps: batch times mean context (at most `most_context`) times the share held as hidden cache.

    Parameters
    ----------
    most_context, window
        As in `prefill_steps`.
    """
    grid = [row for row in product(_BATCHES, _CONTEXTS, (0.0, 0.5, 1.0)) if row[0] * row[1] <= _MOST_CACHED]
    batch, context, hidden = np.array(grid, dtype=np.float64).T
    cached = batch * np.minimum(context, most_context)
    return StepFeatures.of(
        decode_sequences=batch,
        kv_tokens=cached * (1 - hidden),
        hidden_tokens=cached * hidden,
        windowed=_windowed(window, decode=(batch, cached, hidden)),
    )


def mixed_steps(most_context: float = np.inf, window: int | None = None) -> StepFeatures:
    """Return steps with one prefill chunk among decoding sequences.

    Parameters
    ----------
    most_context, window
        As in `prefill_steps`.
    """
    grid = product((16, 64, 256, 1024, 4096), (0, 8192), (1, 8, 32, 128), (512, 8192), (0.0, 0.3))
    new, context, batch, held, hidden = np.array(list(grid), dtype=np.float64).T
    context, cached = np.minimum(context, most_context), batch * np.minimum(held, most_context)
    return StepFeatures.of(
        prefill_tokens=new,
        pairs=attended_pairs(new, context),
        prefill_context_tokens=context,
        decode_sequences=batch,
        kv_tokens=cached * (1 - hidden),
        hidden_tokens=cached * hidden,
        windowed=_windowed(window, (new, context), (batch, cached, hidden)),
    )


def random_steps(
    seed: int, number: int = 400, most_context: float = np.inf, window: int | None = None
) -> dict[str, StepFeatures]:
    """Return seeded random steps, log-uniform in every size: pure ``prefill``, pure ``decode``, and ``mixed``.

    Parameters
    ----------
    seed, number
        Of the generator; steps of each kind.
    most_context, window
        As in `prefill_steps`.
    """
    draw = np.random.default_rng(seed)

    def sizes(low: float, high: float) -> Float64[Array, " N"]:
        return np.floor(np.exp(draw.uniform(np.log(low), np.log(high), number)))

    def decoding(most: float) -> tuple[Float64[Array, " N"], Float64[Array, " N"], Float64[Array, " N"]]:
        batch = sizes(1, most)
        cached = np.minimum(batch * np.minimum(sizes(16, 32768), most_context), _MOST_CACHED)
        hidden = np.floor(cached * np.where(draw.uniform(size=number) < 0.5, 0.0, draw.uniform(size=number)))
        return batch, cached - hidden, hidden

    new = sizes(1, 32768)
    batch, kv, hidden = decoding(512)
    chunk, (beside, beside_kv, beside_hidden) = sizes(16, 8192), decoding(256)
    context, held = (np.minimum(sizes(1, 32768) - 1, most_context) for _ in range(2))

    def decoded(batch: Array, kv: Array, hidden: Array) -> tuple[Array, Array, Array]:
        return batch, kv + hidden, hidden / np.maximum(kv + hidden, 1.0)

    return {
        "prefill": StepFeatures.of(
            prefill_tokens=new,
            pairs=attended_pairs(new, context),
            prefill_context_tokens=context,
            windowed=_windowed(window, (new, context)),
        ),
        "decode": StepFeatures.of(
            decode_sequences=batch,
            kv_tokens=kv,
            hidden_tokens=hidden,
            windowed=_windowed(window, decode=decoded(batch, kv, hidden)),
        ),
        "mixed": StepFeatures.of(
            prefill_tokens=chunk,
            pairs=attended_pairs(chunk, held),
            prefill_context_tokens=held,
            decode_sequences=beside,
            kv_tokens=beside_kv,
            hidden_tokens=beside_hidden,
            windowed=_windowed(window, (chunk, held), decoded(beside, beside_kv, beside_hidden)),
        ),
    }

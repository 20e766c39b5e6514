"""Decode steps that a device replays: one recording per size of batch, over buffers that stay where they are.

Launching a step operation by operation costs the host more than small batches cost a GPU. A recorded step is launched at once;
for that its shapes and addresses are fixed (`optsched.runtime.decode`), so batches are padded to one of a few sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int64

from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.decode import DecodeInputs, DecodeSize, blocks_needed, decodes_only, fill_inputs, static_decode
from optsched.runtime.model.transformer import Transformer

Array = np.ndarray
Launch = Callable[[], None]
_LOG = logging.getLogger(__name__)

_ROWS_APART = 8  # sizes of batches beyond 8, as vLLM's capture sizes
_LEAST_TOKENS = 128  # narrower tables save nothing worth a recording
# What padding may cost: powers of two waste up to a half of either axis; and 8,192 tokens of Llama-3.1-8B are 34 MB per layer to
# read, where its weights are 436 MB.
_MOST_PADDING, _FREE_TOKENS = 4, 8192
MOST_GRAPHS, MOST_WARM_GRAPHS = 256, 64


class Capture(Protocol):
    """What records launches."""

    def __call__(self, launch: Launch) -> Launch:
        """Return what repeats all that `launch` has the device do, on the same addresses.

        It may call `launch` several times, and need not leave its work done.

        Raises
        ------
        RuntimeError
            If the device refuses.
        """
        ...


class CudaCapture:
    """Record into CUDA graphs that share one memory pool: only one of them runs at a time.

    References
    ----------
    PyTorch, "CUDA semantics", CUDA Graphs: constraints, and memory shared across captures.

    Parameters
    ----------
    device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, launch: Launch) -> Launch:
        """See `Capture`."""
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        # The outer context restores the current stream even where the inner one fails to end its recording.
        with torch.cuda.stream(self._stream):
            # Libraries set themselves up before they are recorded, on the recording stream: cuBLAS then keeps one workspace for
            # this stream outside the graphs' memory, and no graph's end takes it from the others.
            for _ in range(2):
                launch()
            # Threads that hand caches over may allocate meanwhile; by default that would end the recording.
            with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
                launch()
        outside.wait_stream(self._stream)
        return graph.replay


class DecodeGraphs:
    """The recorded decode steps of one replica.

    Attributes
    ----------
    row_sizes, widths
        The sizes that batches are padded to: rows, and blocks per row; ascending.

    Parameters
    ----------
    model, pool
        What computes and where the caches are; both stay where they are.
    max_sequences
        Sequences of the largest batch.
    capture
        What records; None: steps are launched operation by operation.
    most_graphs
        Recordings kept; the one used longest ago makes room.
    """

    def __init__(
        self, model: Transformer, pool: BlockPool, max_sequences: int, capture: Capture | None, most_graphs: int = MOST_GRAPHS
    ) -> None:
        self._model, self._pool, self._capture, self._most_graphs = model, pool, capture, most_graphs
        self.row_sizes = row_sizes(min(max_sequences, pool.num_blocks))
        longest = -(-model.llm.max_positions // pool.block_tokens)
        self.widths = widths(min(longest, pool.num_blocks), -(-_LEAST_TOKENS // pool.block_tokens))
        # No size reads more blocks than the pool has, so that a step needs at most one layer's share of it once more.
        room = max(self.row_sizes[-1] * (2 + self.widths[0]), 2 * self.row_sizes[-1] + pool.num_blocks)
        on_gpu = model.device.type == "cuda"
        self._host = torch.zeros(room, dtype=torch.int64, pin_memory=on_gpu)
        self._inputs = torch.zeros(room, dtype=torch.int64, device=model.device)
        self._following = torch.zeros(self.row_sizes[-1], dtype=torch.int64, device=model.device)
        self._replays: dict[DecodeSize, Launch] = {}

    @property
    def recorded(self) -> tuple[DecodeSize, ...]:
        """The sizes recorded, the one used longest ago first."""
        return tuple(self._replays)

    def size_for(self, batch: Batch) -> DecodeSize | None:
        """Return the size that a batch is padded to; None if it is not all decodes on KV cache, or too uneven to be padded."""
        if len(batch.new) > self.row_sizes[-1] or not decodes_only(batch):
            return None
        needed = blocks_needed(batch, self._pool.block_tokens)
        if needed.max() > self.widths[-1]:
            return None
        rows = self.row_sizes[int(np.searchsorted(self.row_sizes, len(needed)))]
        size = DecodeSize(rows, self.widths[int(np.searchsorted(self.widths, needed.max()))])
        affordable = max(_MOST_PADDING * int(needed.sum()), _FREE_TOKENS // self._pool.block_tokens)
        return size if size.blocks <= affordable and self._fits(size) else None

    def step(self, batch: Batch, size: DecodeSize) -> Int64[Array, " B"]:
        """Do as `optsched.runtime.step.step`, padded to the batch's size (see `size_for`)."""
        fill_inputs(self._host[: size.numbers].numpy(), size, batch, self._pool)
        self._send(size)
        self._replay_of(size)()
        following = self._following[: len(batch.new)].cpu().numpy()  # waits: the host's buffer is free again
        return np.where(batch.emits, following, -1)

    def warm_up(self) -> None:
        """Record the sizes that most batches come to: powers of two of rows, and tables from the narrowest on.

        Others are recorded when they first occur. The largest goes first: the others then fit in its memory.
        """
        rows = [rows for rows in self.row_sizes if rows & (rows - 1) == 0 or rows == self.row_sizes[-1]]
        sizes = [size for width in self.widths for count in rows if self._fits(size := DecodeSize(count, width))]
        for size in sorted(sizes[: min(MOST_WARM_GRAPHS, self._most_graphs)], key=lambda size: size.blocks, reverse=True):
            inputs = DecodeInputs.of(self._host, size)
            inputs.tokens.zero_()
            inputs.contexts.zero_()
            inputs.tables.fill_(self._pool.scratch_block)
            self._send(size)
            self._replay_of(size)

    def _fits(self, size: DecodeSize) -> bool:
        return size.width == self.widths[0] or size.blocks <= self._pool.num_blocks

    def _send(self, size: DecodeSize) -> None:
        self._inputs[: size.numbers].copy_(self._host[: size.numbers], non_blocking=True)

    def _replay_of(self, size: DecodeSize) -> Launch:
        """Return what launches the step of a size; it moves to the end of those that make room."""
        replay = self._replays.pop(size, None) or self._record(size)
        self._replays[size] = replay
        return replay

    def _record(self, size: DecodeSize) -> Launch:
        inputs, following = DecodeInputs.of(self._inputs, size), self._following[: size.rows]

        def launch() -> None:
            with torch.inference_mode():
                following.copy_(static_decode(self._model, self._pool, inputs))

        while len(self._replays) >= self._most_graphs:
            del self._replays[next(iter(self._replays))]
        if self._capture is None:
            return launch
        try:
            return self._capture(launch)
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            _LOG.warning("The device refused to record a decode step (%s); decode steps are launched one operation at a time "
                         "from now on.", reason)  # fmt: skip
            self._capture = None
            return launch


def decode_graphs(model: Transformer, pool: BlockPool, max_sequences: int) -> DecodeGraphs | None:
    """Return the recorded steps of a replica; None where the step of any batch serves as well: on CPUs, and among ranks."""
    if model.device.type != "cuda" or model.group is not None:
        return None
    return DecodeGraphs(model, pool, max_sequences, CudaCapture(model.device))


def row_sizes(most: int) -> tuple[int, ...]:
    """Return the sizes of batches up to `most`: 1, 2, 4, 8, 16, 24, 32, ... and `most` itself."""
    return (*(rows for rows in (1, 2, 4, *range(_ROWS_APART, most, _ROWS_APART)) if rows < most), most)


def widths(most: int, least: int) -> tuple[int, ...]:
    """Return the widths of tables up to `most` blocks: powers of two from `least` on, and `most` itself."""
    powers = (1 << power for power in range(most.bit_length()))
    return (*(width for width in powers if least <= width < most), most)

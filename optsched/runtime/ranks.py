"""Tensor parallelism inside a replica: the first rank is the worker; the others compute what it tells them to.

Every rank holds its heads' part of weights and KV cache, and partial results are summed by gloo's all-reduce twice per layer. The
first rank alone schedules, samples and talks with the controller; it hands each batch to the others over a line of its own,
whose end they take as their own end. Caches leave and enter whole: gathered at the first rank, scattered from it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from optsched.domain.llm import Llm
from optsched.runtime.attention import Batch
from optsched.runtime.cache import BlockPool
from optsched.runtime.messages import Setup
from optsched.runtime.model.loading import weights_of
from optsched.runtime.model.shard import shard_llm, shard_weights
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.step import residual_stream

Array = np.ndarray
_LOOPBACK = "lo0" if os.uname().sysname == "Darwin" else "lo"


@dataclass(frozen=True, slots=True)
class Export:
    """Gather these blocks at the first rank."""

    blocks: Int64[Array, " b"]


@dataclass(frozen=True, slots=True)
class Import:
    """Take these blocks from the first rank."""

    blocks: Int64[Array, " b"]


class Ranks:
    """The other ranks of a replica, as its first sees them.

    Parameters
    ----------
    setup
        The replica; its `tp` ranks are started here.
    """

    def __init__(self, setup: Setup) -> None:
        self.size = setup.tp
        self._folder = tempfile.TemporaryDirectory(prefix="optsched-")
        self._lines: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        meeting = str(Path(self._folder.name) / "meeting")
        for rank in range(1, self.size):
            mine, theirs = socket.socketpair()
            command = [sys.executable, "-m", "optsched.runtime.follower", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._processes.append(
                subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
            )
            theirs.close()
            self._lines.append(Connection(mine.detach()))
            self._lines[-1].send((setup, rank, meeting))
        _meet(meeting, 0, setup)

    def announce(self, command: Batch | Export | Import) -> None:
        """Tell the other ranks what comes next."""
        for line in self._lines:
            line.send(command)

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        dist.all_reduce(partial)
        return partial

    def close(self) -> None:
        """End the other ranks."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._folder.cleanup()


class Follower:
    """What another rank knows of its group: it is told, and sums."""

    def announce(self, command: Batch | Export | Import) -> None:
        """Do nothing."""

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        dist.all_reduce(partial)
        return partial


class ShardedPool(BlockPool):
    """The first rank's part of a replica's cache, through which whole caches go.

    Parameters
    ----------
    llm
        The shape of one rank's part.
    num_blocks, block_tokens, dtype
        As of `BlockPool`.
    ranks
        Who has the other parts.
    """

    def __init__(self, llm: Llm, num_blocks: int, block_tokens: int, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__(llm, num_blocks, block_tokens, dtype, "cpu")
        self._ranks = ranks

    @property
    def moved_width(self) -> int:
        """Numbers per layer and block of a whole cache."""
        return self._ranks.size * super().moved_width

    def export_blocks(self, blocks: Int64[Array, " b"]) -> Tensor:
        """Return a copy (layers, b, block) of whole blocks, the heads of all ranks in order."""
        self._ranks.announce(Export(blocks))
        own = super().export_blocks(blocks)
        parts = [torch.empty_like(own) for _ in range(self._ranks.size)]
        dist.gather(own, parts)
        return torch.cat([self._by_head(part) for part in parts], dim=4).flatten(2)

    def import_blocks(self, blocks: Int64[Array, " b"], content: Tensor) -> None:
        """Store what `export_blocks` returned elsewhere, each rank its heads."""
        self._ranks.announce(Import(blocks))
        heads = content.view(*content.shape[:2], self.block_tokens, 2, -1, self.llm.head_dim)
        parts = [part.flatten(2).contiguous() for part in heads.chunk(self._ranks.size, dim=4)]
        own = torch.empty_like(parts[0])
        dist.scatter(own, parts)
        super().import_blocks(blocks, own)

    def _by_head(self, part: Tensor) -> Tensor:
        return part.view(*part.shape[:2], self.block_tokens, 2, self.llm.num_kv_heads, self.llm.head_dim)


def sharded_model(setup: Setup, rank: int, group: Ranks | Follower) -> Transformer:
    """Return one rank's part of a replica's model."""
    dtype = torch.float64 if setup.double else None
    weights = weights_of(setup.llm, setup.weights, setup.seed, dtype, setup.device)
    return Transformer(shard_llm(setup.llm, setup.tp), shard_weights(setup.llm, weights, rank, setup.tp), group)


def _meet(meeting: str, rank: int, setup: Setup) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
    patience = timedelta(seconds=setup.patience_s)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=setup.tp, timeout=patience)


def follow(line: Connection) -> None:
    """Be another rank until the first is gone."""
    torch.set_num_threads(1)
    setup, rank, meeting = line.recv()
    model = sharded_model(setup, rank, Follower())
    pool = BlockPool(model.llm, setup.kv_blocks, setup.limits.block_tokens, model.dtype, "cpu")
    _meet(meeting, rank, setup)
    while True:
        command: Batch | Export | Import = line.recv()
        if isinstance(command, Batch):
            residual_stream(model, pool, command)
        elif isinstance(command, Export):
            dist.gather(pool.export_blocks(command.blocks))
        else:
            layers, _, width = pool.storage.shape
            content = torch.empty(layers, len(command.blocks), width, dtype=model.dtype)
            dist.scatter(content)
            pool.import_blocks(command.blocks, content)

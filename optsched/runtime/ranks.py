"""Tensor parallelism inside a replica: the first rank is the worker; the others compute what it tells them to.

Every rank holds its heads' part of weights and KV cache, and partial results are summed twice per layer, by gloo or, on
GPUs, NCCL. The first rank alone schedules, samples and talks with the controller; it hands each batch to the others over a line
of its own, whose end they take as their own end.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from optsched.runtime.attention import Batch
from optsched.runtime.gpus import take_device
from optsched.runtime.messages import Setup
from optsched.runtime.model.loading import weights_of
from optsched.runtime.model.shard import shard_llm, shard_weights
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.model.weights import moved_weights
from optsched.runtime.rank_pool import Export, Import, RankPool
from optsched.runtime.step import residual_stream

_LOOPBACK = "lo0" if os.uname().sysname == "Darwin" else "lo"


class Member:
    """What a rank knows of its group: it is told what to compute, sums and gathers."""

    def announce(self, command: Batch | Export | Import) -> None:
        """Do nothing."""

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        dist.all_reduce(partial)
        return partial

    def gather(self, part: Tensor) -> Tensor:
        """Return what all ranks have (T, w), side by side in their order."""
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=1)


class Ranks(Member):
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

    def close(self) -> None:
        """End the other ranks."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._folder.cleanup()


def sharded_model(setup: Setup, rank: int, group: Member) -> Transformer:
    """Return one rank's part of a replica's model, on its device."""
    dtype, device = torch.float64 if setup.double else None, take_device(setup, rank)
    whole = weights_of(setup.llm, setup.weights, setup.seed, dtype, "cpu")  # which no single GPU may have room for
    part = shard_weights(setup.llm, whole, rank, setup.tp)
    return Transformer(shard_llm(setup.llm, setup.tp), moved_weights(part, device), group)


def _meet(meeting: str, rank: int, setup: Setup) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
    backend = "nccl" if take_device(setup, rank).type == "cuda" else "gloo"
    patience = timedelta(seconds=setup.patience_s)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=setup.tp, timeout=patience)


def follow(line: Connection) -> None:
    """Be another rank until the first is gone."""
    torch.set_num_threads(1)
    setup, rank, meeting = line.recv()
    group = Member()
    model = sharded_model(setup, rank, group)
    pool = RankPool(setup.llm, setup.kv_blocks, setup.limits.block_tokens, model.dtype, model.device, group, rank, setup.tp)
    _meet(meeting, rank, setup)
    try:
        while True:
            _obey(line.recv(), model, pool)
    finally:
        shutil.rmtree(Path(meeting).parent, ignore_errors=True)  # the first rank may have been killed


def _obey(command: Batch | Export | Import, model: Transformer, pool: RankPool) -> None:
    if isinstance(command, Batch):
        residual_stream(model, pool, command)
    elif isinstance(command, Export):
        pool.send(command.blocks)
    else:
        pool.take(command.blocks)

"""Which GPUs the ranks of workers compute on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from optsched.errors import SpecError
from optsched.runtime.messages import Setup


def deal_gpus(ranks: Sequence[int], num_gpus: int) -> list[tuple[int, ...]]:
    """Deal the GPUs of a machine to replicas, round robin in the order of replicas and ranks.

    More ranks than GPUs share them, as workers share cores; those of one replica never do, since NCCL lets no two ranks of a
    group use the same one.

    Parameters
    ----------
    ranks
        Of each replica.
    num_gpus
        How many the machine has.

    Returns
    -------
    list[tuple[int, ...]]
        For each replica, the GPU of each rank.

    Raises
    ------
    SpecError
        If a replica has more ranks than there are GPUs.
    """
    if (most := max(ranks, default=0)) > num_gpus:
        raise SpecError(
            f"a replica with tp {most} needs {most} different GPUs; this machine has {num_gpus}. "
            "Plan replicas with a smaller tp, or run them on cpu"
        )
    dealt, following = [], 0
    for size in ranks:
        dealt.append(tuple((following + rank) % num_gpus for rank in range(size)))
        following += size
    return dealt


def on_gpus(setups: Sequence[Setup], num_gpus: int) -> list[Setup]:
    """Return the setups of workers of one machine with the GPUs that their ranks take (see `deal_gpus`)."""
    dealt = deal_gpus([setup.tp for setup in setups], num_gpus)
    return [replace(setup, gpus=gpus) for setup, gpus in zip(setups, dealt, strict=True)]


def take_device(setup: Setup, rank: int) -> torch.device:
    """Return where a rank computes; if that is a GPU, make it this process's current one."""
    device = torch.device(setup.device if setup.device == "cpu" else f"{setup.device}:{setup.gpus[rank]}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device

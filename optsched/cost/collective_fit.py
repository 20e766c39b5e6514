"""Fit the laws of a link's collectives to measured ones, each kind and group size by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from optsched.cost.collectives import ExchangeParameters, exchange_s
from optsched.cost.fit import Fitted, Provenance, fit_law
from optsched.cost.precision import double_precision, scalar
from optsched.cost.split import Split, split
from optsched.domain.collective_law import CollectiveLaw, ExchangeLaw, GroupLaws
from optsched.domain.hardware import Link
from optsched.errors import ProblemError
from optsched.profiles.collectives import CollectiveRows
from optsched.profiles.rows import joined

GROUPS = {"two": 2, "four": 4, "eight": 8}
GATHERS = ("all_gather", "reduce_scatter", "all_to_all")


@dataclass(frozen=True, slots=True)
class ExchangeFit:
    """A fitted law, the rows that it was fitted to and held against, and how they were divided."""

    rows: CollectiveRows
    split: Split
    fitted: Fitted[ExchangeLaw]


def sent_shares(kind: str, gpus: int) -> tuple[float, float]:
    """Return what each GPU sends of the whole vector: at least, and where it sends everything to everybody at once.

    Raises
    ------
    ProblemError
        If the kind is unknown.
    """
    if kind == "all_reduce":
        return 2.0 * (gpus - 1) / gpus, float(gpus - 1)
    if kind in GATHERS:
        return (gpus - 1) / gpus, (gpus - 1) / gpus
    if kind == "send":
        return 1.0, 1.0
    raise ProblemError(f"{kind!r} is no collective; there are all_reduce, {', '.join(GATHERS)}, send")


def prior_law(kind: str, gpus: int) -> ExchangeLaw:
    """Return what is plausible before measuring: two latencies more per doubling of the group, 60 to 70 % of the bandwidth.

    Notes
    -----
    vLLM's own all-reduce kernel takes vectors below 8 MiB (``CustomAllreduce``, ``max_size``; the size of the switch), NCCL
    leaves its low-latency protocol at about 1 MB.
    """
    depth = float(np.log2(gpus))
    one_shot = kind == "all_reduce" and gpus > 2
    return ExchangeLaw(
        hops=0.5 + 0.5 * depth,
        two_shot_hops=1.0 if one_shot else 0.0,
        bandwidth=0.6,
        ring_hops=2.0 + depth,
        ring_ramp=0.5,
        ring_bandwidth=0.7,
        switch_bytes=6e6 if kind == "all_reduce" else 1e6,
    )


def fit_exchange(rows: CollectiveRows, link: Link, date: str, *, ridge: float = 0.1) -> ExchangeFit:
    """Fit the law of one kind of collective in groups of one size.

    Parameters
    ----------
    rows
        All of one kind and group size.
    link
        Between the GPUs; its numbers stay as published.
    date
        Day of the fit.
    ridge
        As in `fit_law`.

    Raises
    ------
    ProblemError
        If the rows are of several kinds or sizes, or too few.

    Notes
    -----
    Between nodes no switch sums on the way, so nothing exceeds a port's rate: a share that the rows would put above it, which
    they can where they end before the rate is reached, is 1.
    """
    groups = {(str(kind), int(gpus)) for kind, gpus in zip(rows.kind, rows.gpus, strict=True)}
    if len(groups) != 1:
        raise ProblemError(f"rows of {len(groups)} kinds and group sizes; fit one kind and size at a time")
    ((kind, gpus),) = groups
    share, one_shot_share = sent_shares(kind, gpus)

    def predict(law: ExchangeParameters, num_bytes: Float[jax.Array, " S"]) -> Float[jax.Array, " S"]:
        return exchange_s(law, scalar(link.bytes_per_s), scalar(link.latency_s), num_bytes, scalar(share), scalar(one_shot_share))

    def fit(start: ExchangeLaw, fixed: tuple[str, ...] = ()) -> Fitted[ExchangeLaw]:
        return fit_law(
            start, ExchangeParameters, predict, rows.num_bytes, rows.seconds, divided, provenance, fixed=fixed, ridge=ridge
        )

    divided, provenance = split(rows.keys()), Provenance(rows.source, date, rows.left_out)
    fitted = fit(prior := prior_law(kind, gpus))
    above = tuple(name for name in ("bandwidth", "ring_bandwidth") if getattr(fitted.law, name) > 1.0)
    if above and rows.nodes.min() > 1:
        fitted = fit(prior.replace(**dict.fromkeys(above, 1.0)), above)
    return ExchangeFit(rows, divided, fitted)


def fit_groups(parts: Sequence[CollectiveRows], kind: str, link: Link, date: str) -> tuple[GroupLaws, tuple[ExchangeFit, ...]]:
    """Fit one kind of collective in groups of 2, 4 and 8 GPUs of one node.

    Raises
    ------
    ProblemError
        If a group size has too few rows.
    """
    fits = {name: fit_exchange(_chosen(parts, kind, gpus, 1), link, date) for name, gpus in GROUPS.items()}
    return GroupLaws(**{name: each.fitted.law for name, each in fits.items()}), tuple(fits.values())


def fit_link(parts: Sequence[CollectiveRows], link: Link, date: str) -> tuple[CollectiveLaw, tuple[ExchangeFit, ...]]:
    """Fit the collectives of a link within a node; kinds without rows keep their assumed laws.

    Parameters
    ----------
    parts
        Tables measured over that link, any kinds; collectives over several nodes are not used.
    link, date
        As in `fit_exchange`.

    Notes
    -----
    Without sends, a send is as an all-to-all of two GPUs, in which each sends half of its bytes.
    """
    laws: dict[str, GroupLaws | ExchangeLaw] = {}
    fits: list[ExchangeFit] = []
    for kind in ("all_reduce", *GATHERS):
        if any(_of(part, kind, 2, 1).any() for part in parts):
            laws[kind], found = fit_groups(parts, kind, link, date)
            fits += found
    if any(_of(part, "send", 2, 1).any() for part in parts):
        fits.append(fit_exchange(_chosen(parts, "send", 2, 1), link, date))
        laws["send"] = fits[-1].fitted.law
    elif "all_to_all" in laws:
        laws["send"] = CollectiveLaw.model_validate(laws).all_to_all.two.replace(fit=None)
    return CollectiveLaw.model_validate(laws), tuple(fits)


def fit_network(
    parts: Sequence[CollectiveRows], link: Link, near: Link, date: str
) -> tuple[CollectiveLaw, tuple[ExchangeFit, ...]]:
    """Fit the sends between two nodes, and the all-reduces of two full nodes.

    Parameters
    ----------
    parts
        Tables measured over that network.
    link, near
        Between the nodes, and within them with its fitted collectives.
    date
        As in `fit_exchange`.

    Notes
    -----
    Of an all-reduce of two nodes, what the law of `near` says of its part within them is taken off. Without all-reduces, each
    of their two rounds is as a send. Smaller groups are not fitted to.
    """
    sends = fit_exchange(_chosen(parts, "send", 2, 2), link, date)
    law = sends.fitted.law.replace(fit=None)
    if not any(_of(part, "all_reduce", 16, 2).any() for part in parts):
        twice = law.replace(hops=2 * law.hops, ring_hops=2 * law.ring_hops)
        return CollectiveLaw(send=sends.fitted.law, all_reduce=GroupLaws(two=twice, four=twice, eight=twice)), (sends,)
    pair = fit_exchange(_between(_chosen(parts, "all_reduce", 16, 2), link, near), link, date)
    same = pair.fitted.law.replace(fit=None)
    groups = GroupLaws(two=pair.fitted.law, four=same, eight=same)
    return CollectiveLaw(send=sends.fitted.law, all_reduce=groups), (sends, pair)


@double_precision
def _between(rows: CollectiveRows, link: Link, near: Link) -> CollectiveRows:
    """Return the all-reduces of full nodes as those of one vector per port between the nodes."""
    gpus = int(rows.gpus[0] // rows.nodes[0])
    law = ExchangeParameters.of((near.collectives or CollectiveLaw()).all_reduce.at(gpus))
    share, one_shot_share = map(scalar, sent_shares("all_reduce", gpus))
    within_s = exchange_s(
        law, scalar(near.bytes_per_s), scalar(near.latency_s), jnp.asarray(rows.num_bytes), share, one_shot_share
    )
    rest_s = rows.seconds - np.asarray(within_s)
    port_bytes = rows.num_bytes * min(gpus, link.gpus_per_port) / gpus
    far = replace(rows, gpus=rows.nodes, num_bytes=port_bytes, seconds=rest_s)
    return far.where(rest_s > 0)


def _chosen(parts: Sequence[CollectiveRows], kind: str, gpus: int, nodes: int) -> CollectiveRows:
    return joined([part.where(mask) for part in parts if (mask := _of(part, kind, gpus, nodes)).any()])


def _of(rows: CollectiveRows, kind: str, gpus: int, nodes: int) -> Bool[np.ndarray, " N"]:
    return np.asarray((rows.kind == kind) & (rows.gpus == gpus) & (rows.nodes == nodes))

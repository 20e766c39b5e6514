"""What each conversation takes with nothing else running, on every kind of replica and pair: the ground of all bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from optsched.compiled import kernel
from optsched.placement.gemm import Gemm
from optsched.placement.problem import PlacementProblem
from optsched.placement.step_time import Laws, decode_run_s, prefill_alone_s
from optsched.placement.tables import Tables, Turns, tables_of

Array = np.ndarray
VARIANTS = 4
"""Ways to share out a replica's time, see `Alone`."""


@dataclass(frozen=True, slots=True)
class Alone:
    """Least times and energies per pair of replicas and conversation; pairs that are alike appear once.

    Attributes
    ----------
    kind_of_pair
        Row of each allowed (prefill, decode) pair in the arrays below.
    prefill_s
        First turn's prefill.
    ttfet_s, e2e_s
        Arrival to the first token of the last turn, and to the last token; infinite where the pair cannot hold it.
    hold_s, last_hold_s
        How long its blocks are reserved before the first token of the last turn, and after it.
    energy_j
        Dynamic energy, without decode-only steps' fixed share.
    prefill_work_s, early_work_s, tail_work_s, last_work_s
        Replica time that it takes at least, for four sound ways of sharing out a step's time between the sequences in it
        (rows): all of a chunk's own step to the chunk; additive without the floor, the overhead to the chunks; the same,
        the overhead to the decodes; overhead and floor to the decodes. `early` and
        `last`: of the tail, what precedes the first token of the last turn, and what follows it.
    turn_prefill_s, turn_decode_s
        Least over the replicas of each turn's prefill and decode.
    """

    kind_of_pair: dict[tuple[int, int], int]
    prefill_s: Float64[Array, "Q C"]
    ttfet_s: Float64[Array, "Q C"]
    e2e_s: Float64[Array, "Q C"]
    hold_s: Float64[Array, "Q C"]
    last_hold_s: Float64[Array, "Q C"]
    energy_j: Float64[Array, "Q C"]
    prefill_work_s: Float64[Array, "Q V C"]
    early_work_s: Float64[Array, "Q V C"]
    tail_work_s: Float64[Array, "Q V C"]
    last_work_s: Float64[Array, "Q V C"]
    turn_prefill_s: Float64[Array, " T"]
    turn_decode_s: Float64[Array, " T"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of replica: time, replica time and energy of each conversation's parts on it."""

    first_s: Float64[Array, " C"]
    first_decode_s: Float64[Array, " C"]
    rest_s: Float64[Array, " C"]
    last_decode_s: Float64[Array, " C"]
    first_work_s: Float64[Array, "V C"]
    early_work_s: Float64[Array, "V C"]
    tail_work_s: Float64[Array, "V C"]
    last_work_s: Float64[Array, "V C"]
    first_j: Float64[Array, " C"]
    tail_j: Float64[Array, " C"]
    turn_prefill_s: Float64[Array, " T"]
    turn_decode_s: Float64[Array, " T"]


def most_residents(problem: PlacementProblem) -> Int64[Array, " R"]:
    """Return how many conversations can decode at once on each replica at most."""
    return np.asarray(np.minimum(problem.workload.num_conversations, problem.kv_blocks // problem.blocks.min()))


@kernel
def alone_s(laws: Laws, turns: Turns, replica: int, chunk: int) -> tuple[Float64[Array, " T"], Float64[Array, " T"]]:
    """Return each turn's prefill time and decode time on a replica with nothing else running."""
    count = len(turns.tokens)
    prefill, decode = np.empty(count), np.empty(count)
    for turn in range(count):
        prefill[turn] = prefill_alone_s(laws, replica, turns.tokens[turn], turns.cached[turn], chunk)
        context = float(turns.cached[turn] + turns.tokens[turn])
        decode[turn] = decode_run_s(laws, replica, 1, context, turns.outputs[turn] - 1)
    return prefill, decode


def _kind(problem: PlacementProblem, tables: Tables, replica: int) -> Kind:
    laws, turns, pools = tables
    workload = problem.workload
    first, last = turns.first_turn[:-1], turns.first_turn[1:] - 1
    is_first, is_last = np.zeros(workload.num_turns, bool), np.zeros(workload.num_turns, bool)
    is_first[first], is_last[last] = True, True

    def total(values: Float64[Array, " T"]) -> Float64[Array, " C"]:
        return np.asarray(np.add.reduceat(values, first))

    chunk = int(pools.chunk[replica])
    prefill_s, decode_s = alone_s(laws, turns, replica, chunk)
    chunks = -(-turns.tokens // chunk)
    pairs = turns.tokens * (turns.cached + 0.5 * turns.tokens)
    context = chunks * (turns.cached + 0.5 * chunk * (chunks - 1.0))
    steps = turns.outputs - 1.0
    reads = steps * (turns.cached + turns.tokens) + 0.5 * steps * np.maximum(steps - 1, 0)
    seconds, joules = Gemm.of(laws, replica, laws.gemm_s), Gemm.of(laws, replica, laws.gemm_j)
    raw_s = seconds.of_prefills(turns.tokens, chunk) + laws.pair_s[replica] * pairs
    raw_s += laws.prefill_context_s[replica] * context + laws.sequence_s[replica] * chunks
    overhead, floor = laws.overhead_s[replica], laws.floor_s[replica]
    additive = laws.kv_s[replica] * reads + (laws.sequence_s[replica] + seconds.per_decode) * steps
    crowd = max(1, int(most_residents(problem)[replica]))
    chunk_work = np.stack([prefill_s, raw_s + overhead * chunks, raw_s, np.zeros_like(raw_s)])
    decode_work = np.stack(
        [np.zeros_like(additive), additive, additive + steps * overhead / crowd, steps * (overhead + floor) / crowd]
    )
    append_work = np.where(is_first, 0.0, chunk_work)
    prefill_j = joules.of_prefills(turns.tokens, chunk) + laws.pair_j[replica] * pairs
    prefill_j += laws.prefill_context_j[replica] * context + (laws.step_j[replica] + laws.sequence_j[replica]) * chunks
    decode_j = (laws.sequence_j[replica] + joules.per_decode) * steps + laws.kv_j[replica] * reads
    return Kind(
        first_s=prefill_s[first],
        first_decode_s=decode_s[first],
        rest_s=total(np.where(is_first, 0.0, turns.gap_s + prefill_s + np.where(is_last, 0.0, decode_s))),
        last_decode_s=decode_s[last],
        first_work_s=chunk_work[:, first],
        early_work_s=np.stack([total(row) for row in append_work + np.where(is_last, 0.0, decode_work)]),
        tail_work_s=np.stack([total(row) for row in append_work + decode_work]),
        last_work_s=decode_work[:, last],
        first_j=prefill_j[first],
        tail_j=total(np.where(is_first, 0.0, prefill_j) + decode_j),
        turn_prefill_s=prefill_s,
        turn_decode_s=decode_s,
    )


def alone(problem: PlacementProblem) -> Alone:
    """Compute the least times, replica times and energies of every conversation on every kind of pair."""
    tables = tables_of(problem)
    found: dict[tuple[object, ...], int] = {}
    kind_of = [found.setdefault((r.coefficients, problem.chunks[i], r.kv_blocks), i) for i, r in enumerate(problem.replicas)]
    kinds = {index: _kind(problem, tables, index) for index in sorted(set(kind_of))}
    pairs: dict[tuple[object, ...], tuple[int, int]] = {}
    kind_of_pair: dict[tuple[int, int], int] = {}
    for p, d in problem.pairs:
        link = None if p == d else problem.link_of[p, d]
        cost = None if link is None else (link.latency_s, link.bytes_per_s, link.joules_per_byte)
        key = (kind_of[p], kind_of[d], cost)
        pairs.setdefault(key, (p, d))
        kind_of_pair[p, d] = list(pairs).index(key)
    columns = [_pair(problem, tables, p, d, kinds[kind_of[p]], kinds[kind_of[d]]) for p, d in pairs.values()]
    decoders = sorted({kind_of[d] for _, d in problem.pairs})
    prefill_s, ttfet_s, e2e_s, hold_s, last_hold_s, energy_j, *work = (
        np.stack([column[k] for column in columns]) for k in range(10)
    )
    return Alone(
        kind_of_pair=kind_of_pair,
        prefill_s=prefill_s,
        ttfet_s=ttfet_s,
        e2e_s=e2e_s,
        hold_s=hold_s,
        last_hold_s=last_hold_s,
        energy_j=energy_j,
        prefill_work_s=work[0],
        early_work_s=work[1],
        tail_work_s=work[2],
        last_work_s=work[3],
        turn_prefill_s=np.min([kinds[d].turn_prefill_s for d in decoders], axis=0),
        turn_decode_s=np.min([kinds[d].turn_decode_s for d in decoders], axis=0),
    )


def _pair(
    problem: PlacementProblem, tables: Tables, p: int, d: int, source: Kind, target: Kind
) -> tuple[Float64[Array, ...], ...]:
    turns, pools = tables.turns, tables.pools
    first, count = turns.first_turn[:-1], np.diff(turns.first_turn)
    tokens, one_token = turns.tokens[first], turns.outputs[first] == 1
    several = count > 1
    move_s, move_j = np.zeros(len(first)), np.zeros(len(first))
    if p != d:
        move_s = pools.latency_s[p, d] + pools.s_per_token[p, d] * tokens
        move_j = problem.link_of[p, d].joules_per_byte * problem.kv_bytes_per_token * tokens.astype(float)
    moves = several | ~one_token
    gap_s = np.where(several, turns.gap_s[np.minimum(first + 1, len(turns.gap_s) - 1)], 0.0)
    # a first turn of one token ends at its prefill, so that the gap after it runs while the cache moves
    delay_s = np.where(moves, np.where(one_token, np.maximum(move_s - gap_s, 0.0), move_s), 0.0)
    before_last = np.where(several, delay_s + target.first_decode_s + target.rest_s, 0.0)
    after = np.where(several, target.last_decode_s, delay_s + target.last_decode_s)
    # the gap after a first turn of one token may run before the admission
    unheld_s = np.where(one_token, np.minimum(gap_s, before_last - move_s), 0.0) if p != d else 0.0
    holds = np.where(several, before_last - unheld_s, 0.0) + (source.first_s if p == d else 0.0)
    impossible = np.where(problem.fits(p, d), 0.0, np.inf)
    return (
        source.first_s + impossible,
        source.first_s + before_last + impossible,
        source.first_s + before_last + after + impossible,
        holds + impossible,
        target.last_decode_s + impossible,
        source.first_j + target.tail_j + np.where(moves, move_j, 0.0) + impossible,
        source.first_work_s + impossible,
        target.early_work_s + impossible,
        target.tail_work_s + impossible,
        target.last_work_s + impossible,
    )

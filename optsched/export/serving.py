"""What each replica of a plan is told, in the terms of vLLM, on which all targets stand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from optsched import catalog
from optsched.cost.memory import kv_bytes_per_token
from optsched.domain.dtypes import Dtype
from optsched.domain.llm import Llm
from optsched.domain.plan import Plan, PlanLlm, PlanReplica
from optsched.domain.scenario import Role
from optsched.errors import PlanError, SpecError

_DTYPES: dict[Dtype, str] = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_ROLES: dict[Role, str] = {"prefill": "kv_producer", "decode": "kv_consumer", "mixed": "kv_both"}
_PUBLISHED = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)")
Option = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Serving:
    """One replica as a server of vLLM.

    Attributes
    ----------
    replica, model
        The plan's replica, and the weights that it serves: a name at Hugging Face or a folder.
    options
        Name and value (None: a switch), without the port.
    board_power_w
        The card's own power limit.
    """

    replica: PlanReplica
    model: str
    options: tuple[Option, ...]
    board_power_w: float

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.replica.tp * self.replica.pp

    @property
    def capped(self) -> bool:
        """Whether its cards have to be told a power cap."""
        return self.replica.power_cap_w < self.board_power_w

    @property
    def arguments(self) -> list[str]:
        """The options as words of a command line."""
        return [word for name, value in self.options for word in ((name,) if value is None else (name, value))]


def servings(plan: Plan, model: str | None = None) -> list[Serving]:
    """Return the replicas of a plan as servers.

    Parameters
    ----------
    plan
        What to export.
    model
        Weights to serve instead of those that the plan names.

    Raises
    ------
    SpecError
        If weights are not known, or a gpu is none that the engines serve on.
    PlanError
        If a replica's cache does not fit its cards.
    UnknownNameError
        If a gpu is not in the catalog.
    """
    if model is not None and len(plan.llms) > 1:
        raise SpecError(f"{model!r}: the plan has {len(plan.llms)} llms; give each its weights in the plan", field="--model")
    llms = {each.name: each for each in plan.llms}
    weights = {name: model or weights_of(each) for name, each in llms.items()}
    moves = any(replica.role != "mixed" for replica in plan.replicas)
    return [
        _serving(plan, each, llms[each.llm].shape.with_weights(each.dtype), weights[each.llm], moves) for each in plan.replicas
    ]


def weights_of(llm: PlanLlm) -> str:
    """Return where an llm's weights are: the folder that the plan names, or the name at Hugging Face that its spec cites.

    Raises
    ------
    SpecError
        If neither is known.
    """
    if llm.weights is not None:
        return str(Path(llm.weights).resolve())
    found = _PUBLISHED.match(llm.shape.source)
    if found is None:
        raise SpecError(
            f"{llm.name} has no published weights that an engine could serve; name some that have its shape", field="--model"
        )
    return found.group(1)


def memory_fraction(plan: Plan, replica: PlanReplica, llm: Llm) -> float:
    """Return the share of each card's memory that weights, reserve and the plan's cache take, rounded up to a thousandth.

    Raises
    ------
    PlanError
        If it is more than all of it.
    """
    card, gpus = catalog.gpu(replica.gpu), replica.tp * replica.pp
    cache = replica.kv_blocks * plan.engine.block_tokens * kv_bytes_per_token(llm, replica.tp)
    needed = llm.weights_bytes + card.efficiency.reserve_bytes * gpus + cache
    share = needed / (card.datasheet.memory_bytes * gpus)
    if share > 1:
        raise PlanError([
            f"replica {replica.id!r} needs {100 * share:.0f} % of the memory of {gpus} x {replica.gpu} for weights, reserve and "
            f"{replica.kv_blocks:,} cache blocks; plan it again"
        ])  # fmt: skip
    return ceil(1000 * share - 1e-6) / 1000


def _serving(plan: Plan, replica: PlanReplica, llm: Llm, model: str, moves: bool) -> Serving:
    card = catalog.gpu(replica.gpu)
    if card.shared_host or not card.title.startswith("NVIDIA"):
        raise SpecError(
            f"replica {replica.id!r} stands on {replica.gpu}; exports name drivers and resources of NVIDIA cards; plan for those"
        )
    return Serving(replica, model, tuple(_options(plan, replica, llm, moves)), card.datasheet.power_w)


def _options(plan: Plan, replica: PlanReplica, llm: Llm, moves: bool) -> list[Option]:
    engine = plan.engine
    budget = replica.max_batched_tokens or engine.max_batched_tokens
    options: list[Option] = [("--tensor-parallel-size", str(replica.tp))]
    if replica.pp > 1:
        options.append(("--pipeline-parallel-size", str(replica.pp)))
    options += _precision(llm)
    options += [
        ("--max-num-seqs", str(min(engine.max_sequences, budget))),
        ("--max-num-batched-tokens", str(budget)),
        ("--gpu-memory-utilization", f"{memory_fraction(plan, replica, llm):g}"),
        ("--block-size", str(engine.block_tokens)),
        ("--enable-chunked-prefill" if engine.chunked_prefill else "--no-enable-chunked-prefill", None),
        ("--enable-prefix-caching", None),
    ]
    longest = longest_context(plan, replica, llm)
    if longest < llm.max_positions:
        options.append(("--max-model-len", str(longest)))
    if moves:
        config = {"kv_connector": "NixlConnector", "kv_role": _ROLES[replica.role]}
        options.append(("--kv-transfer-config", json.dumps(config, separators=(",", ":"))))
    return options


def longest_context(plan: Plan, replica: PlanReplica, llm: Llm) -> int:
    """Return the longest context that a server can be told: the cache holds it, and a step does where prompts stay whole."""
    longest = min(llm.max_positions, replica.kv_blocks * plan.engine.block_tokens)
    whole = replica.max_batched_tokens or plan.engine.max_batched_tokens
    return longest if plan.engine.chunked_prefill else min(longest, whole)


def _precision(llm: Llm) -> list[Option]:
    options: list[Option] = [("--dtype", _DTYPES.get(llm.dtype, "auto"))]
    if llm.dtype == "fp8":
        options.append(("--quantization", "fp8"))
    if llm.cache_dtype == "fp8":
        options.append(("--kv-cache-dtype", "fp8"))
    return options

"""What a plan tells its replicas, and what it rests on."""

from __future__ import annotations

from optsched.domain.plan import Plan
from optsched.report.markup import Html, element, table
from optsched.report.numbers import share

_MOST_COUNTED = 32


def decisions_body(plan: Plan) -> Html:
    """Return policies with their parameters, the engine's limits, the workload, and how many conversations went where."""
    rows: list[tuple[str, str, str]] = [
        ("placement", plan.placement.policy, _parameters(plan.placement.parameters)),
        ("batching", plan.batching.policy, _parameters(plan.batching.parameters)),
        ("engine", f"{plan.engine.max_batched_tokens:,} tokens per step", _engine(plan)),
        ("workload", _source(plan), _arrivals(plan)),
    ]
    rows += [("llm", llm.name, f"weights {llm.weights}" if llm.weights else "no weights named") for llm in plan.llms]
    if plan.placement.assignments:
        rows.append(("placed", f"{len(plan.placement.assignments):,} conversations", _placed(plan)))
    return table(("", "", ""), [(name, what, element("code", more)) for name, what, more in rows], left=3)


def _parameters(values: dict[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items()) or "default parameters"


def _engine(plan: Plan) -> str:
    engine = plan.engine
    chunked = "prompts in chunks" if engine.chunked_prefill else "prompts whole"
    prefixes = "prefixes shared" if engine.prefix_caching else "prefixes not shared"
    return (
        f"{engine.max_sequences:,} sequences, blocks of {engine.block_tokens} tokens, {chunked}, {prefixes}, "
        f"watermark {share(engine.watermark)}"
    )


def _source(plan: Plan) -> str:
    work = plan.workload
    return f"recipe {work.recipe.name}" if work.recipe is not None else f"trace {work.trace}"


def _arrivals(plan: Plan) -> str:
    arrivals = plan.workload.arrivals
    rate = f", {arrivals.rate_per_s:g} conversations/s" if arrivals.rate_per_s else ""
    return f"{arrivals.process} arrivals{rate}, seed {plan.workload.seed}, sha256 {plan.workload.sha256[:12]}"


def _placed(plan: Plan) -> str:
    """Return conversations by replica; one that moves counts on both."""
    if len(plan.replicas) > _MOST_COUNTED:
        return f"on {len(plan.replicas):,} replicas"
    counts = {replica.id: 0 for replica in plan.replicas}
    for item in plan.placement.assignments:
        for end in {item.prefill, item.decode}:
            counts[end] += 1
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())

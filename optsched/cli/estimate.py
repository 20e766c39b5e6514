"""``optsched estimate``: time, energy and memory of one llm on one tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from optsched import catalog
from optsched.cli.output import emit_json, print_line, print_table, warn
from optsched.report.numbers import seconds
from optsched.units import human

if TYPE_CHECKING:
    from optsched.cost.breakdown import BreakdownRow
    from optsched.cost.estimate import Estimate
    from optsched.cost.sensitivity import Sensitivity

_ERRORS = (
    "prefill_standard_error_s", "decode_step_standard_error_s", "prefill_energy_standard_error_j",
    "decode_energy_standard_error_j_per_token", "prefill_model_error", "decode_step_model_error", "not_fitted",
)  # fmt: skip


def estimate(
    *,
    llm: str,
    tier: str,
    tp: int = 1,
    pp: int = 1,
    expert_parallel: Annotated[bool, Parameter(negative=())] = False,
    prompt: int = 1024,
    batch: int = 1,
    context: int | None = None,
    hidden_tokens: int = 0,
    chunk: int = 2048,
    link: str | None = None,
    engine: str | None = None,
    sensitivity: bool = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Estimate time, energy and memory of one llm on one tier.

    Parameters
    ----------
    llm
        Name of an llm ('optsched show llms'), or the path of a Hugging Face config.json.
    tier
        A gpu at a power cap, for example a40@200W; without a cap, at its board power.
    tp
        GPUs that share every layer (tensor parallel).
    pp
        Pipeline stages. Times are those of one batch; what a full pipeline decodes is shown below them.
    expert_parallel
        Let each of the tp GPUs hold whole experts and exchange tokens, instead of a slice of every expert.
    prompt
        Tokens of the prompt whose prefill is estimated.
    batch
        Sequences in the decode step.
    context
        Cached tokens of each of them; the prompt's length unless given.
    hidden_tokens
        How many of all cached tokens are held as hidden cache.
    chunk
        Most new tokens per step of the prefill.
    link
        Link between the GPUs of the replica; the gpu's own interconnect unless given.
    engine
        Serving engine whose overheads the gpu's file names, for example eager (without CUDA graphs); the file's default
        unless given.
    sensitivity
        Show what a tenth more compute, bandwidth, link, overhead or power would change.
    json
        Print one JSON object.
    """
    from optsched.cost.estimate import estimate as estimate_costs
    from optsched.cost.pipeline import steady_pipeline

    shape, place = catalog.llm(llm), replace(catalog.tier(tier), engine=engine)
    cached = prompt if context is None else context
    answer = estimate_costs(
        shape,
        place,
        tp=tp,
        pp=pp,
        prompt_tokens=prompt,
        batch=batch,
        context_tokens=cached,
        hidden_tokens=hidden_tokens,
        chunk_tokens=chunk,
        link=catalog.link(link) if link else None,
        expert_parallel=expert_parallel,
        sensitivity=sensitivity,
    )
    full = None
    if pp > 1 and batch >= pp:
        full = steady_pipeline(
            shape, place, tp=tp, pp=pp, batch=batch, context_tokens=cached, link=catalog.link(link) if link else None,
            expert_parallel=expert_parallel,
        )  # fmt: skip
    if max(prompt, cached) > shape.max_positions:
        warn(f"{max(prompt, cached)} tokens exceed the {shape.max_positions} positions of {shape.name}; estimated all the same")
    if batch * cached > answer.memory.kv_token_budget and not hidden_tokens:
        warn(f"{batch} x {cached} cached tokens exceed the budget of {answer.memory.kv_token_budget}; the batch would not fit")
    sibling = place.gpu.efficiency.sibling if answer.origin == "assumed" else None
    if json:
        emit_json({**_as_json(answer), "sibling": sibling, **({"pipeline": asdict(full)} if full else {})})
        return
    layout = [f"tp={tp}"] * (tp > 1) + [f"pp={pp}"] * (pp > 1) + ["whole experts"] * expert_parallel
    _print(answer, ", ".join([f"{shape.name} on {place.name}", *layout]))
    if full:
        print_line(
            f"Full pipeline: {full.batches} batches of {full.sequences:g} sequences in flight, "
            f"{seconds(full.latency_s)} between tokens, {full.tokens_per_s:,.0f} tokens/s "
            f"({full.alone_tokens_per_s:,.0f} as one batch). Assumed: no pipeline has been measured."
        )
    if sibling:
        print_line(f"What {place.gpu.name} has no laws of its own for is estimated by those of its sibling {sibling}.")


def _as_json(answer: Estimate) -> dict[str, object]:
    from optsched.cost.breakdown import overhead_share

    def rows(breakdown: Sequence[BreakdownRow]) -> list[dict[str, object]]:
        return [
            {"operation": row.name, "seconds": row.seconds, "flops": row.flops, "bytes": row.bytes, "resource": row.resource}
            for row in breakdown
        ]

    value: dict[str, object] = {
        "prefill_s": answer.prefill_s,
        "decode_step_s": answer.decode_step_s,
        "prefill_energy_j": answer.prefill_energy_j,
        "decode_energy_j_per_token": answer.decode_energy_j_per_token,
        "memory": {
            "weights_bytes": answer.memory.weights_bytes,
            "reserve_bytes": answer.memory.reserve_bytes,
            "kv_bytes_per_token": answer.memory.kv_bytes_per_token,
            "hidden_bytes_per_token": answer.memory.hidden_bytes_per_token,
            "kv_token_budget": answer.memory.kv_token_budget,
        },
        "origin": answer.origin,
        **{name: getattr(answer, name) for name in _ERRORS},
        "overhead_share": {"prefill": overhead_share(answer.prefill), "decode": overhead_share(answer.decode)},
        "breakdown": {"prefill": rows(answer.prefill), "decode": rows(answer.decode)},
    }
    if answer.prefill_sensitivity is not None and answer.decode_sensitivity is not None:
        value["sensitivity"] = {
            kind: {name: {"elasticity": each.elasticity, "change": each.change} for name, each in found.items()}
            for kind, found in (("prefill", answer.prefill_sensitivity), ("decode", answer.decode_sensitivity))
        }
    return value


def _print(answer: Estimate, title: str) -> None:
    print_table(
        title,
        ("", "time", "energy"),
        [
            (
                "prefill of the prompt",
                seconds(answer.prefill_s) + _spread(answer.prefill_standard_error_s, answer.prefill_s),
                human(answer.prefill_energy_j, "J") + _spread(answer.prefill_energy_standard_error_j, answer.prefill_energy_j),
            ),
            (
                "decode step",
                seconds(answer.decode_step_s) + _spread(answer.decode_step_standard_error_s, answer.decode_step_s),
                f"{human(answer.decode_energy_j_per_token, 'J')} per token"
                + _spread(answer.decode_energy_standard_error_j_per_token, answer.decode_energy_j_per_token),
            ),
        ],
    )
    _print_errors(answer)
    fits = answer.memory
    print_table(
        "memory",
        ("", "size"),
        [
            ("weights", human(fits.weights_bytes, "B")),
            ("KV cache per token", human(fits.kv_bytes_per_token, "B")),
            ("hidden cache per token", human(fits.hidden_bytes_per_token, "B")),
            ("KV cache budget", f"{fits.kv_token_budget:,} tokens"),
        ],
    )
    for name, rows in (("prefill, last chunk", answer.prefill), ("decode step", answer.decode)):
        if rows:
            _print_breakdown(name, rows)
    if answer.prefill_sensitivity is not None and answer.decode_sensitivity is not None:
        decode = answer.decode_sensitivity
        cells = [
            (name.replace("_", " "), *_cells(each), *_cells(decode[name])) for name, each in answer.prefill_sensitivity.items()
        ]
        print_table(
            "what more of a resource changes (elasticity; time with 10 % more)",
            ("resource", "prefill", "+10 %", "decode", "+10 %"),
            cells,
        )
    if answer.origin == "assumed":
        print_line("Coefficients are assumed, not fitted to measurements of this gpu; times may be off by tens of percent.")


def _cells(each: Sensitivity) -> tuple[str, str]:
    return f"{each.elasticity:+.3f}", f"{each.change:+.1%}"


def _spread(error: float | None, value: float) -> str:
    return "" if error is None else f" +- {error / value:.1%}"


def _print_errors(answer: Estimate) -> None:
    """Say what the figures' standard errors are, and what they leave out."""
    if answer.prefill_standard_error_s is None:
        why = "assumed" if answer.origin == "assumed" else "the measured step law keeps none"
        print_line(f"No standard error: {why}.")
        return
    parts = ["+- is the standard error of the fitted coefficients alone."]
    if answer.prefill_model_error is not None and answer.decode_step_model_error is not None:
        parts.append(
            "Error of the laws on held-out measurements, weighted by time: prefill "
            f"{answer.prefill_model_error:.1%}, decode step {answer.decode_step_model_error:.1%}."
        )
    if answer.not_fitted:
        parts.append(f"Not fitted, so in neither: {', '.join(name.replace('_', ' ') for name in answer.not_fitted)}.")
    print_line(" ".join(parts))


def _print_breakdown(name: str, rows: Sequence[BreakdownRow]) -> None:
    from optsched.cost.breakdown import overhead_share

    total = sum(row.seconds for row in rows)
    cells = [
        (
            row.name,
            seconds(row.seconds),
            f"{row.seconds / total:.1%}",
            human(row.flops, "FLOP"),
            human(row.bytes, "B"),
            row.resource,
        )
        for row in sorted(rows, key=lambda row: -row.seconds)
    ]
    print_table(name, ("operation", "time", "share", "work per GPU", "moved per GPU", "limited by"), cells)
    print_line(f"Overheads of the engine take {overhead_share(rows):.1%} of it.")

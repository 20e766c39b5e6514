"""``optsched run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optsched.cli.output import emit_json, print_line, print_table, progress, warn
from optsched.errors import SpecError
from optsched.report.numbers import seconds
from optsched.report.verdicts import LATENCIES

if TYPE_CHECKING:
    from optsched.domain.log import ExecutionLog
    from optsched.domain.plan import Plan
    from optsched.domain.results import Metrics
    from optsched.report.accuracy import OperationClass

_SCALARS = {"makespan_s": "makespan", "tokens_per_s": "output tokens/s"}


def run(
    plan_file: Path,
    /,
    *,
    backend: Literal["local", "ray"] = "local",
    device: Literal["cpu", "cuda"] = "cpu",
    seed: int = 0,
    time_limit_s: float = 3600.0,
    patience_s: float = 120.0,
    log: Path | None = None,
    timeline: Path | None = None,
    weights: Path | None = None,
    chat: Path | None = None,
    answer_tokens: int = 64,
    json: bool = False,
) -> None:
    """Execute a plan on real torch workers and compare with the prediction.

    With --chat it answers the conversations of a file instead of those that the plan was made for.

    Parameters
    ----------
    plan_file
        A plan file (.json).
    backend
        Where the workers are. local: processes of this machine. ray: actors of the Ray cluster that RAY_ADDRESS names, whose
        nodes offer tiers as resources ("a40@200W"); without it, of one started on this machine for the run.
    device
        What each worker computes on.
    seed
        Seed of prompts, and of the weights where the plan names none.
    time_limit_s
        Give up when the workload takes longer than this.
    patience_s
        Give a worker up that says nothing for so long; its conversations go on elsewhere. No step may take longer.
    log
        Write the execution log to this Parquet file.
    timeline
        Draw what each replica did for which conversation, and how full its cache was, to this .svg or .html file.
    weights
        Weights to run with, in place of what the plan says: a .gguf file, or a folder of safetensors files.
    chat
        Answer the conversations of this file, one per line: {"messages": [{"role": "user", "content": "..."}]}.
        The weights must be a .gguf file with a tokenizer.
    answer_tokens
        Cut answers after so many tokens.
    json
        Print one JSON object.
    """
    from optsched import files, logfile
    from optsched.cli.checks import positive
    from optsched.domain.accounting import measure_plan
    from optsched.report.accuracy import operation_classes, relative_errors
    from optsched.report.timeline import check_timeline, save_timeline
    from optsched.runtime.busy import warning as busy_warning
    from optsched.runtime.device import check_device
    from optsched.traces.loading import load_workload

    check_timeline(timeline)
    limit_s = positive("--time-limit-s", time_limit_s) or time_limit_s
    silence_s = positive("--patience-s", patience_s) or patience_s
    plan = files.load_plan(plan_file)
    if weights is not None:
        plan = plan.replace(llms=tuple(llm.replace(weights=str(weights)) for llm in plan.llms))
    check_device(device if backend == "local" else "cpu")  # of a Ray cluster its nodes say what they have
    if chat is not None:
        from optsched.cli.answers import answer_file

        if backend != "local" or timeline is not None:
            raise SpecError(
                "answers come from local workers and are not drawn; leave out --backend and --timeline", field="--chat"
            )
        answer_file(plan, chat, answer_tokens, device, limit_s, silence_s, log, json=json)
        return
    workload = load_workload(plan.workload)
    if text := busy_warning():
        warn(text)
    from optsched.runtime.cluster import RunInterrupted, WorkerLostError, execute

    try:
        with progress("starting workers", total=workload.num_turns) as advance:
            observed_log = execute(
                plan, workload, seed=seed, device=device, backend=backend, time_limit_s=limit_s, patience_s=silence_s,
                progress=advance,
            )  # fmt: skip
    except WorkerLostError as ended:
        if log is not None:
            logfile.save_log(ended.log, workload, log, plan)
            warn(f"Log so far written to {log}")
        raise
    except RunInterrupted as ended:
        if log is None:
            raise
        logfile.save_log(ended.log, workload, log, plan)
        raise KeyboardInterrupt(f"{ended}; partial log in {log}") from ended
    _warn_of_deaths(observed_log)
    if log is not None:
        logfile.save_log(observed_log, workload, log, plan)
    if timeline is not None:
        save_timeline(plan, observed_log, workload, timeline)
    observed = measure_plan(plan, observed_log, workload, plan.predicted.clock)
    recovered = len({event.conversation for event in observed_log.events if event.kind == "recovered"})
    errors, operations = relative_errors(plan.predicted, observed), operation_classes(observed_log, plan)
    if json:
        emit_json(
            {
                "predicted": plan.predicted.model_dump(mode="json"),
                "observed": observed.model_dump(mode="json"),
                "error": errors,
                "operations": [each.facts() for each in operations],
                "recovered_conversations": recovered,
            }
        )
        return
    _print(plan, observed_log, observed, errors, backend)
    _print_operations(operations)
    if log is not None:
        warn(f"Log written to {log}")
    if timeline is not None:
        warn(f"Timeline written to {timeline}")


def _warn_of_deaths(log: ExecutionLog) -> None:
    for event in log.events:
        if event.kind == "worker_died":
            warn(f"{event.detail}; what it held was computed again elsewhere")


def _print(plan: Plan, log: ExecutionLog, observed: Metrics, errors: dict[str, float], backend: str) -> None:
    rows = []
    for name, title in LATENCIES.items():
        for quantile in ("mean", "p95"):
            values = [getattr(getattr(metrics, name), quantile) for metrics in (plan.predicted, observed)]
            rows.append((f"{title} {quantile}", *(seconds(value) for value in values), _share(errors, f"{name}.{quantile}")))
    for name, title in _SCALARS.items():
        values = [getattr(metrics, name) for metrics in (plan.predicted, observed)]
        written = [seconds(value) if name.endswith("_s") and name != "tokens_per_s" else f"{value:.4g}" for value in values]
        rows.append((title, *written, _share(errors, name)))
    title = f"Run on {backend} workers: {plan.llms[0].name}, placement {plan.placement.policy}, batching {plan.batching.policy}"
    print_table(title, ("", "predicted", "observed", "error"), rows)
    print_line(
        f"{observed.tokens.output:,} output tokens, {log.iterations:,} steps, {len(log.transfers.start_s):,} transfers, "
        f"{log.preemptions:,} preemptions; {observed.slo_attainment:.1%} of conversations meet every target"
    )


def _print_operations(classes: list[OperationClass]) -> None:
    """Print how long the operations of each kind took against the cost model, and which have drifted."""
    from optsched.report.drift import drift_in_words

    rows = [
        (
            each.name, f"{len(each.start_s):,}", seconds(float(each.predicted_s.mean())), seconds(float(each.observed_s.mean())),
            "-" if each.error is None else f"{each.error:+.1%}",
        )
        for each in classes
    ]  # fmt: skip
    print_table("Operations, each against the cost model", ("", "count", "predicted", "observed", "error"), rows)
    print_line(drift_in_words(classes))


def _share(errors: dict[str, float], name: str) -> str:
    return f"{errors[name]:+.1%}" if name in errors else "-"

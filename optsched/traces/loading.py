"""Resolve a scenario's workload into something a plan can name, and rebuild exactly those conversations from it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from optsched import catalog
from optsched.domain.plan import PlanWorkload
from optsched.domain.scenario import WorkloadSpec
from optsched.domain.workload import Arrivals, Recipe, Workload
from optsched.errors import SpecError
from optsched.files import canonical_sha256, sha256_of, spec_error
from optsched.traces.arrivals import arrival_times
from optsched.traces.importers import import_trace
from optsched.traces.synthesis import synthesise


def describe_workload(
    spec: WorkloadSpec,
    base: Path | None,
    trace: Path | None = None,
    rate_per_s: float | None = None,
    seed: int | None = None,
) -> PlanWorkload:
    """Return the workload that a scenario and the command line ask for, as a plan records it.

    Parameters
    ----------
    spec
        The scenario's workload; its source is a packaged recipe's name, a recipe's path (.toml) or a trace's path.
    base
        Folder that a path in `spec` is relative to: the scenario file's; None: the current one.
    trace
        Use this trace or recipe file instead of the source, relative to the current folder.
    rate_per_s
        Use this arrival rate; process ``trace`` is rescaled to it.
    seed
        Use this seed for arrivals and lengths.

    Raises
    ------
    UnknownNameError
        If the source is a name that no recipe has.
    SpecError
        If a file is missing or wrong, the process has no rate, or a recipe has no number of conversations.
    """
    arrivals = _arrivals(spec.arrivals, rate_per_s, seed)
    source = _source(spec.source, base) if trace is None else _source(str(trace), None, is_path=True)
    cut = {"seed": arrivals.seed, "conversations": spec.conversations, "turns": spec.turns, "arrivals": arrivals}
    if isinstance(source, Recipe):
        if spec.conversations is None:
            raise SpecError("missing; a recipe has no end, so say how many conversations", field="workload.conversations")
        return PlanWorkload.model_validate({"recipe": source, "sha256": canonical_sha256(source), **cut})
    return PlanWorkload.model_validate({"trace": str(source), "sha256": sha256_of(source), **cut})


def _arrivals(arrivals: Arrivals, rate_per_s: float | None, seed: int | None) -> Arrivals:
    changes: dict[str, object] = {}
    if rate_per_s is not None:
        changes["rate_per_s"] = rate_per_s
    if seed is not None:
        changes["seed"] = seed
    try:
        return arrivals.replace(**changes)
    except ValidationError as error:
        found = spec_error(error)
        raise SpecError(found.reason, field=".".join(filter(None, ("workload.arrivals", found.field)))) from error


def _source(name: str, base: Path | None, *, is_path: bool = False) -> Recipe | Path:
    """Return the recipe, or the trace's absolute path, that a source names."""
    path = Path(name) if base is None else base / name
    looks_like_path = is_path or bool(path.suffix) or os.sep in name
    if not looks_like_path and name in catalog.recipes():
        return catalog.recipe(name)
    if not looks_like_path and not path.exists():
        return catalog.recipe(name)  # says that there is none, and which there are
    if path.is_dir():
        raise SpecError("a folder; make a trace of it first with: optsched trace import FOLDER --out TRACE.parquet", file=path)
    if not path.is_file():
        raise SpecError("no such file; check the path", file=path)
    return catalog.recipe(str(path)) if path.suffix == ".toml" else Path(os.path.abspath(path))


def load_workload(described: PlanWorkload) -> Workload:
    """Return the conversations that a plan's workload describes, with their arrivals.

    Raises
    ------
    SpecError
        If the trace or recipe is no longer the one described, has too few conversations, or has no arrival times although
        the process is ``trace``.
    """
    wanted = described.conversations
    if described.recipe is not None:
        if canonical_sha256(described.recipe) != described.sha256:
            raise SpecError("does not fit the recipe: it was edited after planning; plan again", field="workload.sha256")
        if wanted is None:
            raise SpecError("missing; a recipe has no end, so say how many conversations", field="workload.conversations")
        workload = synthesise(described.recipe, wanted, described.seed)
    else:
        workload = _load_trace(Path(described.trace or ""), described.sha256)
        if wanted is not None and wanted > workload.num_conversations:
            reason = f"{wanted}: the trace has only {workload.num_conversations} conversations; ask for fewer"
            raise SpecError(reason, file=described.trace, field="workload.conversations")
    workload = workload.head(wanted, described.turns)
    recorded = workload.arrival_s if workload.arrivals_known else None
    times = arrival_times(described.arrivals, workload.num_conversations, recorded)
    return workload.with_arrivals(times, described.arrivals.concurrency)


def _load_trace(path: Path, sha256: str) -> Workload:
    if sha256_of(path) != sha256:
        raise SpecError("changed since it was planned for; restore the file, or plan again", file=path)
    return import_trace(path)

"""Turn a plan into the files of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from optsched.domain.plan import Plan
from optsched.export.documented import Target, engine
from optsched.export.notes import notes
from optsched.export.serving import Serving, servings


@dataclass(frozen=True, slots=True)
class Exported:
    """Files by relative path, what they cannot say, and the servers that they start."""

    files: dict[str, str]
    notes: list[str]
    servings: list[Serving]


def export_plan(plan: Plan, target: Target, *, model: str | None = None) -> Exported:
    """Return a plan as launch commands or manifests, with a file of notes.

    Parameters
    ----------
    plan
        What to export.
    target
        ``vllm``: shell scripts. ``llm-d``, ``dynamo``: Kubernetes manifests.
    model
        Weights to serve instead of those that the plan names: a name at Hugging Face or a folder.

    Raises
    ------
    SpecError
        If the target cannot hold the plan.
    PlanError
        If a replica's cache does not fit its cards.
    """
    found = servings(plan, model)
    if target == "vllm":
        from optsched.export.shell import shell_files

        files = shell_files(plan, found)
    elif target == "llm-d":
        from optsched.export.llm_d import llm_d_files

        files = llm_d_files(plan, found)
    else:
        from optsched.export.dynamo import dynamo_files

        files = dynamo_files(plan, found)
    told = notes(plan, target, found)
    title = f"What the export to {engine(target).title} cannot say, or needs besides"
    files["NOTES.md"] = "\n".join([f"# {title}", "", *(f"- {note}" for note in told), ""])
    return Exported(files, told, found)

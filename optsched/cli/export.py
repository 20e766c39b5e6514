"""``optsched export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optsched.cli.output import emit_json, print_line, warn

if TYPE_CHECKING:
    from optsched.export.serving import Serving


def export(
    plan_file: Path,
    /,
    *,
    to: Literal["vllm", "llm-d", "dynamo"],
    out: Path,
    model: str | None = None,
    json: bool = False,
) -> None:
    """Write a plan as launch commands or manifests of an engine that people run.

    What the engine cannot be told stands in NOTES.md, one line each. Only options that the engine documents are written.

    Parameters
    ----------
    plan_file
        A plan file (.json).
    to
        vllm: a script per replica and one that starts all. llm-d: Kubernetes Deployments and the router's values. dynamo: a
        DynamoGraphDeployment.
    out
        A folder, absent or empty.
    model
        Weights to serve, by their name at Hugging Face or in a folder, instead of those that the plan names.
    json
        Print one JSON object.
    """
    from optsched.export.export import export_plan
    from optsched.export.folder import check_folder, write_folder
    from optsched.files import load_plan

    check_folder(out)
    exported = export_plan(load_plan(plan_file), to, model=model)
    write_folder(out, exported.files)
    if json:
        emit_json(
            {
                "to": to,
                "out": str(out),
                "files": sorted(exported.files),
                "notes": exported.notes,
                "replicas": _replicas(exported.servings),
            }
        )
        return
    for name in sorted(exported.files):
        print_line(str(out / name))
    for note in exported.notes:
        warn(f"Note: {note}.")


def _replicas(found: list[Serving]) -> list[dict[str, object]]:
    return [
        {"id": each.replica.id, "role": each.replica.role, "model": each.model, "gpus": each.gpus, "options": dict(each.options)}
        for each in found
    ]

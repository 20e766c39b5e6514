"""Where ``optsched calibrate`` writes a tier file, and what stands in it."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optsched.cost.calibrate import FitReport
    from optsched.domain.hardware import FittedStepLaw, Gpu


def target_file(gpu_name: str, out: Path | None) -> Path:
    """Return the file to write: the one asked for, or the one in the user's own specs folder, which is made.

    Raises
    ------
    SpecError
        If the folder does not exist or cannot be made.
    """
    from optsched import catalog
    from optsched.errors import SpecError

    target = out or catalog.user_models() / "gpus" / f"{gpu_name}.toml"
    if out is None:
        make_folder(target.parent)
    elif not target.parent.is_dir():
        raise SpecError("no such folder; make it, or choose another --out", file=target.parent)
    return target


def make_folder(folder: Path) -> None:
    """Make a folder.

    Raises
    ------
    SpecError
        If it cannot be made.
    """
    from optsched.errors import SpecError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"cannot be made: {error.strerror}; name a file with --out, or set OPTSCHED_MODELS", file=folder
        ) from error


def today() -> str:
    """Return the date, as fits record it."""
    return datetime.now(UTC).date().isoformat()


def fitted_step_law(llm_name: str, tp: int, report: FitReport, how: str) -> FittedStepLaw:
    """Return a step law with where it comes from.

    Parameters
    ----------
    llm_name, tp, report
        What was fitted.
    how
        Where the steps come from, for example ``measured on this machine by 'optsched calibrate'``.
    """
    from optsched.domain.hardware import FittedStepLaw

    origin = (
        f"{how} on {today()}: {report.num_steps} steps, mean absolute error of held-out steps {report.heldout_mape:.1%}; "
        "energy is assumed"
    )
    return FittedStepLaw(llm=llm_name, tp=tp, origin=origin, law=report.law)


def tier_text(gpu: Gpu, laws: Sequence[FittedStepLaw]) -> str:
    """Return a tier file: the facts as they stand in the gpu's file, and the step laws, new ones in place of old ones.

    Parameters
    ----------
    gpu
        The tier as it is known now, with the step laws it has.
    laws
        New step laws.

    Raises
    ------
    UnknownNameError
        If the gpu has no file.
    """
    from optsched import catalog
    from optsched.files import read_text

    facts = read_text(catalog.gpu_path(gpu.name)).partition("[[step_laws]]")[0].rstrip()
    renewed = {(law.llm, law.tp) for law in laws}
    kept = [law for law in gpu.step_laws if (law.llm, law.tp) not in renewed]
    return "\n\n".join([facts, *(_law_text(law) for law in (*kept, *laws))]) + "\n"


def _law_text(fitted: FittedStepLaw) -> str:
    head = {"llm": fitted.llm, "tp": fitted.tp, "origin": fitted.origin}
    lines = ["[[step_laws]]", *(f"{key} = {json_text.dumps(value)}" for key, value in head.items()), "", "[step_laws.law]"]
    return "\n".join(
        [*lines, *(f"{key} = {json_text.dumps(value)}" for key, value in fitted.law.model_dump(mode="json").items())]
    )

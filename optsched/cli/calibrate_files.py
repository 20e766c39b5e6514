"""``optsched calibrate`` from files: published measurements of operators, or the log of our own workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optsched.cli.link_writing import fitted_link, link_facts, link_in_words, write_link
from optsched.cli.output import emit_json, print_line, print_table, warn
from optsched.cli.tier_writing import fitted_step_law, target_file, tier_text, today

if TYPE_CHECKING:
    from optsched.cost.log_fit import LogFit
    from optsched.domain.fit import Fit
    from optsched.domain.hardware import Link

_HIGH_ERROR = 0.25


def calibrate_log(gpu_name: str | None, path: Path, seed: int, out: Path | None, as_json: bool) -> None:
    """Fit the step laws of a gpu, and of a machine the link between its workers, to the log of an execution; write their files.

    Parameters
    ----------
    gpu_name
        The gpu; None: the one that all replicas of the log stand on.
    path, seed, out, as_json
        As the command's.

    Raises
    ------
    SpecError
        If the file is no log with a plan, or its replicas stand on several gpus and none is named.
    """
    from optsched import catalog
    from optsched.cost.link_fit import fit_logged_link
    from optsched.cost.log_fit import fit_log, logged_gpus
    from optsched.errors import SpecError
    from optsched.files import write_atomically
    from optsched.logfile import load_log

    log, plan = load_log(path)
    if plan is None:
        raise SpecError("the log names no plan, so its replicas are unknown; give a log that 'optsched run' wrote", file=path)
    names = logged_gpus(plan)
    if gpu_name is None and len(names) > 1:
        raise SpecError(f"the log's replicas stand on {', '.join(names)}; choose one with --tier", file=path)
    gpu = catalog.gpu(gpu_name or names[0])
    fits = fit_log(log, plan, gpu, seed=seed)
    target = target_file(gpu.name, out)
    how = f"fitted by 'optsched calibrate' to the log {path.name}"
    laws = [fitted_step_law(each.llm.name, each.tp, each.report, f"{how} at {each.power_cap_w:g} W") for each in fits]
    write_atomically(target, tier_text(gpu, laws).encode())
    moves = fit_logged_link(log, plan, gpu)
    link = fitted_link(gpu, moves, how) if moves is not None else None
    link_file = write_link(link, target) if link is not None else None
    _report_log(fits, link, target, link_file, as_json)


def _report_log(fits: Sequence[LogFit], link: Link | None, target: Path, link_file: Path | None, as_json: bool) -> None:
    for each in fits:
        _warn_if_high(f"the step law of {each.llm.name}", each.report.heldout_mape)
    if as_json:
        laws = [
            {
                "llm": each.llm.name, "tp": each.tp, "num_steps": each.report.num_steps,
                "train_mape": each.report.train_mape, "heldout_mape": each.report.heldout_mape,
                "law": each.report.law.model_dump(mode="json"),
            }
            for each in fits
        ]  # fmt: skip
        emit_json({"out": str(target), "step_laws": laws, **link_facts(link, link_file)})
        return
    cells = [
        (each.llm.name, each.tp, each.report.num_steps, f"{each.report.train_mape:.1%}", f"{each.report.heldout_mape:.1%}")
        for each in fits
    ]
    print_table("Step laws fitted to the log", ("llm", "tp", "steps", "error", "held-out error"), cells)
    if link is not None:
        print_line(link_in_words(link))
    print_line(f"Written to {target}" + (f" and {link_file}" if link_file else ""))


def calibrate_profile(gpu_name: str, path: Path, out: Path | None, as_json: bool) -> None:
    """Fit the laws of a gpu to published measurements and write them into its tier file, which otherwise stays as it is.

    Parameters
    ----------
    gpu_name, path, out, as_json
        As the command's.

    Raises
    ------
    SpecError
        If nothing there is a known table, or one is damaged.
    """
    from optsched import catalog
    from optsched.cost.profile_fit import fit_profile
    from optsched.files import read_text, write_atomically
    from optsched.tier_file import with_tables

    gpu = catalog.gpu(gpu_name)
    found = fit_profile(gpu, path, today())
    for note in found.ignored:
        warn(note)
    text = with_tables(read_text(catalog.gpu_path(gpu.name)), {f"efficiency.{name}": law for name, law in found.laws.items()})
    target = target_file(gpu.name, out)
    write_atomically(target, text.encode())
    _report_laws(found.fits, target, as_json)


def _report_laws(fits: Mapping[str, Fit], target: Path, as_json: bool) -> None:
    for name, fit in fits.items():
        _warn_if_high(name, max(fit.heldout_shapes_mape or 0.0, fit.heldout_llms_mape or 0.0))
    if as_json:
        emit_json({"out": str(target), "laws": {name: fit.model_dump(mode="json") for name, fit in fits.items()}})
        return
    cells = [
        (
            name,
            fit.num_rows,
            sum(fit.rows_left_out.values()),
            f"{fit.train_mape:.1%}",
            _percent(fit.heldout_shapes_mape),
            _percent(fit.heldout_llms_mape),
        )
        for name, fit in fits.items()
    ]
    columns = ("law", "rows", "left out", "error", "held-out shapes", "held-out llms")
    print_table("Laws fitted to the measurements", columns, cells)
    print_line(f"Written to {target}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _warn_if_high(what: str, error: float) -> None:
    if error > _HIGH_ERROR:
        warn(f"{what} is {error:.0%} off on measurements it was not fitted to, more than {_HIGH_ERROR:.0%}; do not rely on it")

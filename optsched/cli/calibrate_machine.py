"""``optsched calibrate`` of this machine: measure workers on it, and write its tier and link files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optsched.cli.link_writing import fitted_link, link_facts, link_in_words, write_link
from optsched.cli.output import emit_json, print_line, print_table, progress, warn
from optsched.cli.tier_writing import fitted_step_law, target_file, tier_text

if TYPE_CHECKING:
    from optsched.cost.calibrate import FitReport
    from optsched.domain.hardware import Gpu, Link
    from optsched.domain.llm import Llm
    from optsched.runtime.measure import Measured


def calibrate_machine(
    tier: str,
    llm: tuple[str, ...],
    replicas: int,
    seconds: float,
    seed: int,
    device: Literal["cpu", "cuda"],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure this machine, fit a step law per llm, and write the tier file; the arguments are the command's.

    Raises
    ------
    SpecError
        If an argument is out of range, or the tier does not stand for this machine.
    """
    from optsched import catalog
    from optsched.cli.checks import positive
    from optsched.errors import SpecError
    from optsched.files import write_atomically
    from optsched.runtime.busy import warning as busy_warning
    from optsched.runtime.device import check_device

    budget_s = positive("--seconds", seconds) or seconds
    if not llm:
        raise SpecError("name at least one llm to measure", field="--llm")
    if replicas < 1:
        raise SpecError(f"{replicas}: measure at least one worker", field="--replicas")
    gpu = catalog.gpu(tier)
    if not gpu.shared_host:
        raise SpecError(
            f"{gpu.name!r} does not stand for this machine; only shared-host tiers are measured: local-cpu. Give measurements "
            "of other gpus with --profile or --from",
            field="--tier",
        )
    check_device(device)
    shapes = [catalog.llm(name) for name in llm]
    target = target_file(gpu.name, out)
    if text := busy_warning():
        warn(text)
    measured: list[tuple[Llm, Measured, FitReport]] = []
    for shape in shapes:
        measured.append((shape, *_measure(gpu, shape, replicas, seed, budget_s, device)))
    how = f"measured on this machine by 'optsched calibrate' with seed {seed}"
    laws = [fitted_step_law(shape.name, 1, report, how) for shape, _, report in measured]
    write_atomically(target, tier_text(gpu, laws).encode())
    link = _link(gpu, measured[-1][1], how)
    link_file = write_link(link, target) if link is not None else None
    _report(target, measured, link, link_file, as_json)


def _measure(gpu: Gpu, llm: Llm, replicas: int, seed: int, budget_s: float, device: str) -> tuple[Measured, FitReport]:
    from concurrent.futures import ThreadPoolExecutor

    from optsched import catalog
    from optsched.cost.jitter import fit_shared_law
    from optsched.cost.tables import step_law
    from optsched.domain.hardware import Tier
    from optsched.runtime.measure import measure_steps

    bare = gpu.replace(step_laws=())
    tier, link = Tier(bare, bare.datasheet.power_w), catalog.link(bare.datasheet.interconnect)
    with progress(f"measuring {llm.name}", total=budget_s) as advance, ThreadPoolExecutor(1) as beside:
        prior = beside.submit(step_law, llm, tier, link=link)  # while the workers start, which takes about as long
        measured = measure_steps(
            llm, replicas=range(1, replicas + 1), seed=seed, seconds_budget=budget_s, device=device, progress=advance,
            once_warm=prior.result,
        )  # fmt: skip
    return measured, fit_shared_law(measured.steps, measured.durations_s, prior=prior.result(), seed=seed)


def _link(gpu: Gpu, measured: Measured, how: str) -> Link | None:
    from optsched.cost.link_fit import fit_link

    if not len(measured.handover_s):
        return None
    return fitted_link(gpu, fit_link(measured.handover_bytes, measured.handover_s, measured.handover_busy), how)


def _report(
    target: Path, measured: list[tuple[Llm, Measured, FitReport]], link: Link | None, link_file: Path | None, as_json: bool
) -> None:
    if as_json:
        emit_json(
            {
                "out": str(target),
                "step_laws": [
                    {
                        "llm": llm.name, "num_steps": report.num_steps, "train_mape": report.train_mape,
                        "heldout_mape": report.heldout_mape, "busy_slowdown": list(report.law.busy_slowdown),
                        "law": report.law.model_dump(mode="json"),
                    }
                    for llm, _, report in measured
                ],
                **link_facts(link, link_file),
            }
        )  # fmt: skip
        return
    rows = [
        (
            llm.name, report.num_steps, f"{report.train_mape:.1%}", f"{report.heldout_mape:.1%}",
            " / ".join(f"{factor:.2f}" for factor in report.law.busy_slowdown),
        )
        for llm, _, report in measured
    ]  # fmt: skip
    print_table(
        "Step laws measured on this machine", ("llm", "steps", "error", "held-out error", "slow-down 1, 2, .. busy"), rows
    )
    if link is not None:
        print_line(link_in_words(link))
    print_line(f"Written to {target}" + (f" and {link_file}" if link_file else ""))

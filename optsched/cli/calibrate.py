"""``optsched calibrate``."""

from __future__ import annotations

import json as json_text
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optsched.cli.output import emit_json, print_line, print_table, progress, warn

if TYPE_CHECKING:
    from optsched.cost.calibrate import FitReport
    from optsched.domain.hardware import FittedStepLaw, Gpu, Link
    from optsched.domain.llm import Llm
    from optsched.runtime.measure import Measured

# Not a seed that a run starts with by default: what is judged later has not been learned from.
_SEED = 20_001


def calibrate(
    *,
    tier: str = "local-cpu",
    llm: tuple[str, ...] = ("demo-qwen3",),
    replicas: int = 3,
    seconds: float = 12.0,
    seed: int = _SEED,
    device: Literal["cpu", "cuda"] = "cpu",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure this machine and write its tier file.

    Parameters
    ----------
    tier
        A gpu that stands for this machine.
    llm
        Language models to measure, with random weights; a step law is fitted for each.
    replicas
        Measure with 1, 2, ... up to so many workers busy at once.
    seconds
        Time to spend on each llm, start of the workers apart.
    seed
        Seed of weights, lengths and prompts; runs that are judged later should use another.
    device
        What each worker computes on.
    out
        The tier file to write; by default where later plans find it, in your own specs folder.
    json
        Print one JSON object.
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
    card, _, cap = tier.partition("@")
    if cap:
        raise SpecError(f"{tier!r}: a power cap cannot be set here; name the gpu alone, {card!r}", field="--tier")
    gpu = catalog.gpu(card)
    if not gpu.shared_host:
        raise SpecError(
            f"{gpu.name!r} does not stand for this machine; only shared-host tiers are measured: local-cpu", field="--tier"
        )
    check_device(device)
    shapes = [catalog.llm(name) for name in llm]
    target = out or catalog.user_models() / "gpus" / f"{gpu.name}.toml"
    if out is None:
        _make_folder(target.parent)
    elif not target.parent.is_dir():
        raise SpecError("no such folder; make it, or choose another --out", file=target.parent)
    if text := busy_warning():
        warn(text)
    measured: list[tuple[Llm, Measured, FitReport]] = []
    for shape in shapes:
        measured.append((shape, *_measure(gpu, shape, replicas, seed, budget_s, device)))
    laws = [_fitted(shape, report, seed) for shape, _, report in measured]
    write_atomically(target, tier_text(gpu, laws).encode())
    link = _link(measured[-1][1])
    link_file = _write_link(link, target) if link is not None else None
    _report(target, measured, link, link_file, json)


def _make_folder(folder: Path) -> None:
    from optsched.errors import SpecError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"cannot be made: {error.strerror}; name a file with --out, or set OPTSCHED_MODELS", file=folder
        ) from error


def _measure(gpu: Gpu, llm: Llm, replicas: int, seed: int, budget_s: float, device: str) -> tuple[Measured, FitReport]:
    from optsched import catalog
    from optsched.cost.calibrate import fit_step_law
    from optsched.cost.tables import step_law
    from optsched.domain.hardware import Tier
    from optsched.runtime.measure import measure_steps

    with progress(f"measuring {llm.name}", total=budget_s) as advance:
        measured = measure_steps(
            llm, replicas=range(1, replicas + 1), seed=seed, seconds_budget=budget_s, device=device, progress=advance
        )
    bare = gpu.replace(step_laws=())
    prior = step_law(llm, Tier(bare, bare.datasheet.power_w), link=catalog.link(bare.datasheet.interconnect))
    return measured, fit_step_law(measured.steps, durations_s=measured.durations_s, prior=prior, seed=seed)


def _fitted(llm: Llm, report: FitReport, seed: int) -> FittedStepLaw:
    from optsched.domain.hardware import FittedStepLaw

    day = datetime.now(UTC).date().isoformat()
    origin = (
        f"measured on this machine by 'optsched calibrate' on {day}: {report.num_steps} steps, seed {seed}, mean absolute "
        f"error of held-out steps {report.heldout_mape:.1%}; energy is assumed"
    )
    return FittedStepLaw(llm=llm.name, origin=origin, law=report.law)


def tier_text(gpu: Gpu, laws: list[FittedStepLaw]) -> str:
    """Return a tier file: the packaged facts as they stand there, and the step laws, new ones in place of old ones.

    Parameters
    ----------
    gpu
        The tier as it is known now, with the step laws it has.
    laws
        New step laws.

    Raises
    ------
    SpecError
        If the packaged facts are missing.
    """
    from optsched import catalog
    from optsched.files import read_text

    facts = read_text(catalog.data_root() / "models" / "gpus" / f"{gpu.name}.toml").partition("[[step_laws]]")[0].rstrip()
    renewed = {(law.llm, law.tp) for law in laws}
    kept = [law for law in gpu.step_laws if (law.llm, law.tp) not in renewed]
    return "\n\n".join([facts, *(_law_text(law) for law in (*kept, *laws))]) + "\n"


def _law_text(fitted: FittedStepLaw) -> str:
    head = {"llm": fitted.llm, "tp": fitted.tp, "origin": fitted.origin}
    lines = ["[[step_laws]]", *(f"{key} = {json_text.dumps(value)}" for key, value in head.items()), "", "[step_laws.law]"]
    return "\n".join(
        [*lines, *(f"{key} = {json_text.dumps(value)}" for key, value in fitted.law.model_dump(mode="json").items())]
    )


def _link(measured: Measured) -> Link | None:
    from optsched import catalog

    if not len(measured.handover_s):
        return None
    latency_s, bytes_per_s = measured.link()
    day, count = datetime.now(UTC).date().isoformat(), len(measured.handover_s)
    source = f"measured on this machine by 'optsched calibrate' on {day}: {count} hand-overs of cache over gloo"
    return catalog.link("loopback").replace(latency_s=latency_s, bytes_per_s=bytes_per_s, source=source)


def _write_link(link: Link, tier_file: Path) -> Path | None:
    """Write the link where plans that find the tier file find it too: a ``links`` folder beside its ``gpus`` folder."""
    from optsched.files import write_atomically

    if tier_file.resolve().parent.name != "gpus":
        return None
    path = tier_file.resolve().parent.parent / "links" / f"{link.name}.toml"
    _make_folder(path.parent)
    fields = {
        "schema": "optsched/link", "version": 1, "name": link.name, "title": link.title, "bandwidth": link.bytes_per_s,
        "latency": link.latency_s, "joules_per_byte": link.joules_per_byte, "source": link.source,
    }  # fmt: skip
    write_atomically(path, "".join(f"{key} = {json_text.dumps(value)}\n" for key, value in fields.items()).encode())
    return path


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
                "link": None if link is None else {"latency_s": link.latency_s, "bytes_per_s": link.bytes_per_s},
                "link_out": None if link_file is None else str(link_file),
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
        print_line(f"Hand-over of cache: {link.latency_s * 1e3:.3g} ms + bytes / ({link.bytes_per_s / 1e9:.3g} GB/s)")
    print_line(f"Written to {target}" + (f" and {link_file}" if link_file else ""))

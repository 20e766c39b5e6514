"""``optsched calibrate``: measure this machine, or fit a tier to measurements of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

# Not a seed that a run starts with by default: what is judged later has not been learned from.
_SEED = 20_001


def calibrate(
    *,
    tier: str | None = None,
    profile: Path | None = None,
    log: Annotated[Path | None, Parameter(name="--from")] = None,
    llm: tuple[str, ...] = ("demo-qwen3",),
    replicas: int = 3,
    seconds: float = 9.0,
    seed: int = _SEED,
    device: Literal["cpu", "cuda"] = "cpu",
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure this machine and write its tier file, or fit a tier's file to measurements.

    Parameters
    ----------
    tier
        A gpu, without a power cap. Unless --profile or --from is given it stands for this machine: local-cpu.
    profile
        Published measurements of operators, collectives or whole steps on that gpu: a file, or a folder that is searched.
        What kind of table each file is shows in its content. Steps give an engine's overheads, on top of the gpu's laws.
    log
        Log of an 'optsched run'; the step laws of the llms that ran are fitted to what the workers did, and of workers on this
        machine the link between them, too.
    llm
        Language models to measure, with random weights; a step law is fitted for each.
    replicas
        Measure with 1, 2, ... up to so many workers busy at once.
    seconds
        Time to spend on each llm, start of the workers apart.
    seed
        Seed of weights, lengths and prompts, and of what is held out; runs that are judged later should use another.
    device
        What each worker computes on.
    out
        The tier file to write; by default where later plans find it, in your own specs folder.
    json
        Print one JSON object.
    """
    from optsched.errors import SpecError

    card, _, cap = (tier or "").partition("@")
    if cap:
        raise SpecError(f"{tier!r}: a power cap cannot be set here; name the gpu alone, {card!r}", field="--tier")
    if profile is not None and log is not None:
        raise SpecError("--profile and --from exclude each other; fit to one, then to the other", field="--profile")
    if profile is not None:
        from optsched.cli.calibrate_files import calibrate_profile

        if tier is None:
            raise SpecError("name the gpu that the measurements are of", field="--tier")
        calibrate_profile(card, profile, out, json)
    elif log is not None:
        from optsched.cli.calibrate_files import calibrate_log

        calibrate_log(card or None, log, seed, out, json)
    else:
        from optsched.cli.calibrate_machine import calibrate_machine

        calibrate_machine(card or "local-cpu", llm, replicas, seconds, seed, device, out, json)

"""Find gpus, llms, links, workload recipes and scenarios by name, in the packaged data and in the user's own folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from optsched.domain.hardware import Gpu, Link, Tier
from optsched.domain.inheritance import inherited
from optsched.domain.llm import Llm
from optsched.domain.scenario import Scenario
from optsched.domain.workload import Recipe
from optsched.errors import SpecError, UnknownNameError
from optsched.files import load

RecordT = TypeVar("RecordT", bound=BaseModel)


def data_root() -> Path:
    """Return the folder that holds ``models`` and ``instances``: inside an installed wheel, or the checkout's root."""
    packaged = Path(str(resources.files("optsched"))) / "_data"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent


def user_models() -> Path:
    """Return the folder of the user's own specs: ``$OPTSCHED_MODELS``, or the platform's data folder."""
    if named := os.environ.get("OPTSCHED_MODELS"):
        return Path(named)
    from platformdirs import user_data_path

    return user_data_path("optsched") / "models"


def _folders(kind: str) -> Iterator[Path]:
    yield user_models() / kind
    yield data_root() / "models" / kind


def _names(folders: Iterator[Path]) -> list[str]:
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.toml")})


def _path(schema: str, folders: list[Path], name: str, knob: str) -> Path:
    for folder in folders:
        if f"{name}.toml" in {path.name for path in folder.glob("*.toml")}:
            return folder / f"{name}.toml"
    raise UnknownNameError(schema, name, _names(iter(folders)), knob)


def _find(record: type[RecordT], schema: str, folders: list[Path], name: str, knob: str) -> RecordT:
    return load(record, schema, _path(schema, folders, name, knob))


@lru_cache(maxsize=256)
def _gpu_as_of(path: Path, modified_ns: int, size: int) -> Gpu:
    """Read a gpu's file, once as long as it does not change: a tier file takes tens of milliseconds to parse."""
    return load(Gpu, "gpu", path)


def gpus() -> list[str]:
    """Return the names of all gpus."""
    return _names(_folders("gpus"))


def llms() -> list[str]:
    """Return the names of all llms."""
    return _names(_folders("llms"))


def links() -> list[str]:
    """Return the names of all links."""
    return _names(_folders("links"))


def recipes() -> list[str]:
    """Return the names of all packaged workload recipes."""
    return _names(iter([data_root() / "instances" / "workloads"]))


def scenarios() -> list[str]:
    """Return the names of all packaged scenarios."""
    return _names(iter([data_root() / "instances" / "scenarios"]))


def gpu_path(name: str) -> Path:
    """Return the file of a gpu: the user's own before the packaged one.

    Raises
    ------
    UnknownNameError
        If there is no such gpu.
    """
    return _path("gpu", list(_folders("gpus")), name, "Add your own as gpus/NAME.toml in the folder $OPTSCHED_MODELS.")


def gpu(name: str) -> Gpu:
    """Return a gpu by name; what its file leaves out of its efficiency is that of the sibling it names.

    Raises
    ------
    UnknownNameError
        If there is no such gpu.
    SpecError
        If its file is wrong, or siblings name each other in a circle.
    """
    return _with_siblings(name, ())


def _with_siblings(name: str, before: tuple[str, ...]) -> Gpu:
    path = gpu_path(name)
    if name in before:
        circle = " -> ".join((*before, name))
        raise SpecError(f"siblings name each other: {circle}; let one file stand alone", file=path, field="efficiency.sibling")
    stat = path.stat()
    found = _gpu_as_of(path, stat.st_mtime_ns, stat.st_size)
    if found.efficiency.sibling is None:
        return found
    return inherited(found, _with_siblings(found.efficiency.sibling, (*before, name)))


def link(name: str) -> Link:
    """Return a link by name.

    Raises
    ------
    UnknownNameError
        If there is no such link.
    """
    return _find(Link, "link", list(_folders("links")), name, "Add your own as links/NAME.toml in the folder $OPTSCHED_MODELS.")


def tier(name: str) -> Tier:
    """Return a tier written ``gpu@WATTS`` (``a40@200W``); without a cap, at the board power.

    Raises
    ------
    UnknownNameError
        If there is no such gpu.
    SpecError
        If the cap cannot be read or lies outside the card's range.
    """
    from optsched.units import parse_quantity

    card, _, cap = name.partition("@")
    found = gpu(card)
    if not cap:
        return Tier(found, found.datasheet.power_w)
    try:
        watts = parse_quantity(cap if not cap.replace(".", "", 1).isdigit() else float(cap), "W")
    except ValueError as error:
        raise SpecError(f"tier {name!r}: {error}") from error
    return Tier(found, watts)


def llm(name: str) -> Llm:
    """Return an llm by name, or read from a Hugging Face ``config.json`` by path.

    Raises
    ------
    UnknownNameError
        If there is no such llm.
    SpecError
        If its file is wrong, or the config is of an unsupported architecture.
    """
    if name.endswith(".json") or os.sep in name:
        from optsched.huggingface import read_config

        return read_config(Path(name))
    return _find(
        Llm, "llm", list(_folders("llms")), name,
        "Add your own as llms/NAME.toml in the folder $OPTSCHED_MODELS, or give the path of a Hugging Face config.json.",
    )  # fmt: skip


def recipe(name: str) -> Recipe:
    """Return a workload recipe by name, or from a TOML file by path.

    Raises
    ------
    UnknownNameError
        If there is no such recipe.
    """
    if name.endswith(".toml"):
        return load(Recipe, "workload", name)
    return _find(
        Recipe,
        "workload",
        [data_root() / "instances" / "workloads"],
        name,
        "Or give the path of a recipe (.toml) or a trace file.",
    )


def scenario_path(name: str) -> Path:
    """Return the path of a scenario given by path or by packaged name.

    Raises
    ------
    UnknownNameError
        If it is neither.
    """
    path = Path(name)
    if path.suffix == ".toml" or os.sep in name or os.path.isfile(name):
        if not path.is_file():
            raise SpecError("no such file; check the path, or use a packaged name from 'optsched show scenarios'", file=path)
        return path
    if name not in scenarios():
        raise UnknownNameError("scenario", name, scenarios(), "Or give the path of a scenario file.")
    return data_root() / "instances" / "scenarios" / f"{name}.toml"


def scenario(name: str) -> Scenario:
    """Return a scenario by path or packaged name.

    Raises
    ------
    UnknownNameError, SpecError
        If it does not exist or is wrong.
    """
    return load(Scenario, "scenario", scenario_path(name))

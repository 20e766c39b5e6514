"""Fit a gpu's laws to published measurements: find out what each file holds, and hand it to its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optsched.cost import attention_tables, collective_tables, experts_tables, gemm_tables, step_tables
from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.domain.hardware import Gpu
from optsched.errors import SpecError
from optsched.profiles.tables import column_names

Laws = Mapping[str, Frozen]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of operations whose laws can be fitted to tables.

    Attributes
    ----------
    name
        For messages.
    columns
        Columns that tell its tables, one set per source; a file is this family's if it has all columns of one of them.
    fit
        Gpu, files of this family and day of the fit, to laws by the name of their table below ``[efficiency]``.
    """

    name: str
    columns: tuple[frozenset[str], ...]
    fit: Callable[[Gpu, Sequence[Path], str], Laws]

    def owns(self, found: frozenset[str]) -> bool:
        """Return whether a file with these columns is a table of this family."""
        return any(columns <= found for columns in self.columns)


@dataclass(frozen=True, slots=True)
class ProfileFit:
    """Laws fitted to a file or a folder, and what there was not used, one line each."""

    laws: Laws
    ignored: tuple[str, ...]

    @property
    def fits(self) -> dict[str, Fit]:
        """What is known of each fit, by the name of its table; a law of several parts has one per part."""
        return {name: fit for table, law in self.laws.items() for name, fit in _fits(table, law)}


def _fits(name: str, law: Frozen) -> list[tuple[str, Fit]]:
    own = getattr(law, "fit", None)
    below = [
        pair
        for field in type(law).model_fields
        if field != "fit" and isinstance(value := getattr(law, field), Frozen)
        for pair in _fits(f"{name}.{field}", value)
    ]
    return ([(name, own)] if isinstance(own, Fit) else []) + below


def families() -> tuple[Family, ...]:
    """Return the families in the order in which their laws are written."""
    return (
        Family("matrix products", gemm_tables.COLUMNS, gemm_tables.fit_tables),
        Family("attention", attention_tables.TABLE_COLUMNS, attention_tables.fit_tables),
        Family("experts", experts_tables.TABLE_COLUMNS, experts_tables.fit_tables),
        Family("collectives", collective_tables.TABLE_COLUMNS, collective_tables.fit_tables),
        Family("whole steps", step_tables.TABLE_COLUMNS, step_tables.fit_tables),
    )


def fit_profile(gpu: Gpu, path: Path, day: str) -> ProfileFit:
    """Fit every law that a file or folder has measurements for.

    Parameters
    ----------
    gpu
        Whose peaks the laws are shares of; its present laws are the priors.
    path
        A table as its publisher wrote it, or a folder that is searched for such tables.
    day
        Date of the fit, as the records keep it.

    Raises
    ------
    SpecError
        If the path does not exist, no file there is a known table, or one is damaged.
    """
    if not path.exists():
        raise SpecError("no such file or folder; check the path", file=path)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    known = families()
    owned: dict[str, list[Path]] = {family.name: [] for family in known}
    ignored: list[str] = []
    for file in files:
        columns = column_names(file)
        family = next((each for each in known if each.owns(columns)), None)
        if family is not None:
            owned[family.name].append(file)
        elif file.suffix in (".csv", ".parquet"):
            ignored.append(f"{file}: none of the known tables; left out")
    if not any(owned.values()):
        kinds = ", ".join(family.name for family in known)
        raise SpecError(f"no table of a known form; known are tables of {kinds}, as their publishers wrote them", file=path)
    laws: dict[str, Frozen] = {}
    for family in known:
        if owned[family.name]:
            laws.update(family.fit(gpu, owned[family.name], day))
    return ProfileFit(laws, tuple(ignored))

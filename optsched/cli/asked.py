"""What commands that start from a scenario have in common: the scenario, and which conversations instead of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

if TYPE_CHECKING:
    from optsched.domain.scenario import Scenario


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Which conversations, instead of the scenario's.

    Attributes
    ----------
    trace
        Take the conversations from this trace instead of the scenario's source.
    rate
        Conversations per second, instead of the scenario's rate.
    seed
        Seed of arrivals and lengths, instead of the scenario's.
    """

    trace: Path | None = None
    rate: float | None = None
    seed: int | None = None

    @property
    def rate_per_s(self) -> float | None:
        """The rate, which must be positive.

        Raises
        ------
        SpecError
            If it is not.
        """
        from optsched.cli.checks import positive

        return positive("--rate", self.rate)


THEIR_OWN = Conversations()


def read_scenario(name: str) -> tuple[Path, Scenario]:
    """Return the folder that a scenario's relative paths start from, and the scenario."""
    from optsched import catalog

    return catalog.scenario_path(name).parent, catalog.scenario(name)

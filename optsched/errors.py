"""Say in one line what is wrong, what the rule is, and which knob mends it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class OptschedError(Exception):
    """Root of every error that optsched raises on purpose; the command line prints it as one line."""


class SpecError(OptschedError):
    """A file or value that was read is wrong.

    Parameters
    ----------
    reason
        The value and the rule it breaks, and what to do.
    file
        The file it was read from, if any.
    field
        Dotted path of the field inside the file, or ``line N`` for line-based files.
    """

    def __init__(self, reason: str, *, file: Path | str | None = None, field: str | None = None) -> None:
        self.reason, self.file, self.field = reason, file, field
        place = ": ".join(str(part) for part in (file, field) if part is not None)
        super().__init__(f"{place}: {reason}" if place else reason)


class UnknownNameError(OptschedError):
    """A name is not among those known; near matches are offered.

    Parameters
    ----------
    kind
        What was looked up, for example ``gpu``.
    name
        The unknown name.
    known
        The names that exist.
    knob
        How to add a name or list them all.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], knob: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = get_close_matches(name, self.known, n=3, cutoff=0.5)
        choices = near or self.known
        lead = "did you mean" if near else "there are"
        message = f"Unknown {kind} {name!r}; {lead}: {', '.join(choices) or 'none'}."
        super().__init__(f"{message} {knob}".rstrip())


class ProblemError(OptschedError):
    """The data of an optimisation problem contradict each other."""


class SolveError(OptschedError):
    """A solver gave no usable answer."""


class InfeasibleError(SolveError):
    """No plan exists; the message names the limit that binds."""


class NoPlanError(SolveError):
    """A limit was hit before any plan was found."""


class SolverUnavailableError(SolveError):
    """The solver asked for is not installed."""


class PlanError(OptschedError):
    """A plan breaks its problem.

    Parameters
    ----------
    violations
        One sentence per broken rule.
    """

    def __init__(self, violations: Sequence[str], what: str = "plan") -> None:
        self.violations = tuple(violations)
        more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
        super().__init__(f"The {what} breaks its problem: {self.violations[0]}{more}")


class WorkerError(OptschedError):
    """A runtime worker failed, hung or died."""


class MissingExtraError(OptschedError):
    """An optional dependency is needed and absent.

    Parameters
    ----------
    feature
        What was asked for.
    extra
        The extra that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs packages that are not installed; run: pip install 'optsched[{extra}]'")

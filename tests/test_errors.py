from __future__ import annotations

import pytest

from optsched import errors
from optsched.errors import MissingExtraError, OptschedError, PlanError, SpecError, UnknownNameError


def test_every_error_is_an_optsched_error() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 8
    assert all(issubclass(kind, OptschedError) for kind in classes)
    assert issubclass(errors.InfeasibleError, errors.SolveError)


@pytest.mark.parametrize(
    ("file", "field", "message"),
    [
        (None, None, "reason"),
        ("a.toml", None, "a.toml: reason"),
        (None, "x.y", "x.y: reason"),
        ("a.toml", "x.y", "a.toml: x.y: reason"),
    ],
)
def test_a_spec_error_says_where(file: str | None, field: str | None, message: str) -> None:
    error = SpecError("reason", file=file, field=field)
    assert (str(error), error.reason, error.file, error.field) == (message, "reason", file, field)


def test_an_unknown_name_offers_near_matches_and_the_knob() -> None:
    error = UnknownNameError("gpu", "a41", ["h100", "a40"], "Add your own.")
    assert str(error) == "Unknown gpu 'a41'; did you mean: a40. Add your own."


def test_an_unknown_name_far_from_all_lists_them() -> None:
    assert str(UnknownNameError("gpu", "zzz", ["h100", "a40"])) == "Unknown gpu 'zzz'; there are: a40, h100."
    assert str(UnknownNameError("gpu", "zzz", [])) == "Unknown gpu 'zzz'; there are: none."


def test_a_plan_error_shows_the_first_violation_and_counts_the_others() -> None:
    assert str(PlanError(["too big"])) == "The plan breaks its problem: too big"
    error = PlanError(["too big", "too slow", "too dear"], what="batch")
    assert str(error) == "The batch breaks its problem: too big (and 2 more)"
    assert error.violations == ("too big", "too slow", "too dear")


def test_a_missing_extra_says_what_to_install() -> None:
    assert "pip install 'optsched[ray]'" in str(MissingExtraError("--backend ray", "ray"))

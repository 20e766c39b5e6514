from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from optsched.units import Bytes, BytesPerSecond, FlopsPerSecond, Seconds, Watts, human, parse_quantity


class Record(BaseModel):
    memory: Bytes = 1.0
    bandwidth: BytesPerSecond = 1.0
    flops: FlopsPerSecond = 1.0
    power: Watts = 1.0
    time: Seconds = 0.0


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("4.8 TB/s", "B/s", 4.8e12),
        ("696 GB/s", "B/s", 696e9),
        ("400 Gbit/s", "B/s", 50e9),
        ("80 GB", "B", 80e9),
        ("80 GiB", "B", 80 * 2**30),
        ("46068 MiB", "B", 46068 * 2**20),
        ("149.7 TFLOP/s", "FLOP/s", 149.7e12),
        ("2 PFLOP/s", "FLOP/s", 2e15),
        ("0.3 kW", "W", 300.0),
        ("5.27 ms", "s", 5.27e-3),
        ("24.1 us", "s", 24.1e-6),
        ("24.1 µs", "s", 24.1e-6),
        ("1 hour", "s", 3600.0),
        ("1.5e3 J", "J", 1500.0),
    ],
)
def test_quantities_are_read_into_si(text: str, unit: str, value: float) -> None:
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-12)


@given(value=st.floats(1e-3, 1e18), unit=st.sampled_from(["B", "B/s", "FLOP/s", "W", "s", "J"]))
def test_a_quantity_survives_writing_and_reading(value: float, unit: str) -> None:
    assert parse_quantity(human(value, unit, 17), unit) == pytest.approx(value, rel=1e-12)


@given(value=st.floats(1e-3, 1e18))
def test_a_bare_number_is_already_in_the_unit(value: float) -> None:
    assert parse_quantity(value, "W") == value


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("300 W", "B/s", r"'300 W' is not a quantity in B/s; write it with a unit like '1 B/s'"),
        ("80 GB/s", "B", "is not a quantity in B"),
        ("4.8 TFLOP", "FLOP/s", "is not a quantity in FLOP/s"),
        ("300", "W", "'300' has no unit; write it with one, for example '1 W'"),
        ("fast", "B/s", "'fast' cannot be read as a quantity"),
        ("3 furlongz", "B", "cannot be read as a quantity"),
        ("", "W", "'' cannot be read as a quantity"),
        ("9**9**9**9 W", "W", "cannot be read as a quantity"),
        ("300 W W W", "W", "is not a quantity in W"),
        ("1 W / 0", "W", "cannot be read as a quantity"),
        ("(1 W", "W", "cannot be read as a quantity"),
        ("__import__('os')", "W", "cannot be read as a quantity"),
        ("nan W", "W", "not a finite quantity|cannot be read"),
        ("inf W", "W", "not a finite quantity|cannot be read"),
        ("1e999 W", "W", "not a finite quantity"),
    ],
)
def test_wrong_units_and_garbage_are_refused_with_the_unit_to_use(text: str, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_quantity(text, unit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not a finite quantity"):
        parse_quantity(value, "W")


@given(text=st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert math.isfinite(parse_quantity(text, "B/s"))


@pytest.mark.parametrize("field", ["memory", "bandwidth", "flops", "power"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_rates_and_powers_must_be_positive_and_finite(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Record(**{field: value})


def test_durations_may_be_zero_but_not_negative() -> None:
    assert Record(time="0 ms").time == 0
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Record(time="-1 ms")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (4.8e12, "B/s", "4.8 TB/s"),
        (0.0, "B", "0 B"),
        (1e-9, "s", "1 ns"),
        (1e-12, "s", "0.001 ns"),
        (1.5e-3, "s", "1.5 ms"),
        (-2e3, "W", "-2 kW"),
        (2.5e18, "FLOP/s", "2.5e+03 PFLOP/s"),
        (float("inf"), "B", "inf B"),
    ],
)
def test_quantities_are_written_for_people(value: float, unit: str, text: str) -> None:
    assert human(value, unit) == text

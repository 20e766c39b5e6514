"""Where fitted coefficients come from, and how well they predict what they were not fitted to."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from optsched.domain.frozen import Frozen


class Fit(Frozen):
    """The record of one fit.

    Attributes
    ----------
    source, date
        Of the measurements; the day of the fit.
    num_rows, rows_left_out
        Measurements used, held-out ones included; others by the reason they were left out.
    train_mape, heldout_shapes_mape, heldout_llms_mape
        Mean absolute relative error of the rows fitted to, of held-out shapes, and of the shapes of held-out llms; None where
        there were no such rows.
    parameters, covariance
        Names of the fitted coefficients, and the covariance of their logarithms in that order.
    """

    source: str
    date: str
    num_rows: int = Field(ge=0)
    rows_left_out: dict[str, int] = {}
    train_mape: float = Field(ge=0)
    heldout_shapes_mape: float | None = Field(default=None, ge=0)
    heldout_llms_mape: float | None = Field(default=None, ge=0)
    parameters: tuple[str, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()

    @model_validator(mode="after")
    def _square(self) -> Self:
        if any(len(row) != len(self.parameters) for row in (self.covariance, *self.covariance)):
            raise ValueError(f"covariance must have a row and a column for each of the {len(self.parameters)} parameters")
        return self

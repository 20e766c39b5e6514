"""The figures of one arrival seed, by the names that `expected.toml` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from ..tables import Row, Tables

Figures = Iterator[tuple[str, Callable[[], float]]]


@dataclass(frozen=True)
class Seed:
    """The tables of one seed."""

    tables: Tables
    seed: int

    def figures(self) -> dict[str, float]:
        """Return every figure that the tables allow."""
        found: dict[str, float] = {}
        for family in (self._cells, self._sweep, self._headline, self._shapes, self._clocks):
            for name, compute in family():
                try:
                    value = compute()
                except (KeyError, ValueError, ZeroDivisionError):  # a smoke run has not every condition
                    continue
                if np.isfinite(value):
                    found[name] = value
        return found

    def rows(self, table: str) -> list[Row]:
        """Return this seed's rows of a table."""
        return [row for row in self.tables.get(table, []) if row["seed"] == self.seed]

    def at(self, policy: str, metric: str, rate: float = 2.0, caps: str = "300/300") -> float:
        """Return one entry of the artifact's evaluation.

        Raises
        ------
        KeyError
            If that condition was not run.
        """
        return self.whole(policy, metric, "artifact", rate, caps, "cells")

    def whole(
        self, policy: str, metric: str, reading: str, rate: float = 2.0, caps: str = "300/300", table: str = "whole"
    ) -> float:
        """Return one entry of a table.

        Raises
        ------
        KeyError
            If that condition was not run.
        """
        key = (policy, rate, caps, reading)
        for row in self.rows(table):
            if (row["policy"], row["rate_per_s"], row["caps"], row["reading"]) == key:
                return float(row[metric])
        raise KeyError(key)

    def _cells(self) -> Figures:
        for row in self.rows("cells"):
            where = (str(row["policy"]), float(row["rate_per_s"]), str(row["caps"]))
            for metric in row:
                if not isinstance(row[metric], str) and metric not in ("seed", "rate_per_s"):
                    yield f"{metric} {where[0]} {where[2]} {where[1]:g}", partial(self.at, where[0], metric, where[1], where[2])
            if where[0] == "conserve" and where[2] == "300/300":
                yield f"cap_gain conserve 300/300 {where[1]:g}", partial(self.gain, "conserve", where[1], "tpj_uncorrected")

    def gain(self, policy: str, rate: float = 2.0, metric: str = "tpj") -> float:
        """Return what capping decoders at 200 W gains a policy, in per cent."""
        return 100 * (self.at(policy, metric, rate, "300/200") / self.at(policy, metric, rate) - 1)

    def swept(self, share: float, metric: str = "ttfet_p95", reading: str = "artifact") -> float:
        """Return one entry of the sweep.

        Raises
        ------
        KeyError
            If that share was not run.
        """
        for row in self.rows("sweep"):
            if (row["wrong_share"], row["reading"]) == (share, reading):
                return float(row[metric])
        raise KeyError(share)

    def _sweep(self) -> Figures:
        shares = sorted({float(row["wrong_share"]) for row in self.rows("sweep")})
        for metric in ("ttfet_p95", "ttfet_gm", "ttfet_misses", "tpj_uncorrected"):
            for share in shares:
                yield f"{metric} sweep {share:g}", partial(self.swept, share, metric)
        curve = [self.swept(share) for share in shares]
        if len(curve) < 2:
            return
        yield "sweep_10_over_0", lambda: self.swept(0.1) / self.swept(0.0)
        yield "sweep_50_over_0", lambda: self.swept(0.5) / self.swept(0.0)
        yield "sweep_largest_fall", lambda: 100 * max(0.0, *(1 - b / a for a, b in pairwise(curve)))
        yield "sweep_concave", lambda: float(5 * (self.swept(0.1) - self.swept(0.0)) > self.swept(0.5) - self.swept(0.0))
        yield "sweep_tbt_change", lambda: 100 * (self.swept(0.5, "tbt_p95") / self.swept(0.0, "tbt_p95") - 1)
        yield "sweep_never_below_none", lambda: float(min(curve) >= curve[0])
        yield "ampd_without_wrong_over_conserve", lambda: self.swept(0.0) / self.at("conserve", "ttfet_p95")

    def _headline(self) -> Figures:
        at = self.at
        yield "ttfet_reduction", lambda: 100 * (1 - at("conserve", "ttfet_p95") / at("ampd", "ttfet_p95"))
        yield "ttfet_reduction_collocated", lambda: 100 * (1 - at("conserve", "ttfet_p95") / at("collocated", "ttfet_p95"))
        yield "tpj_over_ampd", lambda: 100 * (at("conserve", "tpj") / at("ampd", "tpj") - 1)
        yield "tpj_over_collocated", lambda: 100 * (at("conserve", "tpj") / at("collocated", "tpj") - 1)
        yield "tpj_capped", lambda: self.gain("conserve")
        yield "tpj_capped_ampd", lambda: self.gain("ampd")
        yield "tpj_capped_collocated", lambda: self.gain("collocated")
        yield "served_per_s", lambda: at("conserve", "served_per_s")
        for caps in ("300/300", "300/200"):
            yield f"span_s {caps}", partial(at, "conserve", "span_s", 2.0, caps)

    def _shapes(self) -> Figures:
        at = self.at
        rates = sorted({float(row["rate_per_s"]) for row in self.rows("cells")})
        rivals = ("collocated", "ampd", "conserve")

        def spread(rate: float) -> float:
            values = [at(policy, "ttfet_p95", rate) for policy in rivals]
            return 100 * (max(values) / min(values) - 1)

        def order() -> float:
            values = [at(policy, "ttfet_p95") for policy in ("conserve", "collocated", "ampd", "full-disaggregation")]
            return float(values == sorted(values))

        def misses(policy: str, rate: float) -> float:
            return max(at(policy, f"{name}_misses", rate) for name in ("ttfet", "tbt", "e2e"))

        def capped(rate: float) -> float:
            return 100 * (at("conserve", "ttfet_p95", rate, "300/200") / at("conserve", "ttfet_p95", rate) - 1)

        conversations = len_conversations(self.tables)
        yield "spread_up_to_1.25", lambda: max(spread(rate) for rate in rates if rate <= 1.25)
        yield "order_at_sixth", order
        yield "conserve_most_misses", lambda: max(misses("conserve", rate) for rate in rates)
        yield "collocated_tbt_less_ttfet_misses", lambda: at("collocated", "tbt_misses") - at("collocated", "ttfet_misses")
        yield "collocated_tbt_misses_1.5", lambda: at("collocated", "tbt_misses", 1.5)
        yield "ampd_ttfet_less_tbt_misses", lambda: at("ampd", "ttfet_misses") - at("ampd", "tbt_misses")
        yield "ampd_ttfet_misses_1.5", lambda: at("ampd", "ttfet_misses", 1.5)
        yield (
            "full_disaggregation_best_tbt",
            lambda: float(at("full-disaggregation", "tbt_p95") < min(at(p, "tbt_p95") for p in rivals)),
        )
        yield "cap_costs_ttfet_most", lambda: max(capped(rate) for rate in rates if rate >= 1.0)
        yield "transfers_per_conversation", lambda: self.whole("conserve", "transfers", "true") / conversations
        yield "transfers_full_disaggregation", lambda: at("full-disaggregation", "transfers") / conversations

    def _clocks(self) -> Figures:
        true = partial(self.whole, metric="ttfet_p95", reading="true")
        yield "true_over_artifact_conserve", lambda: true("conserve") / self.at("conserve", "ttfet_p95")
        yield "true_collocated_over_conserve", lambda: true("collocated") / true("conserve")
        yield "true_reduction_against_visits", lambda: 100 * (1 - true("conserve") / true("ampd-visits"))
        yield "per_turn_over_conserve", lambda: true("per-turn") / true("conserve")


def len_conversations(tables: Tables) -> float:
    """Return how many conversations were run."""
    return float(tables["workload"][0]["conversations"]) if tables.get("workload") else float("nan")

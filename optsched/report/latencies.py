"""Latency percentiles of an execution: pictures with the targets in them, and the tables behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optsched.domain.results import Metrics, Quantiles
from optsched.report.charts.spread import Spread, spread_chart
from optsched.report.markup import Html, badge, details, figure, figures, join, table
from optsched.report.numbers import factor, seconds, share
from optsched.report.verdicts import LATENCIES, NORMALISED, Verdict


def promise_body(metrics: Metrics, found: Sequence[Verdict]) -> Html:
    """Return the targets with what became of them, the percentiles as pictures, and as tables to unfold.

    Parameters
    ----------
    metrics
        Simulated or observed figures.
    found
        The verdicts on the latency targets.
    """
    parts = [_targets(found)] if found else []
    pictures = [
        figure(
            spread_chart(_rows(metrics, found, relative=False), title="Latency", write=seconds),
            "Seconds on a logarithmic scale, over all turns, conversations or gaps between tokens.",
        )
    ]
    if metrics.normalised.ttfet.mean is not None:
        pictures.append(
            figure(
                spread_chart(_rows(metrics, found, relative=True), title="Latency over standalone latency", write=factor),
                "Each conversation against the same conversation with nothing else running: 1 x is an idle fleet.",
            )
        )
    return join([*parts, figures(pictures), details("All percentiles", _tables(metrics))])


def _targets(found: Sequence[Verdict]) -> Html:
    rows = [
        (
            each.name, each.target, each.write(each.reached), share(each.missed), share(each.allowed),
            badge("kept", "good") if each.kept else badge("missed", "bad"),
        )
        for each in found
    ]  # fmt: skip
    return table(("target", "promise", "reached", "conversations that miss it", "that may", ""), rows, left=2)


def _rows(metrics: Metrics, found: Sequence[Verdict], *, relative: bool) -> list[Spread]:
    if relative:
        verdicts = {{"tbt": "last_turn_tbt"}.get(each.key, each.key): each for each in found if each.relative}
        named: list[tuple[str, Quantiles, Verdict | None]] = [
            (title, getattr(metrics.normalised, name), verdicts.get(name)) for name, title in NORMALISED.items()
        ]
    else:
        verdicts = {f"{each.key}_s": each for each in found if not each.relative}
        named = [(title, getattr(metrics, name), verdicts.get(name)) for name, title in LATENCIES.items()]
    return [
        Spread(title, quantiles, None if verdict is None else verdict.limit, verdict is None or verdict.kept)
        for title, quantiles, verdict in named
    ]


def _tables(metrics: Metrics) -> Html:
    def rows(named: Sequence[tuple[str, Quantiles]], write: Callable[[float | None], str]) -> list[tuple[str, ...]]:
        return [(name, write(each.mean), write(each.p50), write(each.p95), write(each.p99)) for name, each in named]

    absolute = [(title, getattr(metrics, name)) for name, title in LATENCIES.items()]
    relative = [(f"{title} / standalone", getattr(metrics.normalised, name)) for name, title in NORMALISED.items()]
    return table(("", "mean", "p50", "p95", "p99"), [*rows(absolute, seconds), *rows(relative, factor)])

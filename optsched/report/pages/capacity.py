"""The page of a capacity answer: the fleet, its promise and proof, what everything is worth, and what was tried."""

from __future__ import annotations

from optsched import __version__
from optsched.report.capacity_answer import CapacityAnswer, Tried
from optsched.report.front import front_section
from optsched.report.latencies import promise_body
from optsched.report.markup import Cell, Html, Section, Tile, badge, details, join, table
from optsched.report.numbers import plain, quantity, seconds, share
from optsched.report.page import page
from optsched.report.proof import in_words, proof_body
from optsched.report.sensitivity import sensitivity_section


def capacity_page(answer: CapacityAnswer, *, source: str) -> str:
    """Return a capacity answer as a page.

    Parameters
    ----------
    answer
        What to show.
    source
        Its file, named at the end of the page.
    """
    gpus = sum(row.count * row.tp * row.pp for row in answer.fleet)
    tiles = [
        Tile("Price", quantity(answer.cost_usd_per_hour, "USD/h"), f"{plain(answer.cost_usd_per_hour * 730)} USD a month"),
        Tile("GPUs", plain(gpus), f"caps of {quantity(answer.power_w, 'W')} in all"),
        Tile("Meet every target", share(answer.predicted.slo_attainment), "of conversations"),
        Tile("Output tokens/s", plain(answer.predicted.tokens_per_s)),
        Tile("Gap to the bound", share(answer.certificate.gap), answer.certificate.status.lower()),
    ]
    sections = [
        Section("fleet", "Fleet", "Use: of each replica's full rate, at this traffic.", _fleet(answer)),
        Section("promise", "Promise", "Simulated on the true clock, every queue included.", _promise(answer)),
        Section("certificate", "Certificate", in_words(answer.certificate), proof_body(answer.certificate)),
        Section("prices", "Prices", _prices_lead(answer), _prices(answer)),
        *([front_section(answer.pareto)] if answer.pareto else []),
        *(sensitivity_section(rows.robustness(), name) for name, rows in answer.robustness.items()),
        Section("tried", "Tried", "Fleets in the order in which they were simulated, until every target stood.", _tried(answer)),
    ]
    return page(
        title=answer.words,
        subtitle="An answer of optsched capacity",
        verdict=_verdict(answer),
        tone="good" if answer.met and answer.sustained >= 1 else "bad",
        leading=tiles,
        sections=sections,
        footer=f"Made from {source} by optsched {__version__}.",
    )


def _verdict(answer: CapacityAnswer) -> str:
    if not answer.met:
        return "No fleet was found that keeps every target; this is the best that was tried."
    if answer.sustained < 1:
        return (
            f"Every target is kept only since the workload ends: the fleet could serve {share(answer.sustained)} of it for ever."
        )
    return "Every target is kept, with every seed that was tried."


def _fleet(answer: CapacityAnswer) -> Html:
    used = dict(answer.utilisation)
    rows = [
        (
            f"{row.gpu} {row.dtype}" if row.dtype else row.gpu,
            row.role,
            str(row.count),
            f"{row.tp} x {row.pp}",
            str(row.count * row.tp * row.pp),
            quantity(row.power_cap_w, "W"),
        )
        for row in answer.fleet
    ]
    parts = [table(("gpu", "role", "replicas", "TP x PP", "GPUs", "power cap per GPU"), rows, left=2)]
    if used:
        parts.append(table(("replica type", "used"), [(name, share(value)) for name, value in used.items()]))
    return join(parts)


def _promise(answer: CapacityAnswer) -> Html:
    """Return the percentiles of the only pool, or a line for each of several."""
    if not answer.pools:
        return promise_body(answer.predicted, [])
    rows = [
        (
            pool.pool, pool.llm, f"{plain(pool.rate_per_s)}/s", " + ".join(row.words for row in pool.fleet),
            seconds(pool.predicted.ttft_s.p95), seconds(pool.predicted.tbt_s.p95), share(pool.predicted.slo_attainment),
        )
        for pool in answer.pools
    ]  # fmt: skip
    return table(("pool", "llm", "conversations", "fleet", "TTFT p95", "TBT p95", "meet every target"), rows, left=2)


def _prices_lead(answer: CapacityAnswer) -> str:
    return (
        f"What one more unit of each limit, or one less of each demand, saves in {answer.prices.objective}: in the relaxation, "
        "where fractions of replicas count, and in whole fleets."
    )


def _prices(answer: CapacityAnswer) -> Html:
    prices = answer.prices
    rows: list[tuple[str, str, str]] = [
        (name, plain(price), plain(prices.one_more[name]) if name in prices.one_more else "-")
        for name, price in prices.limits.items()
    ]
    rows.append(("one conversation/s less", plain(prices.rate_per_s), "-"))
    looser = prices.targets_1_percent_looser
    rows.append(("targets 1 % looser", "-" if looser is None else plain(looser), "-"))
    demand = [(name, plain(price)) for name, price in prices.demand.items()]
    more = details("One request/s of each class", table(("class", "price"), demand)) if demand else Html("")
    return join([table(("limit", "fractions of replicas", "whole replicas"), rows), more])


def _tried(answer: CapacityAnswer) -> Html:
    def row(each: Tried) -> tuple[Cell, ...]:
        words = each.origin if each.utilisation is None else share(each.utilisation)
        verdict = badge("met", "good") if each.met else badge(f"misses {each.worst_target}", "bad")
        excess = f"{100 * each.excess_violations:+.1f} points"
        return " + ".join(item.words for item in each.fleet), words, plain(each.cost), excess, verdict

    columns = ("fleet", "utilisation allowed, or origin", "cost", "violations beyond what may", "")
    dropped = [(each.label, each.reason) for each in answer.dropped]
    more = (
        details(f"{len(dropped):,} replica types left out", table(("replica type", "why"), dropped, left=2))
        if dropped
        else Html("")
    )
    return join([table(columns, [row(each) for each in answer.iterations]), more])

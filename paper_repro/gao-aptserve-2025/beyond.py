"""Beyond the paper: our own policy against Apt-Serve, on seeds that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..tables import Tables, Task
from .cells import make_cell
from .measure import attainment_of, rates_of, ratios
from .settings import BeyondCell, Settings


def beyond(settings: Settings) -> Iterator[Task]:
    """Effective throughput, and what happens at fixed rates: of ours, and of those that it is compared with."""
    section = settings.beyond
    judged = settings.replace(seeds=section.seeds, variants={**settings.variants, **section.ours})
    for each in section.cells:
        for variant in (*section.ours, *section.others):

            def task(tables: Tables, each: BeyondCell = each, variant: str = variant) -> None:
                cell, recipe = replace(make_cell(settings, each.llm), settings=judged), settings.workloads[each.workload]
                names = (each.llm, each.workload, variant)
                tables.setdefault("beyond", []).extend(rates_of(cell, names, recipe, section.targets))
                happened = [attainment_of(cell, names, recipe, rate, section="beyond") for rate in each.rates_per_s]
                tables.setdefault("beyond_attainment", []).extend(happened)

            yield task

    def compare(tables: Tables) -> None:
        tables["beyond_ratios"] = ratios(tables["beyond"], tuple(section.ours), section.others)

    yield compare

"""Compute everything that `expected.toml` asks for: one function per table, run in order by `compute`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..tables import Row, Tables, Task, run_sections
from .cells import ARTIFACT, WHOLE, Caps, Cell, artifact_row, whole_rows
from .conversations import conversations
from .fleets import fitted_law, make_plan
from .measure import context_tokens
from .passes import own_pause_s
from .settings import Power, Settings


def workload(settings: Settings) -> Iterator[Task]:
    """Shapes of the conversations that ConServe rests on."""

    def task(tables: Tables) -> None:
        w = conversations(settings)
        first = w.turn_in_conversation == 0
        tables["workload"] = [
            {
                "conversations": float(w.num_conversations), "first_turn_tokens": float(w.new_tokens[first].sum()),
                "output_tokens": float(w.output_tokens.sum()), "context_tokens": float(context_tokens(w)),
                "first_turn_share": 100 * float(w.new_tokens[first].sum() / w.new_tokens.sum()),
                "appended_p50": float(np.median(w.new_tokens[~first])),
                "first_turn_of_peak": 100 * float(w.first_turn_tokens.sum() / w.peak_tokens.sum()),
            }
        ]  # fmt: skip

    yield task


def laws(settings: Settings) -> Iterator[Task]:
    """Fit law and energy again, beside the frozen ones, and tabulate what the law says."""

    def task(tables: Tables) -> None:
        found = fitted_law(settings)
        rows: list[Row] = [{"name": "chunk_s", "fitted": found.chunk_s, "frozen": settings.law.chunk_s}]
        for name in ("token_s", "pair_s", "kv_s"):
            mine, frozen = getattr(found, name), getattr(settings.law, name)
            rows += [{"name": f"{name} {cap}", "fitted": mine[cap], "frozen": frozen[cap]} for cap in mine]
        power = fitted_power(settings)
        rows += [
            {"name": f"factor {cap}", "fitted": factor, "frozen": settings.power.factor[cap]}
            for cap, factor in power.factor.items()
        ]
        tables["fit"] = rows
        tables["costs"] = costs(settings)

    yield task


def fitted_power(settings: Settings) -> Power:
    """Return the factors on the energy of decoding at which ConServe has the published tokens per joule at the last rate."""
    found: dict[str, float] = {}
    for cap, published in settings.power.fitted_to.items():
        kilojoules = []
        for factor in (0.0, 1.0):  # energy is linear in the factor
            power = settings.power.replace(factor={**settings.power.factor, **found, cap: factor})
            cell = Cell(settings.replace(power=power), (300, int(cap)), settings.rates_per_s[-1], settings.seeds[0])
            kilojoules.append(float(artifact_row(cell, "conserve", cell.recorded())["energy_kj"]))
        wanted = context_tokens(conversations(settings)) / published / 1e3
        # Few conversations of a smoke run may take more idle energy than was published for all: no factor is negative.
        found[cap] = max(0.0, (wanted - kilojoules[0]) / (kilojoules[1] - kilojoules[0]))
    return Power(factor=found)


def costs(settings: Settings) -> list[Row]:
    """Tabulate prefill, decode step, appended turn and transfer at both caps."""
    rows: list[Row] = []
    for cap in (300, 200):
        plan = make_plan(settings, "conserve", (cap, cap))
        law, link = plan.replicas[0].coefficients, plan.links[0]
        per_token = plan.llms[0].shape.kv_bytes_per_token
        for tokens in (4000, 8000, 12000, 16000, 20000, 32000):
            moved_s = link.latency_s + tokens * per_token / link.bytes_per_s
            append_s = law.prefill_s(68, tokens, 2944)
            rows.append(
                {
                    "cap": float(cap), "tokens": float(tokens), "prefill_s": law.prefill_s(tokens, 0, 8192), "append_s": append_s,
                    "transfer_s": moved_s, "pause_s": own_pause_s(settings.pause, tokens + settings.pause.compound_tokens, 67),
                    "floor_s": law.overhead_s + law.floor_s,
                    "decode_8_s": float(law.step_s(8.0, 0.0, float(8 * tokens), 8.0)),
                    "decode_4_s": float(law.step_s(4.0, 0.0, float(8 * tokens), 4.0)),
                }
            )  # fmt: skip
    return rows


def artifact(settings: Settings) -> Iterator[Task]:
    """Every policy, pair of caps, rate and seed as the artifact evaluates them."""
    for caps in settings.caps:
        for rate in settings.rates_per_s:
            for seed in settings.seeds:

                def task(tables: Tables, caps: Caps = caps, rate: float = rate, seed: int = seed) -> None:
                    cell = Cell(settings, caps, rate, seed)
                    recorded = cell.recorded()
                    tables.setdefault("cells", []).extend(artifact_row(cell, policy, recorded) for policy in ARTIFACT)

                yield task


def whole(settings: Settings) -> Iterator[Task]:
    """Every policy, pair of caps, rate and seed as one run of the whole system, on both clocks."""
    for caps in settings.caps:
        for rate in settings.rates_per_s:
            for seed in settings.seeds:

                def task(tables: Tables, caps: Caps = caps, rate: float = rate, seed: int = seed) -> None:
                    cell = Cell(settings, caps, rate, seed)
                    for policy in WHOLE:
                        tables.setdefault("whole", []).extend(whole_rows(cell, policy))

                yield task


def sweep(settings: Settings) -> Iterator[Task]:
    """Shares of wrongly placed turns at the last rate: pauses as the artifact has them, and real visits."""
    caps, rate = settings.caps[0], settings.rates_per_s[-1]
    for seed in settings.sweep.seeds:

        def task(tables: Tables, seed: int = seed) -> None:
            cell = Cell(settings, caps, rate, seed)
            recorded = cell.recorded()
            for share in settings.sweep.shares:
                rows = [artifact_row(cell, "ampd", recorded, share), *whole_rows(cell, "ampd-visits", share)]
                columns = [name for name in rows[0] if name in rows[1]]
                tables.setdefault("sweep", []).extend({"wrong_share": share, **{n: row[n] for n in columns}} for row in rows)

        yield task


def packaged(settings: Settings) -> Iterator[Task]:
    """Take the first caps and seed with the packaged step law, which was made for all lengths."""
    for rate in settings.rates_per_s:

        def task(tables: Tables, rate: float = rate) -> None:
            cell = Cell(settings, settings.caps[0], rate, settings.seeds[0], packaged=True)
            recorded = cell.recorded()
            tables.setdefault("packaged_law", []).extend(artifact_row(cell, policy, recorded) for policy in ARTIFACT)

        yield task


SECTIONS = (workload, laws, artifact, whole, sweep, packaged)


def compute(
    settings: Settings, advance: Callable[[float, float], None], keep: Callable[[Tables], None] = lambda tables: None
) -> Tables:
    """Compute all tables; see `run_sections`."""
    return run_sections(SECTIONS, settings, advance, keep)

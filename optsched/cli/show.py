"""The ``show`` command: what the catalog holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from optsched import catalog
from optsched.cli.output import emit_json, print_line, print_table
from optsched.domain.hardware import Tier
from optsched.errors import UnknownNameError
from optsched.files import dump
from optsched.units import human

Kind = Literal["gpus", "tiers", "llms", "workloads", "scenarios", "policies"]
Row = dict[str, object]


class _Listing(NamedTuple):
    """One kind: its rows for ``--json``, the table's columns, and how a row is written under them."""

    rows: Callable[[], list[Row]]
    columns: Sequence[str]
    cells: Callable[[Row], Sequence[object]]
    left: int = 1


class _Record(NamedTuple):
    """One record: as ``--json`` writes it, ready to be read back, and with units in its field names."""

    data: Row
    fields: Row


def show(kind: Kind, name: str | None = None, /, *, json: bool = False) -> None:
    """List gpus, tiers, llms, workloads, scenarios or policies, or show one in full.

    Parameters
    ----------
    kind
        What to list.
    name
        Show this one in full, sources included; a tier is written a40@200W.
    json
        Print one JSON object instead of a table.
    """
    if name is not None:
        record = _RECORDS[kind](name)
        if json:
            emit_json(record.data)
        else:
            print_table(f"{kind}: {name}", ("field", "value"), list(_flat(record.fields)), left=2)
        return
    listing = _LISTINGS[kind]
    rows = listing.rows()
    if json:
        emit_json({kind: rows})
    elif rows:
        print_table(kind, listing.columns, [listing.cells(row) for row in rows], left=listing.left)
    else:
        print_line(f"no {kind}")


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted fields and their values as text; absent values are left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}[{index}]")
    elif isinstance(value, list):
        if value:
            yield prefix, ", ".join(str(inner) for inner in value)
    elif isinstance(value, float):
        yield prefix, f"{value:.6g}"
    elif value is not None:
        yield prefix, str(value)


def _gpu_rows() -> list[Row]:
    rows: list[Row] = []
    for gpu in map(catalog.gpu, catalog.gpus()):
        sheet = gpu.datasheet
        rows.append(
            {
                "name": gpu.name,
                "title": gpu.title,
                "memory_bytes": sheet.memory_bytes,
                "memory_bytes_per_s": sheet.memory_bytes_per_s,
                "flops_per_s": dict(sheet.flops_per_s),
                "power_w": sheet.power_w,
                "idle_w": gpu.efficiency.idle_w,
                "usd_per_hour": gpu.price.usd_per_hour,
                "origin": gpu.efficiency.origin,
            }
        )
    return rows


def _gpu_cells(row: Row) -> Sequence[object]:
    flops = row["flops_per_s"]
    rate = next((flops[dtype] for dtype in ("bf16", "fp16", "fp32") if dtype in flops), 0.0) if isinstance(flops, dict) else 0.0
    return (
        row["name"],
        _human(row["memory_bytes"], "B"),
        _human(row["memory_bytes_per_s"], "B/s"),
        _human(rate, "FLOP/s"),
        _human(row["power_w"], "W"),
        f"{row['usd_per_hour']} USD",
        row["origin"],
    )


def _human(value: object, unit: str) -> str:
    return human(value, unit, 4) if isinstance(value, int | float) else "-"


def _tier_row(tier: Tier) -> Row:
    efficiency, board_w = tier.gpu.efficiency, tier.gpu.datasheet.power_w
    dynamic_share = (tier.power_cap_w - efficiency.idle_w) / (board_w - efficiency.idle_w)
    return {
        "name": tier.name,
        "gpu": tier.gpu.name,
        "power_cap_w": tier.power_cap_w,
        "board_w": board_w,
        "idle_w": efficiency.idle_w,
        "clock_share": efficiency.power.clock(dynamic_share),
        "usd_per_hour": tier.gpu.price.usd_per_hour,
    }


def _tier_rows() -> list[Row]:
    return [_tier_row(catalog.tier(name)) for name in catalog.gpus()]


def _tier_cells(row: Row) -> Sequence[object]:
    watts = [_human(row[key], "W") for key in ("power_cap_w", "idle_w")]
    return row["name"], row["gpu"], *watts, f"{row['usd_per_hour']} USD"


def _llm_rows() -> list[Row]:
    return [
        {
            "name": llm.name,
            "title": llm.title,
            "num_params": llm.num_params,
            "num_active_params": llm.num_active_params,
            "kv_bytes_per_token": llm.kv_bytes_per_token,
            "hidden_bytes_per_token": llm.hidden_bytes_per_token,
            "hidden_ratio": llm.hidden_ratio,
            "runnable": llm.runtime_refusal is None,
            "refusal": llm.runtime_refusal,
        }
        for llm in map(catalog.llm, catalog.llms())
    ]


def _llm_cells(row: Row) -> Sequence[object]:
    numbers = [f"{row[key]:,.0f}" for key in ("num_params", "num_active_params", "kv_bytes_per_token", "hidden_bytes_per_token")]
    return row["name"], *numbers, f"{row['hidden_ratio']:.4g}", "yes" if row["runnable"] else f"no: {row['refusal']}"


def _workload_rows() -> list[Row]:
    return [
        {"name": recipe.name, "title": recipe.title, "turns": len(recipe.turns), "origin": recipe.origin}
        for recipe in map(catalog.recipe, catalog.recipes())
    ]


def _scenario_rows() -> list[Row]:
    rows: list[Row] = []
    for name in catalog.scenarios():
        scenario = catalog.scenario(name)
        llms = [scenario.llm, *(service.llm for service in scenario.services)]
        workloads = [scenario.workload, *(service.workload for service in scenario.services)]
        rows.append(
            {
                "name": name,
                "llms": [llm for llm in llms if llm is not None],
                "workloads": [workload.source for workload in workloads if workload is not None],
                "supply": {gpu: supply.limit for gpu, supply in scenario.supply.items()},
                "minimise": list(scenario.objective.minimise),
            }
        )
    return rows


def _scenario_cells(row: Row) -> Sequence[object]:
    supply = row["supply"]
    cards = ", ".join(f"{count} x {gpu}" for gpu, count in supply.items()) if isinstance(supply, dict) else ""
    return row["name"], _joined(row["llms"]), _joined(row["workloads"]), cards, _joined(row["minimise"])


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _policy_rows() -> list[Row]:
    # Imported here: other commands that only list files need neither package.
    from optsched.batching.policies import POLICIES as BATCHING
    from optsched.placement.policies import POLICIES as PLACEMENT

    rows: list[Row] = [{"name": name, "kind": "batching", "summary": _batching_summary(name)} for name in sorted(BATCHING)]
    for name, policy in sorted(PLACEMENT.items()):
        rows.append({"name": name, "kind": "placement", "summary": _first_line(policy.__doc__)})
    return rows


def _batching_summary(name: str) -> str:
    """Return the first line of the policy's module, read as text: importing it would load the compiler."""
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec(f"optsched.batching.policies.{name.replace('-', '_')}")
    if spec is None or spec.origin is None:
        return ""
    return _first_line(ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def _policy(name: str) -> _Record:
    rows = {str(row["name"]): row for row in _policy_rows()}
    if name not in rows:
        raise UnknownNameError("policy", name, rows, "List them with: optsched show policies")
    return _Record(rows[name], rows[name])


def _finder(find: Callable[[str], BaseModel], kind: str) -> Callable[[str], _Record]:
    def record(name: str) -> _Record:
        found = find(name)
        return _Record(dump(found, kind), found.model_dump(mode="json"))

    return record


def _tier(name: str) -> _Record:
    tier = catalog.tier(name)
    row = {key: value for key, value in _tier_row(tier).items() if key != "gpu"}
    return _Record({**row, "gpu": dump(tier.gpu, "gpu")}, {**row, "gpu": tier.gpu.model_dump(mode="json")})


_LISTINGS: dict[Kind, _Listing] = {
    "gpus": _Listing(
        _gpu_rows, ("gpu", "memory", "bandwidth", "16-bit peak", "board power", "per hour", "efficiency"), _gpu_cells
    ),
    "tiers": _Listing(_tier_rows, ("tier", "gpu", "power cap", "idle power", "per hour"), _tier_cells),
    "llms": _Listing(
        _llm_rows, ("llm", "params", "active", "KV B/token", "hidden B/token", "hidden / KV", "runs on the workers"), _llm_cells
    ),
    "workloads": _Listing(
        _workload_rows, ("workload", "title", "turns"), lambda row: [row[key] for key in ("name", "title", "turns")], left=2
    ),
    "scenarios": _Listing(_scenario_rows, ("scenario", "llm", "workload", "supply", "minimise"), _scenario_cells, left=5),
    "policies": _Listing(
        _policy_rows, ("policy", "kind", "what it does"), lambda row: [row[key] for key in ("name", "kind", "summary")], left=3
    ),
}
_RECORDS: dict[Kind, Callable[[str], _Record]] = {
    "gpus": _finder(catalog.gpu, "gpu"),
    "tiers": _tier,
    "llms": _finder(catalog.llm, "llm"),
    "workloads": _finder(catalog.recipe, "workload"),
    "scenarios": _finder(catalog.scenario, "scenario"),
    "policies": _policy,
}

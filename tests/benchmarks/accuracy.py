"""Write the tables of docs/accuracy.md; run with ``python tests/benchmarks/accuracy.py``."""

from __future__ import annotations

import datetime
from pathlib import Path

from optsched import catalog
from optsched.cost.memory import kv_token_budget
from optsched.cost.tables import step_law, step_law_error

ROOT = Path(__file__).resolve().parents[2]
# Name, llm, gpu and tp.
REPLICAS = [
    ("qwen3-0.6b", catalog.llm("qwen3-0.6b"), "a40", 1),
    ("llama-3.1-8b", catalog.llm("llama-3.1-8b"), "h100-sxm", 1),
    ("opt-13b", catalog.llm("opt-13b"), "a100-40gb", 1),
    ("qwen3-30b-a3b", catalog.llm("qwen3-30b-a3b"), "h200", 1),
    ("deepseek-v3", catalog.llm("deepseek-v3"), "h200", 8),
    ("llama-3.1-70b", catalog.llm("llama-3.1-70b"), "h100-sxm", 4),
    ("llama-3.1-8b in fp8", catalog.llm("llama-3.1-8b").replace(dtype="fp8", kv_dtype="bf16"), "h100-sxm", 1),
    (
        "llama-3.1-8b, 24 layers of 32 with a window of 1,024",
        catalog.llm("llama-3.1-8b").replace(sliding_window=1024, num_sliding_layers=24),
        "h100-sxm",
        1,
    ),
    (
        "llama-3.1-8b, 16 layers of 32 with a window of 128",
        catalog.llm("llama-3.1-8b").replace(sliding_window=128, num_sliding_layers=16),
        "h100-sxm",
        1,
    ),
]
BUDGETS = [
    ("qwen3-0.6b", "a40", 308_448, "reported by vLLM 0.11 in the ConServe artifact"),
    ("opt-13b", "a100-40gb", 15_700, "PagedAttention, arXiv 2309.06180, table 1"),
]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; columns of figures are set to the right."""
    rule = ["---:" if cell[0] in "+-0123456789" else "---" for cell in rows[0]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def signed(share: float) -> str:
    """Return a deviation as a percentage with sign and one decimal."""
    return f"{100 * share:+.1f} %"


def step_law_table() -> str:
    """Return the error of the condensed step law against the full model."""
    rows = []
    for name, llm, tier_name, tp in REPLICAS:
        tier = catalog.tier(tier_name)
        errors = step_law_error(step_law(llm, tier, tp=tp), llm, tier, tp=tp)
        for kind, error in errors.items():
            figures = [error.mape, error.max, error.energy_mape, error.energy_max]
            rows.append([f"{name} on {tier_name}" + (f", tp {tp}" if tp > 1 else ""), kind, *map(percent, figures)])
    return table(["replica", "steps", "time, mean", "time, largest", "energy, mean", "energy, largest"], rows)


def budget_table() -> str:
    """Return KV token budgets beside reported ones."""
    rows = []
    for name, tier, reported, source in BUDGETS:
        found = kv_token_budget(catalog.llm(name), catalog.tier(tier))
        rows.append([f"{name} on {tier}", f"{reported:,}", f"{found:,}", signed(found / reported - 1), source])
    return table(["replica", "reported", "model", "error", "source"], rows)


def main() -> None:
    """Replace what stands between the markers of docs/accuracy.md."""
    path = ROOT / "docs" / "accuracy.md"
    text = path.read_text(encoding="utf-8")
    stamp = f"`python tests/benchmarks/accuracy.py`, {datetime.date.today().isoformat()}"
    tables = {"step-law": step_law_table, "kv-budget": budget_table}
    for name, make in tables.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- end of {name} -->")
        if not closing:
            raise ValueError(f"{path} has no markers <!-- {name} --> and <!-- end of {name} -->; put them where the table goes")
        text = f"{before}<!-- {name} -->\n{stamp}\n\n{make()}\n{closing}{after}"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Published steps become the overheads of an engine, on top of a gpu's laws; llms that are held out take no part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optsched import catalog
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.profile_fit import fit_profile
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.step_cases import step_cases
from optsched.cost.step_tables import fit_engine, read_tables, steps_split
from optsched.cost.tier import TierParameters
from optsched.domain.hardware import Tier
from optsched.domain.overheads import Overheads
from optsched.errors import ProblemError, SpecError
from optsched.profiles.rows import joined
from optsched.profiles.steps import StepRows
from optsched.profiles.tables import column_names

GPU = catalog.gpu("a100-80gb")
FORMULAS = {
    "prefill": [18.0, 0.1, 7e-6],
    "decoding_smallbs": [20.0, 6e-4, 0.04],
    "decoding_largebs": [7.0, 6e-4, 0.16],
    "decoding_large_small_bs_threshold": 95,
}


def formulas(folder: Path, *llms: str) -> Path:
    path = folder / "profiler-a100-80g.distserve.json"
    path.write_text(json.dumps({llm: {"1" if llm.endswith("13b") else "4": FORMULAS} for llm in llms}))
    return path


def timed(overheads: Overheads) -> StepRows:
    """Return steps of opt-13b on one GPU, as long as an engine with some overheads takes."""
    sizes = [("prefill", b, n, 0.0) for b in (1, 4) for n in (128, 512, 2048)]
    sizes += [("decode", b, 1, float(c)) for b in (1, 8, 32, 128) for c in (64, 256)]
    kinds, batch, new, context = (np.array(column) for column in zip(*sizes, strict=True))
    num = len(sizes)
    rows = StepRows(
        kind=kinds, llm=np.array(["opt-13b"] * num), gpu=np.array([GPU.name] * num), engine=np.array(["known"] * num),
        tp=np.ones(num, np.int64), sequences=batch.astype(float), new_tokens=new.astype(float), context_tokens=context,
        seconds=np.ones(num), source="made here",
    )  # fmt: skip
    card = GPU.replace(efficiency=GPU.efficiency.replace(engines={"known": overheads}))
    place = Tier(card, card.datasheet.power_w, "known")
    llm = catalog.llm("opt-13b")
    tier, shape = TierParameters.of(place, llm), LlmShape.of(llm, Layout())
    seconds = [float(evaluate_steps(tier, shape, each.steps).seconds[0]) for each in step_cases(rows, lambda *_: (tier, shape))]
    return replace(rows, seconds=np.array(seconds))


def test_the_overheads_that_made_the_steps_are_found_again() -> None:
    known = Overheads(
        source="", layer_overhead_s=6e-4, step_overhead_s=8e-3, sequence_overhead_s=2e-4, prefill_layer_overhead_s=1e-4,
        compute_rate=0.7,
    )  # fmt: skip
    found, fitted, parts = fit_engine(GPU, "known", rows := timed(known), "2026-01-01")
    assert found.fit is not None
    assert found.fit.train_mape < 0.02
    assert found.fit.heldout_shapes_mape is not None
    assert found.fit.heldout_shapes_mape < 0.05
    assert (len(fitted.seconds), found.fit.num_rows) == (len(rows), len(rows))
    assert parts.heldout_shapes.any()
    assert found.compute_rate == pytest.approx(0.7, rel=0.1)
    assert found.layer_overhead_s == pytest.approx(6e-4, rel=0.15)
    assert "slow_message_s_per_byte" not in found.fit.parameters


def test_a_profile_of_whole_steps_is_known_by_its_keys_and_names_its_engine(tmp_path: Path, monkeypatch) -> None:
    formulas(tmp_path, "facebook/opt-13b")
    seen = {}

    def remember(gpu: object, engine: str, rows: StepRows, day: str) -> tuple[Overheads, None, None]:
        seen[engine] = (gpu, rows, day)
        return Overheads(source="", layer_overhead_s=0, step_overhead_s=0, sequence_overhead_s=0), None, None

    monkeypatch.setattr("optsched.cost.step_tables.fit_engine", remember)
    found = fit_profile(GPU, tmp_path, "2026-01-01")
    assert list(found.laws) == ["engines.distserve"]
    assert found.ignored == ()
    assert seen["distserve"][1].left_out["steps beyond the cache of the replica"] > 0


def test_steps_of_held_out_llms_alone_cannot_be_fitted_to(tmp_path: Path) -> None:
    rows = read_tables(GPU, [formulas(tmp_path, "facebook/opt-66b")])["distserve"]
    assert steps_split(rows).heldout_llms.all()
    with pytest.raises(ProblemError, match=r"steps of distserve are held out; give steps of more llms and sizes"):
        fit_engine(GPU, "distserve", rows, "2026-01-01")


def test_steps_of_other_gpus_are_refused_with_those_there_are(tmp_path: Path) -> None:
    path = formulas(tmp_path, "facebook/opt-13b")
    with pytest.raises(SpecError, match="no steps of l4, but of a100-80gb; name one of these with --tier"):
        read_tables(catalog.gpu("l4"), [path])


def test_tables_of_one_engine_are_joined_with_their_counts(tmp_path: Path) -> None:
    path = formulas(tmp_path, "facebook/opt-13b")
    once = read_tables(GPU, [path])["distserve"]
    twice = read_tables(GPU, [path, path])["distserve"]
    assert len(twice) == 2 * len(once)
    assert twice.source == once.source
    assert twice.left_out == {reason: 2 * count for reason, count in once.left_out.items()}
    assert joined([once, once.where(once.seconds > 1e9)]).seconds.tolist() == once.seconds.tolist()


def test_the_keys_of_a_json_file_are_those_of_its_innermost_objects(tmp_path: Path) -> None:
    assert column_names(formulas(tmp_path, "facebook/opt-13b")) == frozenset(FORMULAS)
    for text, keys in (("[1, 2]", ()), ("{}", ()), ('{"a": 1, "b": []}', ("a", "b"))):
        (tmp_path / "x.json").write_text(text)
        assert column_names(tmp_path / "x.json") == frozenset(keys)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(SpecError, match="not a readable JSON file"):
        column_names(tmp_path / "x.json")

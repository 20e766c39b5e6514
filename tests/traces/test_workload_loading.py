from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optsched import catalog
from optsched.domain.scenario import WorkloadSpec
from optsched.domain.workload import Arrivals
from optsched.errors import SpecError, UnknownNameError
from optsched.files import canonical_sha256, sha256_of, validate
from optsched.traces.importers import import_trace
from optsched.traces.loading import describe_workload, load_workload
from optsched.traces.statistics import recipe_toml
from optsched.traces.synthesis import synthesise

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{s:02d},{100 + s},{s + 1}\n" for s in range(0, 40, 2)
)


def _spec(source: str = "swe-agent", conversations: int | None = 8, turns: int | None = None, **arrivals: object) -> WorkloadSpec:
    arrivals = arrivals or {"process": "poisson", "rate_per_s": 2.0, "seed": 5}
    return WorkloadSpec(source=source, conversations=conversations, turns=turns, arrivals=validate(Arrivals, arrivals))


def _trace(folder: Path) -> Path:
    (folder / "t.csv").write_text(AZURE)
    return folder / "t.csv"


def test_a_recipe_is_embedded_and_rebuilt_exactly() -> None:
    described = describe_workload(_spec(turns=3), None)
    assert described.recipe == catalog.recipe("swe-agent")
    assert described.sha256 == canonical_sha256(catalog.recipe("swe-agent"))
    workload = load_workload(described)
    assert workload == load_workload(type(described).model_validate_json(described.model_dump_json(by_alias=True)))
    assert workload.num_turns == 8 * 3
    assert workload.arrivals_known
    drawn = synthesise(catalog.recipe("swe-agent"), 8, 5).head(None, 3)
    assert np.array_equal(workload.new_tokens, drawn.new_tokens)


def test_another_rate_keeps_the_lengths_and_rescales_the_arrivals() -> None:
    slow = load_workload(describe_workload(_spec(), None))
    fast = load_workload(describe_workload(_spec(), None, rate_per_s=8.0))
    assert np.array_equal(slow.output_tokens, fast.output_tokens)
    np.testing.assert_allclose(fast.arrival_s * 4, slow.arrival_s)


def test_another_seed_changes_lengths_and_arrivals() -> None:
    described = describe_workload(_spec(), None, seed=6)
    assert (described.seed, described.arrivals.seed) == (6, 6)
    one, other = load_workload(describe_workload(_spec(), None)), load_workload(described)
    assert not np.array_equal(one.arrival_s, other.arrival_s)
    assert not np.array_equal(one.new_tokens, other.new_tokens)


def test_a_trace_is_found_beside_its_scenario_and_recorded_with_its_hash(tmp_path: Path) -> None:
    path = _trace(tmp_path)
    described = describe_workload(_spec("t.csv", None, None, process="trace"), tmp_path)
    assert described.trace == str(path)
    assert described.sha256 == sha256_of(path)
    assert load_workload(described) == import_trace(path)


def test_a_trace_on_the_command_line_replaces_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _trace(tmp_path)
    monkeypatch.chdir(tmp_path)
    described = describe_workload(_spec("no-such-recipe"), Path("/elsewhere"), trace=Path("t.csv"))
    workload = load_workload(described)
    assert workload.num_conversations == 8
    assert workload.new_tokens.tolist() == [100 + s for s in range(0, 16, 2)]
    monkeypatch.chdir("/")
    assert load_workload(described) == workload


def test_recorded_arrivals_are_rescaled_to_the_rate_given(tmp_path: Path) -> None:
    _trace(tmp_path)
    described = describe_workload(_spec("t.csv", process="trace"), tmp_path, rate_per_s=4.0)
    np.testing.assert_allclose(load_workload(described).arrival_s, np.arange(8) / 4.0)


def test_a_recipe_file_is_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(recipe_toml(catalog.recipe("code").replace(name="mine")))
    described = describe_workload(_spec("mine.toml"), tmp_path)
    assert described.recipe is not None
    assert described.recipe.name == "mine"


def test_a_trace_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    path = _trace(tmp_path)
    described = describe_workload(_spec("t.csv"), tmp_path)
    path.write_text(AZURE.replace("100", "101"))
    with pytest.raises(SpecError, match=r"t.csv: changed since it was planned for; restore the file, or plan again"):
        load_workload(described)
    path.unlink()
    with pytest.raises(SpecError, match=r"t.csv: no such file"):
        load_workload(described)


def test_a_recipe_that_was_edited_in_the_plan_is_refused() -> None:
    described = describe_workload(_spec(), None)
    with pytest.raises(SpecError, match=r"workload.sha256: does not fit the recipe: it was edited after planning"):
        load_workload(described.replace(recipe=catalog.recipe("chat")))


def test_what_cannot_be_resolved_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown workload 'swe-agnt'; did you mean: swe-agent"):
        describe_workload(_spec("swe-agnt"), tmp_path)
    with pytest.raises(SpecError, match=r"nowhere.csv: no such file; check the path"):
        describe_workload(_spec("nowhere.csv"), tmp_path)
    with pytest.raises(SpecError, match=r"nowhere: no such file"):
        describe_workload(_spec(), tmp_path, trace=tmp_path / "nowhere")
    with pytest.raises(SpecError, match=r"a folder; make a trace of it first with: optsched trace import"):
        describe_workload(_spec(), None, trace=tmp_path)
    with pytest.raises(SpecError, match=r"workload.conversations: missing; a recipe has no end"):
        describe_workload(_spec(conversations=None), None)


def test_too_few_conversations_are_named_with_both_numbers(tmp_path: Path) -> None:
    _trace(tmp_path)
    with pytest.raises(SpecError, match=r"workload.conversations: 21: the trace has only 20 conversations; ask for fewer"):
        load_workload(describe_workload(_spec("t.csv", 21), tmp_path))


def test_process_trace_needs_a_source_with_arrivals(conserve_trace: Path) -> None:
    with pytest.raises(
        SpecError, match=r"workload.arrivals.process: process 'trace': the workload's source has no arrival times"
    ):
        load_workload(describe_workload(_spec(process="trace"), None))
    with pytest.raises(SpecError, match=r"has no arrival times"):
        load_workload(describe_workload(_spec(process="trace"), None, trace=conserve_trace))


def test_a_rate_that_means_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"workload.arrivals.*process 'burst' has no rate_per_s"):
        describe_workload(_spec(process="burst"), None, rate_per_s=2.0)
    with pytest.raises(SpecError, match=r"workload.arrivals.rate_per_s: -2.0: input should be greater than 0"):
        describe_workload(_spec(), None, rate_per_s=-2.0)
    with pytest.raises(SpecError, match=r"workload.arrivals.seed: -1"):
        describe_workload(_spec(), None, seed=-1)

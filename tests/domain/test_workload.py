from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import workloads

from optsched.domain.workload import Arrivals, LengthQuantiles, Recipe, TurnRecipe, Workload
from optsched.errors import SpecError
from optsched.files import validate


def _workload(**changes: object) -> Workload:
    """Two conversations of two turns and one turn."""
    fields: dict[str, Any] = {
        "conversation_id": np.array([7, 3]),
        "arrival_s": np.array([0.0, 1.5]),
        "first_turn": np.array([0, 2, 3]),
        "new_tokens": np.array([100, 5, 50]),
        "output_tokens": np.array([10, 20, 30]),
        "gap_s": np.array([0.0, 0.25, 0.0]),
        **changes,
    }
    return Workload(**fields)


def test_contexts_grow_by_prompts_and_outputs() -> None:
    workload = _workload()
    assert workload.context_before.tolist() == [0, 110, 0]
    assert workload.peak_tokens.tolist() == [135, 80]
    assert workload.first_turn_tokens.tolist() == [100, 50]
    assert workload.conversation_of_turn.tolist() == [0, 0, 1]
    assert workload.turn_in_conversation.tolist() == [0, 1, 0]
    assert [list(turns) for turns in workload] == [[0, 1], [2]]


@given(workload=workloads())
def test_contexts_equal_what_adding_turn_by_turn_gives(workload: Workload) -> None:
    for conversation, turns in enumerate(workload):
        context = 0
        for turn in turns:
            assert workload.context_before[turn] == context
            assert workload.conversation_of_turn[turn] == conversation
            context += int(workload.new_tokens[turn] + workload.output_tokens[turn])
        assert workload.peak_tokens[conversation] == context


@given(workload=workloads(), conversations=st.integers(1, 8), turns=st.integers(1, 5))
def test_the_head_is_the_first_conversations_and_turns(workload: Workload, conversations: int, turns: int) -> None:
    head = workload.head(conversations, turns)
    assert head.num_conversations == min(conversations, workload.num_conversations)
    assert head.head(conversations, turns) == head
    for mine, theirs in zip(head, workload, strict=False):
        kept = list(theirs)[:turns]
        assert head.new_tokens[mine.start : mine.stop].tolist() == workload.new_tokens[kept].tolist()
        assert head.gap_s[mine.start : mine.stop].tolist() == workload.gap_s[kept].tolist()
        if workload.prefix_offset is not None:
            assert _blocks(head, list(mine)) == _blocks(workload, kept)
    assert workload.head() == workload


def _blocks(workload: Workload, turns: list[int]) -> list[list[int]]:
    assert workload.prefix_offset is not None
    assert workload.prefix_blocks is not None
    ends = workload.prefix_offset
    return [workload.prefix_blocks[ends[turn] : ends[turn + 1]].tolist() for turn in turns]


@given(workload=workloads())
def test_workloads_are_equal_when_all_their_arrays_are(workload: Workload) -> None:
    assert workload == replace(workload, new_tokens=workload.new_tokens.copy())
    assert workload != replace(workload, new_tokens=workload.new_tokens + 1)
    assert workload != replace(workload, arrival_s=workload.arrival_s + 1.0)
    assert workload != "a workload"


def test_new_arrivals_are_known_and_change_nothing_else() -> None:
    workload = _workload(arrival_s=np.zeros(2), arrivals_known=False)
    moved = workload.with_arrivals(np.array([1.0, 4.0]))
    assert moved.arrivals_known
    assert moved.arrival_s.tolist() == [1.0, 4.0]
    assert moved.new_tokens is workload.new_tokens
    assert not workload.head(1).arrivals_known


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"arrival_s": np.zeros(3)}, r"2 conversations and 3 turns has arrays of other lengths"),
        ({"first_turn": np.array([0, 2, 4])}, r"arrays of other lengths"),
        ({"first_turn": np.array([1, 2, 3])}, r"arrays of other lengths"),
        ({"gap_s": np.zeros(2)}, r"a workload of 3 turns has turn arrays of other lengths"),
        ({"first_turn": np.array([0, 3, 3])}, r"every conversation needs at least one turn"),
        ({"new_tokens": np.array([0, 5, 50])}, r"a first turn needs at least one prompt token"),
        ({"new_tokens": np.array([1, -5, 50])}, r"no negative prompt length"),
        ({"output_tokens": np.array([1, 0, 1])}, r"every turn needs at least one output token"),
        ({"arrival_s": np.array([0.0, np.inf])}, r"arrival times must be finite"),
        ({"gap_s": np.array([0.0, -1.0, 0.0])}, r"gaps finite and not negative"),
        ({"gap_s": np.array([0.0, 0.0, 1.0])}, r"the gap before a first turn must be 0"),
        ({"arrival_s": np.array([2.0, 1.0])}, r"arrivals must be non-negative and sorted"),
        ({"arrival_s": np.array([-1.0, 1.0])}, r"arrivals must be non-negative and sorted"),
        ({"arrivals_known": False}, r"arrivals that are not known must all be 0"),
        ({"prefix_blocks": np.array([1])}, r"prefix_offset and prefix_blocks go together"),
        ({"prefix_blocks": np.array([1]), "prefix_offset": np.array([0, 1, 1])}, r"must divide 1 blocks among 3 turns"),
        ({"prefix_blocks": np.array([1]), "prefix_offset": np.array([0, 1, 0, 1])}, r"must divide 1 blocks among 3 turns"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        _workload(**changes)


@pytest.mark.parametrize(
    ("quantiles", "match"),
    [
        (((0.1, 1.0), (1.0, 2.0)), r"quantiles must run from probability 0 to 1, strictly increasing"),
        (((0.0, 1.0), (0.5, 2.0), (0.5, 3.0), (1.0, 4.0)), r"strictly increasing"),
        (((0.0, 3.0), (1.0, 2.0)), r"must be non-negative and must not decrease"),
        (((0.0, -3.0), (1.0, 2.0)), r"must be non-negative"),
    ],
)
def test_a_quantile_function_that_is_none_is_refused(quantiles: object, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        validate(LengthQuantiles, {"quantiles": quantiles})


def test_a_recipe_that_contradicts_itself_is_refused() -> None:
    lengths = LengthQuantiles(quantiles=((0, 1), (1, 2)))
    turn = TurnRecipe(new_tokens=lengths, output_tokens=lengths)
    base = {"name": "r", "title": "r", "origin": "r"}
    with pytest.raises(SpecError, match=r"the first turn has no gap before it; remove gap_s from the first"):
        validate(Recipe, {**base, "turn": (TurnRecipe(new_tokens=lengths, output_tokens=lengths, gap_s=lengths),)})
    for weights in ((1.0,), (0.0, 0.0), (-1.0, 2.0)):
        with pytest.raises(SpecError, match=r"num_turns_weights needs 2 non-negative entries, not all zero"):
            validate(Recipe, {**base, "turn": (turn, turn), "num_turns_weights": weights})


def test_arrivals_need_the_rate_that_their_process_has() -> None:
    for process in ("poisson", "gamma", "uniform"):
        with pytest.raises(SpecError, match=rf"process '{process}' needs rate_per_s; add it"):
            validate(Arrivals, {"process": process})
    with pytest.raises(SpecError, match=r"process 'burst' has no rate_per_s: all arrive at time 0"):
        validate(Arrivals, {"process": "burst", "rate_per_s": 1.0})
    with pytest.raises(SpecError, match=r"process: 'weibull': "):
        validate(Arrivals, {"process": "weibull"})

"""Grids of steps: every point is the step it stands for, however the grid is cut, and memory does not grow with it."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from optsched import catalog
from optsched.cost.evaluate import evaluate_steps
from optsched.cost.features import StepFeatures
from optsched.cost.grid import By, StepAxes, evaluate_grid, grid_chunks
from optsched.cost.tables import replica_parameters, step_law
from optsched.errors import SpecError

LLM, TIER = catalog.llm("qwen3-0.6b"), catalog.tier("a40")
AXES = StepAxes(np.array([0, 1, 7, 64, 200]), np.array([16, 500, 30_000]), np.array([0, 1, 300, 4096]))


def steps_of(axes: StepAxes) -> StepFeatures:
    batch, context, prompt = (
        each.ravel().astype(float) for each in np.meshgrid(axes.batch, axes.context, axes.prompt, indexing="ij")
    )
    return StepFeatures.of(prefill_tokens=prompt, pairs=prompt**2 / 2, decode_sequences=batch, kv_tokens=batch * context)


def test_every_point_of_a_grid_is_the_step_it_stands_for() -> None:
    found = evaluate_grid(LLM, [TIER, catalog.tier("a40@200W")], [1, 2], AXES, chunk_points=AXES.num_points)
    assert found.seconds.shape == (2, 2, 5, 3, 4)
    for i, name in enumerate(("a40", "a40@200W")):
        for j, tp in enumerate((1, 2)):
            costs = evaluate_steps(*replica_parameters(LLM, catalog.tier(name), tp=tp), steps_of(AXES))
            np.testing.assert_allclose(found.seconds[i, j].ravel(), costs.seconds, rtol=1e-12)
            np.testing.assert_allclose(found.joules[i, j].ravel(), costs.joules, rtol=1e-12)


def test_the_law_s_grid_is_what_the_law_says() -> None:
    law, steps = step_law(LLM, TIER), steps_of(AXES)
    found = evaluate_grid(LLM, [TIER], [1], AXES, by="law", chunk_points=9)
    content = (steps.tokens, steps.pairs, steps.kv_tokens, steps.sequences)
    seconds = law.step_s(*content)
    np.testing.assert_allclose(found.seconds.ravel(), seconds, rtol=1e-12)
    np.testing.assert_allclose(found.joules.ravel(), law.energy_j(*content) + law.idle_w * seconds, rtol=1e-12)


@pytest.mark.parametrize("by", ["model", "law"])
def test_how_a_grid_is_cut_changes_nothing(by: By) -> None:
    whole = evaluate_grid(LLM, [TIER], [1], AXES, by=by, chunk_points=AXES.num_points)
    parts = evaluate_grid(LLM, [TIER], [1], AXES, by=by, chunk_points=7)
    np.testing.assert_allclose(parts.seconds, whole.seconds, rtol=1e-14)
    np.testing.assert_allclose(parts.joules, whole.joules, rtol=1e-14)
    times = np.zeros(AXES.shape)
    for chunk in grid_chunks(LLM, TIER, AXES, by=by, chunk_points=7):
        assert chunk.seconds.shape == chunk.joules.shape == times[chunk.place].shape
        assert chunk.seconds.size <= 7
        times[chunk.place] += 1
    assert (times == 1).all()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux' /proc")
def test_memory_stays_bounded_while_a_grid_is_walked_through() -> None:
    axes = StepAxes(np.arange(1, 101), np.arange(16, 16 + 100), np.arange(0, 100))
    walk = grid_chunks(LLM, TIER, axes)
    for _ in range(16):
        next(walk)
    before, highest, total = resident_bytes(), 0, 0.0
    for count, chunk in enumerate(walk):
        total += float(chunk.seconds.sum())
        highest = max(highest, resident_bytes()) if count % 8 == 0 else highest
    assert total > 0
    # a million steps; at once their intermediate results would take hundreds of megabytes
    assert highest - before <= 48e6


def test_beside_its_result_a_grid_holds_one_chunk() -> None:
    axes = StepAxes(np.arange(1, 101), np.arange(16, 16 + 200), np.arange(0, 50))
    evaluate_grid(LLM, [TIER], [1], AXES, by="law")
    tracemalloc.start()
    found = evaluate_grid(LLM, [TIER], [1], axes, by="law")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.seconds.nbytes + found.joules.nbytes <= peak <= 16 * axes.num_points + 4e6


@pytest.mark.parametrize("axis", ["batch", "context", "prompt"])
@pytest.mark.parametrize("values", [np.array([]), np.array([1, -1]), np.array([[1]]), np.array([np.nan])])
def test_axes_that_hold_no_numbers_of_steps_are_refused(axis: str, values: np.ndarray) -> None:
    with pytest.raises(SpecError, match=f"the {axis} axis of a grid must be a list of numbers from 0 on"):
        StepAxes(**{"batch": np.array([1]), "context": np.array([1]), "prompt": np.array([0]), axis: values})


def test_a_grid_by_something_unknown_or_in_no_pieces_is_refused() -> None:
    with pytest.raises(SpecError, match="by='heart' is unknown; choose model or law"):
        evaluate_grid(LLM, [TIER], [1], AXES, by="heart")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="chunk_points=0 must be at least 1"):
        evaluate_grid(LLM, [TIER], [1], AXES, chunk_points=0)
    with pytest.raises(SpecError, match="tp=3 does not divide"):
        evaluate_grid(LLM, [TIER], [3], AXES)

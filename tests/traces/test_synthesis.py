from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsched.domain.workload import LengthQuantiles, Recipe, TurnRecipe
from optsched.errors import SpecError
from optsched.traces.synthesis import synthesise


@st.composite
def quantile_functions(draw: st.DrawFn) -> LengthQuantiles:
    points = draw(st.lists(st.floats(0.01, 0.99), unique=True, max_size=4))
    values = sorted(draw(st.lists(st.floats(0, 5000), min_size=len(points) + 2, max_size=len(points) + 2)))
    return LengthQuantiles(quantiles=tuple(zip([0.0, *sorted(points), 1.0], values, strict=True)))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    count = draw(st.integers(1, 4))
    turns = [
        TurnRecipe(
            new_tokens=draw(quantile_functions()),
            output_tokens=draw(quantile_functions()),
            gap_s=draw(st.none() | quantile_functions()) if index else None,
        )
        for index in range(count)
    ]
    weights = draw(st.none() | st.lists(st.floats(0, 5), min_size=count, max_size=count).filter(lambda w: sum(w) > 1e-6))
    return Recipe(name="r", title="r", origin="test", turns=tuple(turns), num_turns_weights=weights and tuple(weights))


@given(recipe=recipes(), seed=st.integers(0, 2**40), count=st.integers(1, 40))
def test_the_first_conversations_are_the_same_however_many_are_drawn(recipe: Recipe, seed: int, count: int) -> None:
    assert synthesise(recipe, 40, seed).head(count) == synthesise(recipe, count, seed)


@given(recipe=recipes(), seed=st.integers(0, 2**40))
def test_lengths_stay_within_their_quantiles(recipe: Recipe, seed: int) -> None:
    workload = synthesise(recipe, 30, seed)
    for index, turn in enumerate(recipe.turns):
        of_turn = workload.turn_in_conversation == index
        for values, lengths, least in (
            (workload.new_tokens[of_turn], turn.new_tokens, 0 if index else 1),
            (workload.output_tokens[of_turn], turn.output_tokens, 1),
        ):
            low, high = lengths.quantiles[0][1], lengths.quantiles[-1][1]
            assert (values >= max(np.floor(low), least)).all()
            assert (values <= max(np.ceil(high), least)).all()
    assert not workload.arrivals_known


def test_drawn_lengths_follow_the_quantile_function() -> None:
    lengths = LengthQuantiles(quantiles=((0, 100), (0.5, 1000), (0.9, 2000), (1, 10000)))
    recipe = Recipe(name="r", title="r", origin="test", turns=(TurnRecipe(new_tokens=lengths, output_tokens=lengths),))
    workload = synthesise(recipe, 100_000, 3)
    for values in (workload.new_tokens, workload.output_tokens):
        np.testing.assert_allclose(np.quantile(values, (0.25, 0.5, 0.7, 0.9, 0.95)), (550, 1000, 1500, 2000, 6000), rtol=0.03)
    # Prompt and output have streams of their own.
    assert abs(np.corrcoef(workload.new_tokens, workload.output_tokens)[0, 1]) < 0.01


def test_another_seed_draws_others_and_turn_counts_follow_their_weights() -> None:
    lengths = LengthQuantiles(quantiles=((0, 1), (1, 100)))
    turn = TurnRecipe(new_tokens=lengths, output_tokens=lengths)
    recipe = Recipe(name="r", title="r", origin="test", turns=(turn, turn, turn), num_turns_weights=(1, 0, 3))
    one, other = synthesise(recipe, 4000, 1), synthesise(recipe, 4000, 2)
    assert one != other
    sizes = np.diff(one.first_turn)
    assert set(sizes.tolist()) == {1, 3}
    assert (sizes == 3).mean() == pytest.approx(0.75, abs=0.03)


def test_at_least_one_conversation_is_drawn() -> None:
    lengths = LengthQuantiles(quantiles=((0, 1), (1, 100)))
    recipe = Recipe(name="r", title="r", origin="test", turns=(TurnRecipe(new_tokens=lengths, output_tokens=lengths),))
    with pytest.raises(SpecError, match=r"conversations: 0 conversations: draw at least 1"):
        synthesise(recipe, 0, 0)

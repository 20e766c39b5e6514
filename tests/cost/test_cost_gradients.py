"""The step's gradient in every number of a tier: right, finite, and of the sign that physics gives it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float64

from optsched import catalog
from optsched.cost.evaluate import evaluate_configurations
from optsched.cost.features import StepFeatures, attended_pairs
from optsched.cost.precision import double_precision, scalar
from optsched.cost.sensitivity import elasticities
from optsched.cost.shape import Layout, LlmShape
from optsched.cost.tables import replica_parameters
from optsched.cost.tier import TierParameters

# Dense, routed and latent llms; one GPU, one node, and more than a node; with and without 8-bit weights and a cap.
REPLICAS = [
    ("qwen3-0.6b", "a40@250W", Layout()),
    ("opt-13b", "a100-40gb", Layout(2)),
    ("llama-3.1-70b", "h100-sxm@500W", Layout(4, 2)),
    ("mixtral-8x7b", "h200", Layout(8, expert_parallel=True)),
    ("deepseek-v3", "b200", Layout(8, 2)),
    ("qwen3-8b", "l4", Layout(1)),
]
# Numbers that make a step faster as they grow, and those that make it slower; others, such as the corners of a law, may do either.
RESOURCES = (
    "flops_per_s",
    "wide_rate",
    "bytes_per_s",
    "cap_w",
    ".compute",
    ".memory",
    "bandwidth",
    ".cache_bytes",
    "cache_saving",
)
COSTS = ("overhead_s", "latency_s", "launch_s", "half_rows", "half_inner", "half_outer", "hops", "passes")
# Whole numbers, at which the number of nodes or of tiles jumps.
COUNTS = ("gpus_per_node", "gpus_per_port", "row_quantum")


@double_precision
def replica(index: int) -> tuple[TierParameters, LlmShape]:
    name, tier, layout = REPLICAS[index]
    llm = catalog.llm(name)
    parameters, _ = replica_parameters(llm, catalog.tier(tier), tp=layout.tp, pp=layout.pp)
    return parameters, LlmShape.of(llm, layout)


PARAMETERS = [replica(index) for index in range(len(REPLICAS))]
PATHS = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMETERS[0][0])]


@st.composite
def steps(draw: st.DrawFn) -> StepFeatures:
    new, context = draw(st.integers(0, 20_000)), draw(st.integers(0, 50_000))
    batch = draw(st.integers(0 if new else 1, 300))
    cached = batch * draw(st.integers(1, 20_000))
    hidden = cached * draw(st.sampled_from([0.0, 0.3, 1.0]))
    return StepFeatures.of(
        prefill_tokens=float(new),
        pairs=float(attended_pairs(new, context)),
        prefill_context_tokens=float(context if new else 0),
        decode_sequences=float(batch),
        kv_tokens=cached - hidden,
        hidden_tokens=hidden,
    )


def elasticities_of(index: int, features: StepFeatures, tier: TierParameters | None = None) -> Float64[np.ndarray, " P"]:
    """Return by how many percent the time grows per percent of each of the tier's P numbers."""
    own, shape = PARAMETERS[index]
    return np.array(list(elasticities(tier or own, shape, features).values()))


def by_finite_differences(index: int, features: StepFeatures, width: float = 2e-5) -> Float64[np.ndarray, " P"]:
    """Return the same by central differences."""
    tier, shape = PARAMETERS[index]
    leaves, structure = jax.tree.flatten(tier)
    factors = np.exp(width * np.concatenate([np.eye(len(leaves)), -np.eye(len(leaves))]))
    moved = jax.tree.unflatten(structure, [float(leaf) * factors[:, place] for place, leaf in enumerate(leaves)])
    above, below = np.split(np.log(evaluate_configurations(moved, *repeated(shape, features, number=len(factors))).seconds), 2)
    return np.asarray((above - below) / (2 * width))


def repeated(shape: LlmShape, features: StepFeatures, *, number: int) -> tuple[LlmShape, StepFeatures]:
    """Return both, the same in each of some rows."""
    together: tuple[LlmShape, StepFeatures] = jax.tree.map(lambda leaf: np.full(number, float(leaf)), (shape, features))
    return together


# Where an all-reduce is about to change its kernel: the corner is sharp, and wide differences miss it.
CORNER = StepFeatures.of(prefill_tokens=700.0, pairs=245_000.0, decode_sequences=300.0, kv_tokens=300.0)


@given(index=st.integers(0, len(REPLICAS) - 1), features=steps())
@example(index=3, features=CORNER)
@settings(max_examples=15)
def test_the_gradient_in_every_number_of_a_tier_equals_finite_differences(index: int, features: StepFeatures) -> None:
    found, expected = elasticities_of(index, features), by_finite_differences(index, features)
    smooth = np.array([not path.endswith(COUNTS) for path in PATHS])
    wrong = smooth & (np.abs(found - expected) > 1e-5 * np.maximum(np.abs(expected), 1e-2))
    assert not wrong.any(), [(PATHS[i], found[i], expected[i]) for i in np.flatnonzero(wrong)]


@given(index=st.integers(0, len(REPLICAS) - 1), features=steps())
@settings(max_examples=60)
def test_more_of_a_resource_never_slows_and_more_of_a_cost_never_speeds_up(index: int, features: StepFeatures) -> None:
    signs = [-1 if path.endswith(RESOURCES) else 1 if path.endswith(COSTS) else 0 for path in PATHS]
    signs = [0 if path.startswith(".power.") else sign for path, sign in zip(PATHS, signs, strict=True)]
    found = elasticities_of(index, features)
    wrong = {path: value for path, value, sign in zip(PATHS, found, signs, strict=True) if sign * value < -1e-9}
    assert not wrong


@given(index=st.integers(0, len(REPLICAS) - 1), features=steps())
@settings(max_examples=30)
def test_every_gradient_is_finite_where_numbers_and_work_are_zero_too(index: int, features: StepFeatures) -> None:
    tier, _ = PARAMETERS[index]
    free = jax.tree.map(lambda leaf: scalar(0.0) if float(leaf) < 1e-4 else leaf, tier)
    for each in (tier, free):
        assert np.isfinite(elasticities_of(index, features, each)).all()


@pytest.mark.parametrize("index", range(len(REPLICAS)))
def test_a_replica_of_several_gpus_depends_on_its_link_and_one_gpu_does_not(index: int) -> None:
    _, _, layout = REPLICAS[index]
    found = dict(zip(PATHS, elasticities_of(index, StepFeatures.of(prefill_tokens=4096.0, pairs=4096.0**2 / 2)), strict=True))
    assert (found[".link_bytes_per_s"] < 0) == (layout.tp > 1)
    crosses = layout.num_gpus > catalog.tier(REPLICAS[index][1]).gpu.datasheet.gpus_per_node
    assert (found[".network_bytes_per_s"] < 0) == crosses

"""The paper's four GPUs under each policy, with the step law and the energy of this reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import lsq_linear

from optsched import catalog
from optsched.domain.plan import Plan, PlanReplica
from optsched.domain.scenario import FleetEntry, LatencyTarget, PlacementPolicyName
from optsched.domain.step_law import StepLaw
from optsched.planner.plan import plan_scenario
from optsched.profiles import conserve_a40 as measured

from .settings import Law, Settings

PREFILL_CHUNK = 8192
FREE = 1e30
"""Bytes per second of a link that takes no time."""


def fitted_law(settings: Settings) -> Law:
    """Return the step law that fits the configured microbenchmarks best, in relative error.

    Cold prefill of L tokens in n chunks: ``n chunk + token L + pair L^2 / 2``; decode: ``chunk + sequence B + kv KV``, whose
    intercept the chunks share.
    """
    points = settings.points
    low, high = points.kv_tokens
    decodes = {shape: seconds for shape, seconds in measured.DECODE_S.items() if low <= shape[1] <= high}
    steps = np.array([[1.0, kv] for _, kv in decodes])
    seconds = np.array(list(decodes.values()))
    own = points.sequence_s * np.array([batch for batch, _ in decodes])
    chunk_s, kv_s = lsq_linear(steps / seconds[:, None], 1 - own / seconds, bounds=(0, np.inf)).x
    token_s, pair_s = {}, {}
    for cap, times in measured.PREFILL_S.items():
        chosen = {tokens: s for tokens, s in times.items() if points.prompts[0] <= tokens <= points.prompts[1]}
        rows = np.array([[tokens, tokens**2 / 2] for tokens in chosen], float)
        whole = np.array(list(chosen.values()))
        chunks = chunk_s * np.ceil(np.array(list(chosen)) / PREFILL_CHUNK)
        found = lsq_linear(rows / whole[:, None], 1 - chunks / whole, bounds=(0, np.inf)).x
        token_s[str(cap)], pair_s[str(cap)] = float(found[0]), float(found[1])
    kv = {"300": float(kv_s), "200": float(kv_s) * points.capped_decode}
    return Law(chunk_s=float(chunk_s), token_s=token_s, pair_s=pair_s, kv_s=kv)


def with_law(law: StepLaw, settings: Settings, cap_w: float, factor: float) -> StepLaw:
    """Return a packaged law with the times of this reproduction, and its energy of decoding times a factor."""
    cap, times, last = f"{cap_w:.0f}", settings.law, law.gemm_tokens[-1]
    per_token = times.token_s[cap]
    return law.replace(
        overhead_s=0.0, floor_s=settings.points.floor_s, gemm_tokens=(0.0, 1.0, last),
        gemm_s=(0.0, times.chunk_s, times.chunk_s + per_token * (last - 1)),
        gemm_j=(0.0, float(law.gemm_energy(1.0)), float(law.gemm_energy(last))),
        pair_s=times.pair_s[cap], prefill_context_s=0.0, kv_s=times.kv_s[cap],
        sequence_s=max(0.0, settings.points.sequence_s - per_token),
        step_j=law.step_j * factor, kv_j=law.kv_j * factor, sequence_j=law.sequence_j * factor,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _packaged(
    name: str, slo_factor: float, policy: PlacementPolicyName, caps: tuple[int, int], parameters: tuple[tuple[str, float], ...]
) -> Plan:
    scenario = catalog.scenario(name)
    first, rest = (
        [
            FleetEntry(gpu="a40", power_cap_w=caps[0], role="mixed"),
            FleetEntry(gpu="a40", power_cap_w=caps[1], role="mixed", count=3),
        ]
        if policy == "collocated"
        else [
            FleetEntry(gpu="a40", power_cap_w=caps[0], role="prefill", max_batched_tokens=PREFILL_CHUNK),
            FleetEntry(gpu="a40", power_cap_w=caps[1], role="decode", count=3),
        ]
    )
    target = LatencyTarget(percentile=95, standalone_factor=slo_factor)
    assert scenario.workload is not None
    asked = scenario.replace(
        fleet=(first, rest), slo=scenario.slo.replace(ttfet=target, tbt=target, e2e=target),
        workload=scenario.workload.replace(conversations=8),
        policy=scenario.policy.replace(placement=policy, placement_parameters=dict(parameters)),
    )  # fmt: skip
    plan = plan_scenario(asked).plan
    return plan.replace(placement=plan.placement.replace(assignments=()))


def make_plan(
    settings: Settings, policy: PlacementPolicyName, caps: tuple[int, int], *, packaged: bool = False, **parameters: float
) -> Plan:
    """Return the plan of a policy on one GPU at the first cap and three at the second.

    Parameters
    ----------
    settings
        The law, and the factors on energy.
    policy
        Placement policy; collocated makes all four GPUs mixed.
    caps
        Power caps in watts: of the prefiller, and of the others.
    packaged
        Keep the packaged step law.
    parameters
        Of the policy.
    """
    plan = _packaged(settings.scenario, settings.slo_factor, policy, caps, tuple(sorted(parameters.items())))
    if packaged:
        return plan
    reference = plan.slo.standalone
    factor = settings.power.factor
    replicas = [
        replica.replace(
            coefficients=with_law(replica.coefficients, settings, replica.power_cap_w, factor[f"{replica.power_cap_w:.0f}"])
        )
        for replica in plan.replicas
    ]
    law = with_law(reference.coefficients, settings, reference.power_cap_w, 1.0).replace(floor_s=settings.points.alone_s)
    alone = reference.replace(coefficients=law)
    return plan.replace(replicas=tuple(replicas), slo=plan.slo.replace(standalone=alone))


def decoders_only(plan: Plan, blocks: int = 10**6) -> Plan:
    """Return a disaggregated plan whose first turns cost nothing: prefilled at once, for no energy, and moved in no time."""
    return plan.replace(
        replicas=tuple(
            _free(plan, index, blocks) if replica.role == "prefill" else replica for index, replica in enumerate(plan.replicas)
        ),
        links=tuple(link.replace(latency_s=0.0, bytes_per_s=FREE, joules_per_byte=0.0) for link in plan.links),
    )


def _free(plan: Plan, index: int, blocks: int) -> PlanReplica:
    law = plan.replicas[index].coefficients
    nothing = {name: 0.0 for name, value in law if isinstance(value, float)}
    zeros = (0.0,) * len(law.gemm_tokens)
    return plan.replicas[index].replace(coefficients=law.replace(**nothing, gemm_s=zeros, gemm_j=zeros), kv_blocks=blocks)


def prefillers(plan: Plan) -> Sequence[int]:
    """Return the indices of the replicas that only prefill."""
    return [index for index, replica in enumerate(plan.replicas) if replica.role == "prefill"]

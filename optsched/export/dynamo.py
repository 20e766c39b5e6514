"""A DynamoGraphDeployment in the style of Dynamo's examples: a frontend that routes by cache, and workers by role."""

from __future__ import annotations

from optsched.domain.plan import Plan
from optsched.domain.scenario import Role
from optsched.errors import SpecError
from optsched.export.documented import engine
from optsched.export.pools import ServerPool, deployment_name, server_pools
from optsched.export.serving import Serving
from optsched.export.yaml_text import Node, yaml_text

_NAMES: dict[Role, str] = {"prefill": "VllmPrefillWorker", "decode": "VllmDecodeWorker", "mixed": "VllmDecodeWorker"}
_TYPES: dict[Role, str] = {"prefill": "prefill", "decode": "decode", "mixed": "worker"}
_MODES: dict[Role, str] = {"prefill": "prefill", "decode": "decode", "mixed": "agg"}


def dynamo_files(plan: Plan, servings: list[Serving]) -> dict[str, str]:
    """Return the manifest by path.

    Raises
    ------
    SpecError
        If one deployment cannot hold the plan.
    """
    pools = server_pools(plan, servings)
    limit = engine("dynamo").component
    if limit is not None and len(pools) >= limit.most:
        raise SpecError(
            f"the plan has {len(pools)} kinds of replicas, a deployment {limit.most - 1} at most; use --to vllm", field="--to"
        )
    components: list[Node] = [_frontend()]
    for index, pool in enumerate(pools):
        earlier = sum(_NAMES[each.one.replica.role] == _NAMES[pool.one.replica.role] for each in pools[:index])
        components.append(_worker(pool, earlier))
    manifest: Node = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": deployment_name(plan)},
        "spec": {"components": components},
    }
    return {"deployment.yaml": yaml_text([manifest], f"Laid out as in\n{engine('dynamo').source}")}


def _frontend() -> Node:
    container: Node = {
        "name": "main",
        "image": engine("dynamo").image,
        "env": [{"name": "DYN_ROUTER_MODE", "value": "kv"}],
    }
    return {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": {"containers": [container]}}}


def _worker(pool: ServerPool, earlier: int) -> Node:
    serving, role = pool.one, pool.one.replica.role
    container: Node = {
        "name": "main",
        "image": engine("dynamo").image,
        "command": ["python3", "-m", "dynamo.vllm"],
        "args": ["--model", serving.model, "--disaggregation-mode", _MODES[role], *serving.arguments],
        "envFrom": [{"secretRef": {"name": "hf-token-secret"}}],
        "resources": {"limits": {"nvidia.com/gpu": str(serving.gpus)}},
    }
    return {
        "name": f"{_NAMES[role]}{earlier + 1}" if earlier else _NAMES[role],
        "type": _TYPES[role],
        "replicas": len(pool.servings),
        "podTemplate": {"spec": {"nodeSelector": dict(pool.node_selector), "containers": [container]}},
    }

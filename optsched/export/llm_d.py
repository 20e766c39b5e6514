"""Manifests in the style of llm-d's guides: a Deployment per pool, and the router's values."""

from __future__ import annotations

from optsched.domain.plan import Plan
from optsched.domain.scenario import Role
from optsched.export.documented import engine
from optsched.export.notes import PINNED, SESSION_HEADER
from optsched.export.pools import ServerPool, deployment_name, server_pools
from optsched.export.serving import Serving
from optsched.export.yaml_text import Node, yaml_text

_ROLES: dict[Role, str] = {"prefill": "prefill", "decode": "decode", "mixed": "prefill-decode"}
_PORT, _BEHIND_SIDECAR, _SIDE_PORT = 8000, 8200, 5600


def llm_d_files(plan: Plan, servings: list[Serving]) -> dict[str, str]:
    """Return the manifests by path.

    Raises
    ------
    SpecError
        If one deployment cannot hold the plan.
    """
    pools = server_pools(plan, servings)
    documented = engine("llm-d")
    router = documented.plugin["disagg-profile-handler"]
    return {
        "modelserver.yaml": yaml_text([_deployment(plan, pool) for pool in pools], f"Laid out as in\n{documented.source}"),
        "router.values.yaml": yaml_text([_router(plan, pools)], f"Laid out as in\n{router.source}"),
    }


def _labels(plan: Plan, pool: ServerPool) -> dict[str, Node]:
    return {
        "llm-d.ai/inference-serving": "true",
        "llm-d.ai/guide": deployment_name(plan),
        "llm-d.ai/model": deployment_name(plan).removeprefix("optsched-"),
        "llm-d.ai/accelerator-variant": "gpu",
        "llm-d.ai/accelerator-vendor": "nvidia",
        "llm-d.ai/engine-type": "vllm",
        "llm-d.ai/role": _ROLES[pool.one.replica.role],
        "optsched/pool": pool.name,
    }


def _deployment(plan: Plan, pool: ServerPool) -> Node:
    labels = _labels(plan, pool)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"{deployment_name(plan)}-{pool.name}", "labels": labels},
        "spec": {
            "replicas": len(pool.servings),
            "selector": {"matchLabels": {name: labels[name] for name in ("llm-d.ai/guide", "optsched/pool")}},
            "template": {"metadata": {"labels": labels}, "spec": _pod(pool)},
        },
    }


def _pod(pool: ServerPool) -> dict[str, Node]:
    behind = pool.one.replica.role == "decode"
    pod: dict[str, Node] = {"nodeSelector": dict(pool.node_selector)}
    if behind:
        pod["initContainers"] = [_sidecar()]
    pod["containers"] = [_server(pool, _BEHIND_SIDECAR if behind else _PORT)]
    pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "20Gi"}}]
    return pod


def _sidecar() -> Node:
    return {
        "name": "routing-proxy",
        "image": engine("llm-d").sidecar_image,
        "args": [f"--port={_PORT}", "--kv-connector=nixlv2", "--secure-proxy=false"],
        "ports": [{"name": "sidecar", "containerPort": _PORT, "protocol": "TCP"}],
        "restartPolicy": "Always",
    }


def _server(pool: ServerPool, port: int) -> Node:
    serving = pool.one
    moves = serving.replica.role != "mixed"
    cards: dict[str, Node] = {"nvidia.com/gpu": str(serving.gpus)}
    environment: list[Node] = [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "llm-d-hf-token", "key": "HF_TOKEN", "optional": True}}}
    ]
    ports: list[Node] = [{"name": "modelserver", "containerPort": port, "protocol": "TCP"}]
    if moves:
        environment.append({"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
        ports.append({"name": "nixl", "containerPort": _SIDE_PORT, "protocol": "TCP"})
    return {
        "name": "modelserver",
        "image": engine("llm-d").image,
        "command": ["vllm", "serve"],
        "args": [serving.model, "--port", str(port), *serving.arguments],
        "env": environment,
        "ports": ports,
        "resources": {"limits": cards, "requests": cards},
        "startupProbe": {
            "httpGet": {"path": "/v1/models", "port": "modelserver"},
            "periodSeconds": 30,
            "failureThreshold": 120,
        },
        "livenessProbe": {"httpGet": {"path": "/health", "port": "modelserver"}, "periodSeconds": 10},
        "readinessProbe": {"httpGet": {"path": "/v1/models", "port": "modelserver"}, "periodSeconds": 5},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _router(plan: Plan, pools: list[ServerPool]) -> Node:
    """Return Helm values of the llm-d router: which servers, and how the endpoint picker chooses among them."""
    config: Node = {"apiVersion": "llm-d.ai/v1", "kind": "EndpointPickerConfig", **_picker(plan, pools)}
    return {
        "router": {
            "epp": {
                "replicas": 1,
                "pluginsConfigFile": "optsched-plugins.yaml",
                "pluginsCustomConfig": {"optsched-plugins.yaml": yaml_text([config])},
            },
            "modelServers": {"matchLabels": {"llm-d.ai/guide": deployment_name(plan)}},
        }
    }


def _picker(plan: Plan, pools: list[ServerPool]) -> dict[str, Node]:
    prefillers = [pool for pool in pools if pool.one.replica.role != "decode"]
    rate = min(pool.prefill_tokens_per_s for pool in prefillers)
    longest = max(int(dict(pool.one.options).get("--max-model-len") or plan.llms[0].shape.max_positions) for pool in pools)
    plugins: list[Node] = [
        {"type": "approx-prefix-cache-producer", "parameters": {"maxPrefixTokensToMatch": longest}},
        {"type": "inflight-load-producer"},
        {"type": "prefix-cache-affinity-filter", "parameters": {"peakPrefillThroughput": rate}},
        {"type": "token-load-scorer"},
        {"type": "active-request-scorer"},
        {"type": "max-score-picker"},
    ]
    if len(prefillers) == len(pools):
        profile = ["prefix-cache-affinity-filter", "token-load-scorer", "max-score-picker"]
        return {"plugins": plugins, "schedulingProfiles": [_profile("default", profile)]}
    decider, decode = _decider(plan, pools), ["prefix-cache-affinity-filter", "active-request-scorer", "max-score-picker"]
    handler: Node = {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": decider["type"]}}}
    plugins = [decider, handler, {"type": "prefill-filter"}, {"type": "decode-filter"}, *plugins]
    if plan.placement.policy in PINNED:
        session: Node = {"strategy": "session_id", "sessionIdConfig": {"sources": [{"header": SESSION_HEADER}]}}
        plugins.append({"type": "session-affinity-filter", "parameters": session})
        decode = ["session-affinity-filter", *decode]
    return {
        "plugins": plugins,
        "schedulingProfiles": [
            _profile("prefill", ["prefill-filter", "prefix-cache-affinity-filter", "token-load-scorer", "max-score-picker"]),
            _profile("decode", ["decode-filter", *decode]),
        ],
    }


def _decider(plan: Plan, pools: list[ServerPool]) -> dict[str, Node]:
    """Return what decides whether a turn goes through a prefiller: always, or where it adds more than a decoder's step takes."""
    if plan.placement.policy == "full-disaggregation":
        return {"type": "always-disagg-pd-decider"}
    budgets = [
        int(dict(pool.one.options)["--max-num-batched-tokens"] or 1) for pool in pools if pool.one.replica.role == "decode"
    ]
    return {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": min(budgets)}}


def _profile(name: str, plugins: list[str]) -> Node:
    return {"name": name, "plugins": [{"pluginRef": plugin} for plugin in plugins]}

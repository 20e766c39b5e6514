"""What the server that forks workers has loaded so that they need not: torch, numba, and a policy with what all share."""

from __future__ import annotations

from optsched.batching.policies.dispatch import compiled_policy
from optsched.runtime import worker

__all__ = ["worker"]

compiled_policy("vllm-chunked")

"""What every execution must yield, whatever happens to it; import as ``from undisturbed import ...``.

The weights are drawn ten times as wide as workers draw them: with theirs a tiny llm repeats one token whatever its cache holds.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import replace

import numpy as np
import torch
from factories import TINY
from safetensors.torch import save_file

from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.runtime.cluster import _Run
from optsched.runtime.fleet import Fleet
from optsched.runtime.gpus import on_gpus
from optsched.runtime.messages import Setup
from optsched.runtime.model.huggingface import load_state_dict_from_hf
from optsched.runtime.model.transformer import Transformer
from optsched.runtime.prompts import prompt_tokens
from optsched.runtime.setups import worker_setups
from optsched.runtime.step import forward

SEED = 3


def _state() -> dict[str, torch.Tensor]:
    """Return weights of the tiny llm by the names of ``Qwen3ForCausalLM``."""
    generator, llm = torch.Generator().manual_seed(SEED), TINY
    d, q, kv, f = llm.hidden_size, llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim, llm.ffn_size
    shapes = {"embed_tokens": (llm.vocab_size, d), "norm": (d,)}
    for layer in range(llm.num_layers):
        attention = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q), "q_norm": (llm.head_dim,)}
        inner = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
        shapes |= {f"layers.{layer}.self_attn.{name}": shape for name, shape in {**attention, "k_norm": (llm.head_dim,)}.items()}
        shapes |= {f"layers.{layer}.mlp.{name}": shape for name, shape in inner.items()}
        shapes |= {f"layers.{layer}.{name}_layernorm": (d,) for name in ("input", "post_attention")}
    return {
        f"model.{name}.weight": torch.ones(shape) if len(shape) == 1 else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def bare_model(dtype: torch.dtype) -> Transformer:
    """Return the tiny llm with those weights."""
    return Transformer(TINY, load_state_dict_from_hf(TINY, _state(), dtype))


_MODEL = bare_model(torch.float64)


@functools.cache
def weights_folder() -> str:
    """Return a folder with those weights in float32."""
    folder = tempfile.mkdtemp(prefix="optsched-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_file(_state(), f"{folder}/model.safetensors")
    return folder


def exact_setups(plan: Plan, workload: Workload, patience_s: float = 60.0, device: str = "cpu") -> list[Setup]:
    """Return setups of workers that compute in float64."""
    setups = worker_setups(plan, workload, SEED, device, patience_s)
    setups = [replace(setup, double=True, weights=weights_folder()) for setup in setups]
    return setups if device == "cpu" else on_gpus(setups, torch.cuda.device_count())


def undisturbed_tokens(workload: Workload) -> np.ndarray:
    """Return the output tokens of all turns by the forward pass without cache, one token after the other."""
    found: list[int] = []
    for conversation, turns in enumerate(workload):
        known: list[int] = []
        for number, turn in enumerate(turns):
            known += prompt_tokens(SEED, conversation, number, int(workload.new_tokens[turn]), TINY.vocab_size).tolist()
            for _ in range(int(workload.output_tokens[turn])):
                known.append(int(forward(_MODEL, torch.tensor(known))[-1].argmax()))
                found.append(known[-1])
    return np.array(found)


def run_on(
    fleet: Fleet, plan: Plan, workload: Workload, limit_s: float = 120.0, patience_s: float = 60.0
) -> tuple[ExecutionLog, np.ndarray]:
    """Run a workload on workers that have started; return the log and the output tokens of all turns."""
    run = _Run(plan, workload, fleet, SEED, "cpu", patience_s)
    log = run.to_the_end(limit_s, None)
    return log, run.observed.token_id

"""A recording of operations on the CPU that obeys the rules of a CUDA graph; import as ``from tape import Tape``.

What is recorded are the operations with the tensors they had: a replay computes again from whatever these hold by then, and stores
results where they were stored. Whatever Python did between operations happens once, and never again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Recording(TorchDispatchMode):
    """Execute operations, and keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable, Sequence[object], dict[str, object], object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, result in self.operations:
                if func._schema.is_mutable:
                    func(*args, **kwargs)
                    continue
                memory = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
                if all(tensor.untyped_storage().data_ptr() in memory for tensor in tensors(result)):
                    continue  # a view: its memory is another's
                for old, new in zip(tensors(result), tensors(func(*args, **kwargs)), strict=True):
                    old.copy_(new)


class Tape:
    """What records on the CPU (see `optsched.runtime.graphs.Capture`), counting recordings and replays."""

    def __init__(self, refuse_after: int | None = None) -> None:
        self.recordings = self.replays = 0
        self.refuse_after = refuse_after

    def __call__(self, launch: Callable[[], None]) -> Callable[[], None]:
        if self.recordings == self.refuse_after:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
        self.recordings += 1
        with Recording() as recording:
            launch()

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return replay

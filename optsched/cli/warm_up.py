"""The ``warm-up`` command: compile the kernels ahead."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from time import perf_counter

from optsched.cli.output import emit_json, print_table, progress
from optsched.report.numbers import seconds

_LAYERS = {"batching": "optsched.batching.warm_up", "simulator and placement": "optsched.planner.warm_up"}


def warm_up(*, json: bool = False) -> None:
    """Compile the numba kernels ahead of their first use.

    They are kept in the user's cache folder, so that later commands start at once.

    Parameters
    ----------
    json
        Print one JSON object instead of a table.
    """
    took: dict[str, float] = {}
    with progress("compiling", total=len(_LAYERS)) as advance:
        for done, (layer, module) in enumerate(_LAYERS.items(), start=1):
            started = perf_counter()
            compile_all: Callable[[], None] = import_module(module).warm_up
            compile_all()
            took[layer] = perf_counter() - started
            advance(done)
    if json:
        emit_json({"runtime_s": took})
    else:
        print_table("Compiled kernels", ("layer", "time"), [(layer, seconds(time_s)) for layer, time_s in took.items()])

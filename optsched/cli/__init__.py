"""The ``optsched`` command; each subcommand's module is imported only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from optsched import __version__
from optsched.errors import OptschedError

_SUMMARY = "Plan LLM serving with a proven bound, execute the plan, and see where the prediction was wrong."
_COMMANDS = (
    ("show", "List gpus, tiers, llms, workloads, scenarios or policies, or show one in full."),
    ("estimate", "Estimate time, energy and memory of one llm on one tier."),
    ("batch", "Solve one batch-composition problem with a proven bound."),
    ("plan", "Plan a scenario: who prefills, who decodes, which conversation goes where."),
    ("capacity", "Find the cheapest fleet that keeps a scenario's targets, with prices and a bound."),
    ("simulate", "Execute a plan or a scenario on a virtual clock."),
    ("run", "Execute a plan on real torch workers and compare with the prediction."),
    ("calibrate", "Measure this machine and write its tier file."),
    ("report", "Make one self-contained page of a plan, a log or a capacity answer."),
    ("export", "Write a plan as launch commands or manifests of vLLM, llm-d or Dynamo."),
    ("trace", "Import, describe or synthesise workloads."),
    ("repro", "Run a paper's experiments again and say which of its claims come out."),
    ("warm-up", "Compile the numba kernels ahead of their first use."),
)


def _app() -> App:
    app = App(
        name="optsched", help=_SUMMARY, version=__version__, help_format="plaintext", result_action="return_value",
        suppress_keyboard_interrupt=False,  # what a command was doing is said in one line
    )  # fmt: skip
    for name, summary in _COMMANDS:
        module = name.replace("-", "_")
        app.command(f"optsched.cli.{module}:{module}", name=name, help=summary)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an optsched error in one line, 2 wrong usage."""
    sys.exit(invoke(arguments))


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments
        Words after ``optsched``; None: those of this process.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _app()(tokens or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"optsched: {' '.join(str(error).split())} See 'optsched --help'.", file=sys.stderr)  # noqa: T201
        return 2
    except OptschedError as error:
        print(f"optsched: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"optsched: {str(interrupt) or 'interrupted'}", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        return 141
    return 0

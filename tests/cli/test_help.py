"""Help is quick, loads nothing heavy, and names every command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optsched.cli import invoke

COMMANDS = ("show", "estimate", "batch", "plan", "simulate", "run", "calibrate", "report", "export", "trace", "repro", "warm-up")
HEAVY = ("jax", "torch", "pulp", "cvxpy", "numba", "pint", "polars", "numpy", "yaml")


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom optsched.cli import invoke\ncode = invoke(['--help'])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\nassert not heavy, heavy\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert invoke([command, "--help"]) == 0
    assert "Usage: optsched" in capsys.readouterr().out


def test_version_is_printed(capsys):
    from optsched import __version__

    assert invoke(["--version"]) == 0
    assert __version__ in capsys.readouterr().out

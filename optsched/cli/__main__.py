"""Run ``python -m optsched.cli``."""

from optsched.cli import main

main()

"""Entry point: solve a placement problem, or certify a placement."""

from __future__ import annotations

from optsched.placement.solved import Solved, certificate

__all__ = ["Solved", "certificate"]

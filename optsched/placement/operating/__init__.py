"""Placement where roles and power caps are decided too: GPUs that may work at any of several operating points."""

"""Compose scenario, cost model, placement and simulator into a plan; the only place where optimising meets simulating."""

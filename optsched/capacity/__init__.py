"""Which fleet serves a workload at the least money or energy."""

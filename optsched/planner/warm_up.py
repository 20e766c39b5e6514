"""Compile the kernels of simulator and placement ahead of their first use."""

from __future__ import annotations

from optsched import catalog
from optsched.planner.plan import plan_scenario


def warm_up() -> None:
    """Plan the packaged quickstart with every kind of placement, so that each kernel is compiled or loaded from the cache."""
    scenario = catalog.scenario("quickstart")
    plan_scenario(scenario, policy="conserve")
    plan_scenario(scenario, policy="collocated")
    plan_scenario(scenario, policy="optimised")

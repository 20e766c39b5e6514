"""Roles and power caps as decisions: the placement program over all replicas that the supply could make, and which are on.

Sets
    O: operating points (gpu, role, cap); R: their replicas, as many of each point as the supply makes of its gpu; R_g: of gpu g
Parameters
    n_g: replicas that the supply makes of gpu g; s_i: what replica i takes per second while it is on (idle power, or price)
Variables
    u_i (``on_i``) in {0, 1}: replica i is on, at its point; h_i (``while_on_i``): the makespan if it is on, else 0; the others
    as in `optsched.placement.milp`

=====================  ======================================  ==================================
name in the solver     constraint                              function
=====================  ======================================  ==================================
``supply_g``           sum_(i in R_g) u_i = n_g (<= if idle)   `turn_on_what_the_supply_makes`
``copy_i``             u_i >= u_(i+1), same point              `turn_copies_on_in_order`
``prefills_i_c``       y_ci <= u_i                             `use_only_what_is_on`
``decodes_i_c``        z_ci <= u_i                             `use_only_what_is_on`
``while_on_i``         h_i >= H - M (1 - u_i)                  `pay_while_on`
``together_g``         sum_(i in R_g) h_i = n_g H (>= none)    `pay_while_on`
=====================  ======================================  ==================================

One column per operating point, none by special ordered sets; points are counted, so that GPUs have no names.
"""

from __future__ import annotations

from itertools import pairwise

import pulp

from optsched.placement.milp import PlacementFormulation
from optsched.placement.operating.problem import FleetPlan, OpenProblem


class OperatingFormulation(PlacementFormulation):
    """The program of one open problem.

    Parameters
    ----------
    open_problem
        What to solve.
    """

    def __init__(self, open_problem: OpenProblem) -> None:
        self.open_problem = open_problem
        super().__init__(open_problem.everything, open_problem.copies())
        self.on = [self.program.add_variable(f"on_{i}", cat=pulp.LpBinary) for i in self.replicas]
        self.turn_on_what_the_supply_makes()
        self.turn_copies_on_in_order()
        self.use_only_what_is_on()
        if open_problem.objective in ("energy", "cost"):
            self.pay_while_on()

    def _of_gpu(self, gpu: str) -> list[int]:
        return [i for i in self.replicas if self.problem.replicas[i].gpu == gpu]

    def turn_on_what_the_supply_makes(self) -> None:
        """Require sum_(i in R_g) u_i = n_g, or at most n_g where replicas may rest."""
        for number, (gpu, most) in enumerate(self.open_problem.supply.items()):
            total = pulp.lpSum(self.on[i] for i in self._of_gpu(gpu))
            self.program += (total <= most if self.open_problem.may_rest else total == most), f"supply_{number}"

    def turn_copies_on_in_order(self) -> None:
        """Require u_i >= u_(i+1) for replicas at the same point."""
        for group in self.groups:
            for earlier, later in pairwise(group):
                self.program += self.on[earlier] >= self.on[later], f"copy_{later}"

    def use_only_what_is_on(self) -> None:
        """Require y_ci <= u_i and z_ci <= u_i."""
        for i in self.replicas:
            for c in self.conversations:
                for name, used in (("prefills", self._prefills(c, i)), ("decodes", self._decodes(c, i))):
                    if len(used):
                        self.program += used <= self.on[i], f"{name}_{i}_{c}"

    def standing(self, per_s: list[float]) -> pulp.LpAffineExpression:
        """Return what the replicas that are on take over the makespan, each so much per second."""
        self.while_on = [self.program.add_variable(f"while_on_{i}", lowBound=0) for i in self.replicas]
        return pulp.lpSum(rate * seconds for rate, seconds in zip(per_s, self.while_on, strict=True))

    def pay_while_on(self) -> None:
        """Require h_i >= H - M (1 - u_i); together n_g H where none may rest, and H at least where some are on."""
        # generous: sequences that share steps end sooner than one after the other
        most = 10 * (self.horizon + sum(max(self._of(self.least.e2e_s, c, q) for q in self.pairs[c]) for c in self.conversations))
        for i in self.replicas:
            self.program += self.while_on[i] >= self.makespan - most * (1 - self.on[i]), f"while_on_{i}"
        for number, (gpu, count) in enumerate(self.open_problem.supply.items()):
            total = pulp.lpSum(self.while_on[i] for i in self._of_gpu(gpu))
            if not self.open_problem.may_rest:
                self.program += total >= count * self.makespan, f"together_{number}"
        if self.open_problem.may_rest:
            self.program += pulp.lpSum(self.while_on) >= self.makespan, "together_0"

    def extract_fleet(self) -> FleetPlan:
        """Read the fleet and the placement on it off the variables."""
        on = [i for i in self.replicas if (self.on[i].varValue or 0.0) > 0.5]
        return self.open_problem.fleet_plan(self.extract_plan(), on)

"""Power of a step, and the clock that a power cap leaves it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from optsched.cost.precision import Scalar
from optsched.cost.roofline import LawParameters

SLOW_CLOCK = 0.7  # a step's duration is taken at this clock and at the full one
LOWEST_CLOCK = 0.05  # cards leave this out of reach; it keeps the search away from zero
MOST_STEPS = 15


class PowerParameters(LawParameters):
    """Coefficients of a `optsched.domain.power_law.PowerLaw`."""

    active: Scalar
    gemm: Scalar
    attention: Scalar
    memory: Scalar
    clock_linear: Scalar
    clock_exponent: Scalar
    sharpness: Scalar


class Limits(eqx.Module):
    """Power of one idle GPU, the limit of its board, and the cap, in watts."""

    idle_w: Scalar
    board_w: Scalar
    cap_w: Scalar

    @property
    def board_above_idle_w(self) -> Scalar:
        """What the board's limit leaves above idle."""
        return self.board_w - self.idle_w

    @property
    def cap_above_idle_w(self) -> Scalar:
        """What the cap leaves above idle."""
        return self.cap_w - self.idle_w


class Load(eqx.Module):
    """A step's work on one GPU.

    Attributes
    ----------
    compute_j, memory_j
        Dynamic energy at the full clock in joules: what follows the clock, and memory.
    full_s, slow_s
        Duration of the step at the full clock, and at `SLOW_CLOCK`.
    """

    compute_j: Scalar
    memory_j: Scalar
    full_s: Scalar
    slow_s: Scalar

    @property
    def follows_s(self) -> Scalar:
        """The part of the duration that grows as the clock falls."""
        return (self.slow_s - self.full_s) / (1.0 / SLOW_CLOCK - 1.0)

    def seconds_at(self, clock: Scalar) -> Scalar:
        """Return about the step's duration at a clock: a constant, and a part that follows the clock."""
        return self.full_s + self.follows_s * (1.0 / clock - 1.0)


def power_factor(law: PowerParameters, clock: Scalar) -> Scalar:
    """Return dynamic power at a clock over that at the full clock, for the same activity.

    Notes
    -----
    ``g(f) = a f + (1 - a) f^m``: dynamic power is ``f V(f)^2``; near the full clock the voltage climbs steeply, so that the
    first watts cost little time; at low clocks it rests on its floor and power is proportional to the clock.
    """
    return law.clock_linear * clock + (1.0 - law.clock_linear) * clock**law.clock_exponent


def demand_w(law: PowerParameters, limits: Limits, load: Load, clock: Scalar, seconds: Scalar) -> Scalar:
    """Return the power above idle that the activity of a step would draw at the full clock.

    Parameters
    ----------
    law, limits, load
        Of one GPU.
    clock, seconds
        At which the step runs, and how long it then takes.
    """
    return law.active * limits.board_above_idle_w + (load.compute_j / clock + load.memory_j) / seconds


def full_demand_w(law: PowerParameters, limits: Limits, load: Load) -> Scalar:
    """Return the power above idle that a step would draw at the full clock were there no limit."""
    return demand_w(law, limits, load, jnp.ones_like(load.full_s), load.full_s)


def step_clock(law: PowerParameters, limits: Limits, load: Load) -> Scalar:
    """Return the clock of a step under the cap, over its clock at the board's limit.

    Parameters
    ----------
    law, limits, load
        Of one GPU.

    Notes
    -----
    With the demand ``W`` (`demand_w`), the board's limit B and the cap C above idle, and sharpness k, the clock f solves
    ``g(f)^k (1 + (W(f)/C)^k) = 1 + (W(1)/B)^k``. It is 1 at C = B, since laws are fitted to times at the board's limit, and
    rises with C; for one kind of work it gives the power ``(W^-k + C^-k)^(-1/k)``, the smaller of demand and cap with a
    rounded corner. The control loop of a card averages over more than a kernel, hence one clock per step.

    Newton's method in log f: the logarithm of the left side is convex and rises at least as k times a share of log f, so it
    comes from above. The last step alone is differentiated, which gives the derivative of the root.
    """
    start = jnp.ones_like(load.full_s)
    fixed = jax.lax.stop_gradient((law, limits, load))
    root = jax.lax.fori_loop(0, MOST_STEPS, lambda _, clock: _newton(*fixed, clock), start)
    return _newton(law, limits, load, jax.lax.stop_gradient(root))


def _newton(law: PowerParameters, limits: Limits, load: Load, clock: Scalar) -> Scalar:
    """Return the next clock of Newton's method in log f."""
    k, cap_w = law.sharpness, limits.cap_above_idle_w
    seconds, power = load.seconds_at(clock), power_factor(law, clock)
    watts = demand_w(law, limits, load, clock, seconds)
    over = (watts / cap_w) ** k
    allowed = 1.0 + (full_demand_w(law, limits, load) / limits.board_above_idle_w) ** k
    excess = k * jnp.log(power) + jnp.log1p(over) - jnp.log(allowed)
    power_slope = (power + (1.0 - law.clock_linear) * (law.clock_exponent - 1.0) * clock**law.clock_exponent) / power
    compute_j = load.compute_j / clock
    watts_slope = ((compute_j + load.memory_j) / seconds * load.follows_s / clock - compute_j) / seconds / watts
    steep = jax.lax.stop_gradient(k * (power_slope + over / (1.0 + over) * watts_slope))
    return jnp.maximum(clock * jnp.exp(-excess / steep), LOWEST_CLOCK)


def step_power_w(law: PowerParameters, limits: Limits, load: Load, clock: Scalar, seconds: Scalar) -> Scalar:
    """Return the power above idle of one GPU during a step; never above what the cap leaves.

    Parameters
    ----------
    law, limits, load
        Of one GPU.
    clock, seconds
        Of the step under the cap.
    """
    share = full_demand_w(law, limits, load) / limits.board_above_idle_w
    held = (1.0 + share**law.sharpness) ** (1.0 / law.sharpness)
    return power_factor(law, clock) * demand_w(law, limits, load, clock, seconds) / held

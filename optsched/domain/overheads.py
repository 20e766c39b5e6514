"""What a serving engine adds to the kernels of a step."""

from __future__ import annotations

from optsched.domain.fit import Fit
from optsched.domain.frozen import Frozen
from optsched.units import Seconds


class Overheads(Frozen):
    """Overheads of one engine on one card's host.

    Attributes
    ----------
    source
        Where the numbers come from.
    layer_overhead_s, step_overhead_s, sequence_overhead_s
        As in `optsched.domain.efficiency.Efficiency`.
    fit
        Of whole steps, if they were fitted.
    """

    source: str
    layer_overhead_s: Seconds
    step_overhead_s: Seconds
    sequence_overhead_s: Seconds
    fit: Fit | None = None

"""Fill a gpu's missing laws with those of its nearest sibling."""

from __future__ import annotations

from typing import TypeVar

from optsched.domain.frozen import Frozen
from optsched.domain.hardware import Gpu

ValueT = TypeVar("ValueT")
# What a file says of its own numbers, and of the very card: never a sibling's.
_OWN = ("origin", "source", "sibling", "idle_w")
# Most of a step's time: if one of them is a sibling's, the card's times are not fitted.
_MAIN = ("gemm", "prefill_attention", "decode_attention")


def without_fits(value: ValueT) -> ValueT:
    """Return a record, or a table of records, whose laws no longer say that they were fitted."""
    if isinstance(value, Frozen):
        changed = {name: without_fits(getattr(value, name)) for name in value.model_fields_set if name != "fit"}
        return value.replace(**changed, fit=None) if "fit" in type(value).model_fields else value.replace(**changed)
    if isinstance(value, dict):
        return type(value)({key: without_fits(each) for key, each in value.items()})
    return value


def inherited(gpu: Gpu, sibling: Gpu) -> Gpu:
    """Return a gpu whose efficiency has the sibling's laws and overheads wherever its own file sets none.

    Parameters
    ----------
    gpu
        As its file says; laws of single data types that it lacks come from the sibling too.
    sibling
        The card whose kernels are nearest. Its laws are shares of the peaks, so they carry over to other peaks; the law of its
        collectives only over the same interconnect.

    Returns
    -------
    Gpu
        With origin ``assumed`` if the sibling's matrix products or attention stand in, and no `Fit` on inherited laws.
    """
    own, other = gpu.efficiency, sibling.efficiency
    same_link = gpu.datasheet.interconnect == sibling.datasheet.interconnect
    changes: dict[str, object] = {}
    for name in type(own).model_fields:
        if name in _OWN or (name == "collectives" and not same_link):
            continue
        mine, theirs = getattr(own, name), without_fits(getattr(other, name))
        if isinstance(mine, dict):
            changes[name] = {**theirs, **mine}
        elif name not in own.model_fields_set:
            changes[name] = theirs
    if not all(getattr(own, name) for name in _MAIN):
        changes["origin"] = "assumed"
    return gpu.replace(efficiency=own.replace(**changes))

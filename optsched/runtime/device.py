"""Whether this machine has what workers are asked to run on."""

from __future__ import annotations

from importlib.util import find_spec

from optsched.errors import MissingExtraError, SpecError


def check_device(device: str) -> None:
    """Check that torch is there and can use a device.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    SpecError
        If it cannot use the device.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("Running workers", "runtime")
    if device == "cpu":
        return
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        raise SpecError(f"{device!r}: torch {torch.__version__} sees no such device here; use 'cpu'", field="--device")

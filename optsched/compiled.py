"""Compile kernels with numba, cached in the user's cache folder under a digest of all kernels' sources.

numba renews a cached function when its own file changes, but not when a function that it calls does. The digest closes
that hole: any change in a package with kernels starts a fresh cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_PACKAGES = ("batching", "placement", "simulator")


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Return the folder of this version's compiled kernels, in ``$XDG_CACHE_HOME`` (or ``~/.cache``)."""
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "optsched" / f"kernels-{digest.hexdigest()[:16]}"


def kernel(function: FunctionT) -> FunctionT:
    """Compile a function in numba's nopython mode at its first call, releasing the GIL, cached on disk."""
    return _compile(function, inline=False)


def inlined(function: FunctionT) -> FunctionT:
    """Compile a small helper that is inlined into the kernels that call it."""
    return _compile(function, inline=True)


def _compile(function: FunctionT, *, inline: bool) -> FunctionT:
    import numba

    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        decorate: Any = numba.njit(cache=True, nogil=True, inline="always" if inline else "never")
        compiled: FunctionT = decorate(function)
    finally:
        config.CACHE_DIR = before
    return compiled

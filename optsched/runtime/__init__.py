"""Execute a plan on real torch workers; nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optsched.runtime.cluster import execute

__all__ = ["execute"]


def __getattr__(name: str) -> object:
    """Import the runtime's entry point when it is first asked for."""
    if name == "execute":
        from optsched.runtime.cluster import execute

        return execute
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

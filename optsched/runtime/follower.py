"""The process of a rank that is not the first of its replica: ``python -m optsched.runtime.follower LINE``."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection

from optsched.runtime.ranks import follow

if __name__ == "__main__":
    try:
        follow(Connection(int(sys.argv[1])))
    except (EOFError, OSError, RuntimeError):
        os._exit(0)  # the first rank is gone, and the controller knows

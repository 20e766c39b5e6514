"""Exact placement where replicas do not depend on each other: which set of conversations goes to which one."""

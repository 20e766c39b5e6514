"""Whole pages: of a plan, of a capacity answer, of a log."""

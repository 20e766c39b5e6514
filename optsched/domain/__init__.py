"""Frozen data: what is planned for, with what, and what came out."""

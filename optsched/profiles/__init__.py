"""Measurements of operators, collectives and steps that others published, read into arrays."""

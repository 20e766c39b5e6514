"""What a step of a replica costs in time, energy and memory; the only package that uses JAX."""

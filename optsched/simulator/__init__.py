"""Execute a plan on a virtual clock."""

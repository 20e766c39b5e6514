"""How the programs of placement are solved, and what is made of the solvers' figures."""

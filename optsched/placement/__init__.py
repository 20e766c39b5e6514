"""Which tier and which replica a whole conversation goes to: problem, evaluator, solvers, policies."""

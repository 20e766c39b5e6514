"""Which requests go into the next batch, as KV or as hidden cache: problems, solvers, policies."""

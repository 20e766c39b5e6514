"""Every placement of few conversations in turn, but for those that a bound rules out on the way."""

"""Plan LLM serving with a proven bound, execute the plan, and see where the prediction was wrong."""

__version__ = "0.1.0"

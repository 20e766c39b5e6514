"""Our own decoder-only transformer: OPT, Llama and Qwen3."""

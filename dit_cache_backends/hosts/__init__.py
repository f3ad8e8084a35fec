"""The programs that run a model, and how a backend gets into each of them."""

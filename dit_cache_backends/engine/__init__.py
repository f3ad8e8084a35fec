"""The engine: spans, gates, predictors, sessions, the step clock and the wrappers around a model's blocks.

Nothing in here names a model, a host or a strategy.
"""

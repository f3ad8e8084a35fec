"""Tiny random-weight diffusion models for tests.

`TINY` and `build` give pipelines, `TINY_TRANSFORMERS`, `build_transformer` and `transformer_inputs` bare
transformers. Everything is seeded: the same name and seed give the same numbers in every process.
"""

from __future__ import annotations

from .pipelines import TINY, Tiny, TinyPipeline, build
from .transformers import TINY_TRANSFORMERS, TinyTransformer, build_transformer, transformer_inputs

__all__ = [
    "TINY",
    "TINY_TRANSFORMERS",
    "Tiny",
    "TinyPipeline",
    "TinyTransformer",
    "build",
    "build_transformer",
    "transformer_inputs",
]

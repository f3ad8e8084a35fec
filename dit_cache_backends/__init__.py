"""Caching strategies for diffusion transformers, and the seam by which they plug into the hosts that run them.

pipe = FluxPipeline.from_pretrained(...)
backend = enable_cache(pipe, "cache_dit", residual_diff_threshold=0.12)
image = pipe("a cat").images[0]
print(backend.summary())
"""

from dit_cache_backends.api import enable_cache
from dit_cache_backends.backend import CacheBackend, Capabilities, SpanBackend
from dit_cache_backends.calibrators import (
    DMD,
    CalibratorOptions,
    Chebyshev,
    Fitted,
    FoCa,
    Hermite,
    Newton,
    TaylorSeer,
    make_calibrator,
)
from dit_cache_backends.config import option
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Place, Probe, relative_difference
from dit_cache_backends.engine.predictors import Predictor, Reuse
from dit_cache_backends.engine.ranks import summed_over_ranks
from dit_cache_backends.engine.spans import Span, Stream, Streams
from dit_cache_backends.engine.storage import Kept, Storage
from dit_cache_backends.errors import (
    AlreadyEnabledError,
    BackendLoadError,
    CardError,
    ConfigError,
    DitCacheError,
    DuplicateBackendError,
    NotEnabledError,
    UnknownBackendError,
    UnknownTransformerError,
)
from dit_cache_backends.hosts.engine import Engine
from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams
from dit_cache_backends.models import BlockList, Card, Stack, list_cards, register_card, stack
from dit_cache_backends.models.inspect import Inspection, inspect_transformer
from dit_cache_backends.parts import PartOptions
from dit_cache_backends.provenance_options import ProvenanceOptions
from dit_cache_backends.registry import BackendInfo, get_cache_backend, list_cache_backends
from dit_cache_backends.storage_options import StorageOptions
from dit_cache_backends.summary import Event, Row, Summary

__all__ = [
    "AlreadyEnabledError",
    "BackendInfo",
    "BackendLoadError",
    "BlockList",
    "CacheBackend",
    "CalibratorOptions",
    "Capabilities",
    "Card",
    "CardError",
    "Chebyshev",
    "ConfigError",
    "DMD",
    "Decision",
    "DitCacheError",
    "DuplicateBackendError",
    "Engine",
    "Event",
    "Fitted",
    "FoCa",
    "Gate",
    "Hermite",
    "Inspection",
    "Kept",
    "Newton",
    "NotEnabledError",
    "Omni",
    "OmniDiffusionSamplingParams",
    "PartOptions",
    "Place",
    "Predictor",
    "Probe",
    "ProvenanceOptions",
    "Reuse",
    "Row",
    "Span",
    "SpanBackend",
    "Stack",
    "Step",
    "Storage",
    "StorageOptions",
    "Stream",
    "Streams",
    "Summary",
    "TaylorSeer",
    "UnknownBackendError",
    "UnknownTransformerError",
    "enable_cache",
    "get_cache_backend",
    "inspect_transformer",
    "list_cache_backends",
    "list_cards",
    "make_calibrator",
    "option",
    "register_card",
    "relative_difference",
    "stack",
    "summed_over_ranks",
]

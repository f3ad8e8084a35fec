"""Small runs of tiny models, with and without a backend, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends import SpanBackend
from dit_cache_conformance.tiny import TINY, transformer_inputs
from dit_cache_conformance.tiny.transformers import CORE_SPECS

PIPELINES = tuple(TINY)
TRANSFORMERS = tuple(spec.name for spec in CORE_SPECS)
"""Enough kinds of blocks for tests of the engine and of a strategy; `tests/models` has the cards of all classes."""

STILL = 1e-6
"""How far a still input may be off after a skip, relative to the largest number of the output."""


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest number expected."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> bool:
    """Whether two runs gave the same bits at every step."""
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def output(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """The sample that a transformer predicts; Z-Image gives a list of them."""
    sample = model(**arguments)[0]
    return sample if isinstance(sample, Tensor) else torch.stack(list(sample))


def inputs(name: str, steps: int, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """The arguments of every step of a run."""
    return [transformer_inputs(name, seed=seed, step=step, total=steps, **more) for step in range(steps)]


def run_plain(model: nn.Module, run: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Every step as the model makes it; where a backend is enabled, its clock has to find the steps."""
    return [output(model, arguments) for arguments in run]


def run_told(
    backend: SpanBackend, model: nn.Module, run: Sequence[dict[str, Any]], branch: str | None = None
) -> list[Tensor]:
    """Every step, told to the backend."""
    outputs = []
    for index, arguments in enumerate(run):
        with backend.step(index, len(run), branch):
            outputs.append(output(model, arguments))
    return outputs


def kinds(backend: SpanBackend) -> dict[str, int]:
    """The events of the present summary, with how often each happened."""
    found: dict[str, int] = {}
    for event in backend.summary().events:
        found[event.kind] = found.get(event.kind, 0) + event.count
    return found


def places(backend: SpanBackend) -> dict[tuple[str, str, str], list[tuple[int, int | None]]]:
    """Step and total of every call, by transformer, branch and stack."""
    found: dict[tuple[str, str, str], list[tuple[int, int | None]]] = {}
    for row in backend.summary().rows:
        found.setdefault((row.transformer, row.branch, row.stack), []).append((row.step, row.total))
    return found

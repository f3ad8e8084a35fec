"""TeaCache a second time, straight from its formulas, and the signals as the models themselves make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_cache_backends.models import card_for

from ..engine.counting import INSIDE
from ..engine.runs import output

WAN_TIME = {"time_embedding": 0, "time_projection": 1}


def differences(signals: Sequence[Tensor]) -> list[float]:
    """`mean|m_t - m_(t-1)| / mean|m_(t-1)|` from the second step on; 0 for the first."""
    found = [0.0]
    for before, now in pairwise(signals):
        b, n = before.double().numpy(), now.double().numpy()
        found.append(float(np.abs(n - b).mean() / np.abs(b).mean()))
    return found


def vllm_omni(moves: Sequence[float], coefficients: Sequence[float], threshold: float) -> list[int]:
    """Cached steps: only the first is computed in any case; sizes of the polynomial's values are summed."""
    cached, total = [], 0.0
    for step, move in enumerate(moves):
        if step == 0:
            total = 0.0
            continue
        total += abs(float(np.poly1d(coefficients)(move)))
        if total < threshold:
            cached.append(step)
        else:
            total = 0.0
    return cached


def official(
    moves: Sequence[float], coefficients: Sequence[float], threshold: float, first: int = 1, last: int = 1
) -> list[int]:
    """First and last steps are computed; here a negative value computes too, where the original lowers the sum."""
    cached, total = [], 0.0
    for step, move in enumerate(moves):
        if step < first or step >= len(moves) - last:
            total = 0.0
            continue
        value = float(np.poly1d(coefficients)(move))
        total += value
        if value >= 0 and total < threshold:
            cached.append(step)
        else:
            total = 0.0
    return cached


def sglang(moves: Sequence[float], coefficients: Sequence[float], threshold: float) -> list[int]:
    """As the official rule, with five steps at the start."""
    return official(moves, coefficients, threshold, first=5)


def comfyui(moves: Sequence[float], coefficients: Sequence[float], threshold: float) -> list[int]:
    """No last step, and three skips in a row at most."""
    cached: list[int] = []
    total, row = 0.0, 0
    for step, move in enumerate(moves):
        value = float(np.poly1d(coefficients)(move))
        if step == 0 or row == 3 or value < 0:
            total, row = 0.0, 0
            continue
        total += value
        if total < threshold:
            cached.append(step)
            row += 1
        else:
            total, row = 0.0, 0
    return cached


RULES = {"vllm_omni": vllm_omni, "official": official, "sglang": sglang, "comfyui": comfyui}


@contextmanager
def watched(model: Any, signal: str) -> Iterator[list[Tensor]]:
    """The signal as the plain model makes it in each call within: what its first block attends to, or its time."""
    seen: list[Tensor] = []
    block = model.get_submodule(card_for(model).stacks[0].name)[0]
    place: nn.Module
    if signal == "modulated_input":
        place = next(getattr(block, name) for name in INSIDE if hasattr(block, name))
        hook = place.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs.get("hidden_states", args[0] if args else None)),
            with_kwargs=True,
        )
    elif signal == "tokens":
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        )
    elif hasattr(model, "condition_embedder"):
        hook = model.condition_embedder.register_forward_hook(
            lambda _, args, result: seen.append(result[WAN_TIME[signal]])
        )
    elif hasattr(model, "t_embedder"):
        hook = model.t_embedder.register_forward_hook(lambda _, args, result: seen.append(result))
    else:
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["temb"]), with_kwargs=True
        )
    try:
        yield seen
    finally:
        hook.remove()


def signals_of(model: Any, run: Sequence[dict[str, Any]], signal: str | None = None) -> list[Tensor]:
    """The signal of each call of a run on the plain model."""
    name = card_for(model).signals[0].name if signal is None else signal
    with torch.no_grad(), watched(model, name) as seen:
        for arguments in run:
            output(model, arguments)
    assert len(seen) == len(run)
    return seen


def mixing(moves: Sequence[float], coefficients: Sequence[float], factor: float = 1.7) -> float:
    """A threshold at which some steps are skipped and some are not."""
    values = np.abs(np.poly1d(coefficients)(np.array(moves[1:])))
    return factor * float(np.median(values))

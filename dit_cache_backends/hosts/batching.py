"""Several requests in one call of a pipeline: a list of prompts with a list of generators.

Requests fit together that have the same cache settings and differ in nothing but what belongs to the prompt (texts, or
embeddings of one shape) and their generators. Each draws its noise from its own generator, as alone. Without a cache
each picture is that of the request alone up to rounding: for another batch size kernels may add in another order. With
a cache the backend's batch rule holds (``Capabilities.batch_decision``): by most, one decision is taken for the whole
batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["fit_together", "joined"]


def fit_together(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two calls can be made as one, judged by their arguments."""
    if one.keys() != other.keys() or not _alone(one.get("generator")) or not _alone(other.get("generator")):
        return False
    if one.get("prompt") is None and one.get("prompt_embeds") is None:
        return False
    return all(
        _joinable(one[name], other[name]) if "prompt" in name else _equal(one[name], other[name])
        for name in one
        if name != "generator" and not _counts_pictures(name)
    ) and all(one[name] == other[name] == 1 for name in one if _counts_pictures(name))


def joined(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for several that fit together; those of a single one as they are."""
    if len(calls) == 1:
        return dict(calls[0])
    result = dict(calls[0])
    for name in result:
        values = [call[name] for call in calls]
        if name == "generator" or ("prompt" in name and isinstance(values[0], str)):
            result[name] = values
        elif "prompt" in name and isinstance(values[0], Tensor):
            result[name] = torch.cat(values)
    return result


def _counts_pictures(name: str) -> bool:
    """``num_images_per_prompt`` and the like: with more than one, who gets which generator differs by pipeline."""
    return name.startswith("num_") and (name.endswith(("_per_prompt", "outputs_per_prompt")))


def _alone(generator: object) -> bool:
    return isinstance(generator, torch.Generator)


def _joinable(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and one.dim() > 0 and one.shape[0] == 1
    return (one is None and other is None) or (isinstance(one, (int, float)) and one == other)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    try:
        return type(one) is type(other) and bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # what cannot be compared is not the same
        return False

"""What is known of every plan once the dense run has been recorded.

A forecast that is a weighted sum of residuals ``r`` is off by ``e_s = sum_c w_c r_c - r_s`` at step ``s``. How long any
such sum is follows from the inner products of the residuals alone, their Gram matrix: ``steps * steps`` numbers for
each prompt. So the best weights and the error that they leave are found for any mask without running the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_cache_backends.planning.influence import Influence, influence

if TYPE_CHECKING:
    from dit_cache_backends.planning.recording import PlaceKey, Recording

__all__ = ["Gram", "gram_of"]

CHUNK = 1 << 16
"""Numbers of each step that are multiplied at once."""


@dataclass(frozen=True)
class Gram:
    """The inner products of what the blocks added at any two steps of a dense run."""

    products: np.ndarray
    """``[prompts, steps, steps]``: of the main streams of all spans, the guidance branches put together as they count.
    A step's own is 1 in the mean; 0 for steps of different transformers, and for a step that was not kept."""
    sizes: np.ndarray
    """``[steps]``: how far the latents are moved for a unit of output, 1 in the mean."""
    begins: tuple[int, ...]
    """Steps at which a transformer begins, of which nothing before can be used."""

    @classmethod
    def joined(cls, grams: Sequence[Gram]) -> Gram:
        """Of several prompts."""
        return cls(
            np.concatenate([each.products for each in grams]),
            np.mean([each.sizes for each in grams], axis=0),
            grams[0].begins,
        )


def gram_of(recording: Recording, prompts: int) -> Gram:
    """The Gram matrices of so many prompts that were drawn in one call."""
    steps = recording.steps
    products = np.zeros((prompts, steps, steps))
    sizes = np.ones(steps)
    for transformer in recording.first_steps:
        spans = [key for key in recording.history if key[0] == transformer]
        branches = list(dict.fromkeys(key[3] for key in spans))
        called = _together(recording, spans, prompts)
        shares, moved = _influence(recording, transformer, len(branches), called)
        for at, size in moved.items():
            sizes[at] = size
        for place in dict.fromkeys((key[1], key[2], key[4]) for key in spans):
            keys = [(transformer, place[0], place[1], branch, place[2]) for branch in branches]
            for number in recording.main.get(keys[0], ()):
                _add(products, recording, keys, number, shares, prompts)
    own = products.diagonal(axis1=1, axis2=2)
    scale = own.sum(axis=1) / np.maximum((own > 0).sum(axis=1), 1)
    products /= np.where(scale > 0, scale, 1)[:, None, None]
    return Gram(products, sizes / sizes.mean(), tuple(sorted(set(recording.first_steps.values()))))


def _together(recording: Recording, spans: Sequence[PlaceKey], prompts: int) -> int:
    """How many branches come in one call, one behind the other in the batch."""
    for key in spans:
        for _, shown in recording.history[key]:
            for number in recording.main.get(key, ()):
                if number in shown:
                    batch = shown[number].shape[0]
                    return batch // prompts if batch % prompts == 0 else 1
    return 1


def _influence(
    recording: Recording, transformer: str, branches: int, called: int
) -> tuple[np.ndarray, dict[int, float]]:
    """How the branches count beside each other, and by its step how much each output does."""
    outputs: dict[int, list[Tensor]] = {}
    for step, out in recording.outputs.get(transformer, ()):
        found = first_tensor(out)
        if step is None or found is None:
            continue
        outputs.setdefault(step, []).extend(found.chunk(called) if found.shape[0] % called == 0 else [found])
    steps = sorted(outputs)
    complete = len(recording.latents_after) == recording.steps
    latents = [recording.latents_after[step] for step in steps] if complete else []
    read = influence(latents, [outputs[step] for step in steps])
    if len(read.shares) != branches * called:
        read = Influence.even(len(steps), branches * called)
    return read.shares, dict(zip(steps, read.sizes, strict=True))


def _add(
    products: np.ndarray,
    recording: Recording,
    keys: Sequence[PlaceKey],
    number: int,
    shares: np.ndarray,
    prompts: int,
) -> None:
    """Add what one stream of one span has to the products."""
    shown: list[Mapping[int, Tensor]] = [
        {at.run_index: each[number] for at, each in recording.history[key] if number in each} for key in keys
    ]
    steps = sorted(set.intersection(*(set(each) for each in shown)))
    if not steps:
        return
    called = len(shares) // len(keys)
    # By step, the parts that count together, each [prompts, numbers].
    parts = {step: [row for each in shown for row in _rows(each[step], called, prompts)] for step in steps}
    alike = [step for step in steps if parts[step][0].shape == parts[steps[0]][0].shape]
    rows, numbers = parts[steps[0]][0].shape
    for prompt in range(prompts):
        row = min(prompt, rows - 1)
        for begin in range(0, numbers, CHUNK):
            chunk = torch.stack(
                [
                    sum(
                        (share * part[row, begin : begin + CHUNK].float())
                        for share, part in zip(shares.tolist(), parts[step], strict=True)
                    )
                    for step in alike
                ]
            )
            products[prompt][np.ix_(alike, alike)] += (chunk @ chunk.T).double().numpy()


def _rows(value: Tensor, called: int, prompts: int) -> list[Tensor]:
    """What was shown, for each of the branches called together, ``[prompts or 1, numbers]``."""
    apart = value.chunk(called) if value.shape[0] % called == 0 else [value] * called
    return [each.flatten(1) if each.shape[0] == prompts else each.reshape(1, -1) for each in apart]


def first_tensor(out: Any) -> Tensor | None:
    """The first tensor in what a transformer gave."""
    if isinstance(out, Tensor):
        return out
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, (list, tuple)) else ()
    return next((found for value in values if (found := first_tensor(value)) is not None), None)

"""Measures one branch of one transformer as it runs, and keeps numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dit_cache_backends.calibrate.series import PAIRS, Series
from dit_cache_backends.engine.gates import relative_difference

SAMPLED = 65536
"""Numbers of a tensor that changes between any two steps are taken on: 0.4 % is what a sum over so many errs by."""

DIGITS = 7
"""Of each number that is kept: what float32 has."""


class Track:
    """Writes a :class:`Series`: ``begin`` a step, then say what is seen in it."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self._before: dict[tuple[str, str], list[Tensor]] = {}
        self._samples: dict[str, list[Tensor]] = {name: [] for name in PAIRS}

    def begin(self, step: int, total: int | None) -> None:
        """A step begins; nothing is known of it."""
        series = self.series
        series.steps.append(step)
        series.total = total
        for column in series.columns.values():
            column.append(None)
        for name, rows in series.pairs.items():
            rows.append([None] * (len(series) - 1))
            # Of a step in which it was not seen there is nothing to compare with.
            self._samples[name].append(torch.empty(0))

    def note(self, name: str, value: float | Tensor | None) -> None:
        """A number of this step; one that is not finite is none."""
        number = None if value is None else float(value)
        known = number is not None and math.isfinite(number)
        self.series.columns[name][-1] = _rounded(number) if known and number is not None else None

    def see(
        self, name: str, seen: Sequence[Tensor], size: bool = False, stack: str = "", own: bool = False
    ) -> None:
        """Tensors of this step: their change to the step before and, where that is kept, to every step.

        What several stacks show by one name is compared with what the same stack showed; the last one's stays. Tensors
        that are not the caller's ``own`` are copied: the model may write into them before the next step.
        """
        now = [each.detach() for each in seen]
        before = self._before.get((name, stack))
        if before is not None and alike(before, now):
            self.note(name, _change(before, now))
        if size:
            numbers = sum(each.numel() for each in now)
            self.note(f"{name}_size", sum(float(_sum(each)) for each in now) / max(numbers, 1))
        self._before[name, stack] = now if own else [each.clone() for each in now]
        if name in self._samples:
            self._compare_with_all(name, sample(now))

    def see_residual(self, residual: Tensor) -> None:
        """What all blocks of the first stack have added: ``[..., tokens, dim]``."""
        kept = self._before.get(("residual", ""))
        before = kept[0] if kept else None
        sizes = torch.linalg.vector_norm(residual.float(), dim=-1)
        self.note("norm", sizes.mean())
        if before is not None and before.shape == residual.shape:
            # As MagCache measures (arXiv 2506.09045, section 3.2), with its guard against tokens that get nothing.
            ratios = sizes / (torch.linalg.vector_norm(before.float(), dim=-1) + 1e-8)
            self.note("ratio", ratios.mean())
            self.note("ratio_std", ratios.std(correction=0))
            self.note("cosine", (1 - cosine_similarity(residual.float(), before.float(), dim=-1)).mean())
        self.see("residual", [residual], own=True)

    def _compare_with_all(self, name: str, now: Tensor) -> None:
        samples = self._samples[name]
        self.series.pairs[name][-1] = [
            _finite(relative_difference(earlier, now)) if earlier.shape == now.shape else None
            for earlier in samples[:-1]
        ]
        samples[-1] = now


def alike(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether tensors can be compared, one by one."""
    return len(before) == len(now) and all(
        (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        for one, other in zip(before, now, strict=True)
    )


def sample(tensors: Sequence[Tensor]) -> Tensor:
    """At most ``SAMPLED`` numbers, evenly spaced, as float32 on the CPU."""
    flat = torch.cat([each.reshape(-1) for each in tensors])
    # An odd distance, which does not always meet the same channel.
    apart = math.ceil(flat.numel() / SAMPLED) | 1 if flat.numel() > SAMPLED else 1
    return flat[::apart].to("cpu", torch.float32, copy=True)


def _change(before: Sequence[Tensor], now: Sequence[Tensor]) -> float:
    if len(now) == 1:
        return float(relative_difference(before[0], now[0]))
    moved = sum(float(_sum(one - other)) for one, other in zip(before, now, strict=True))
    size = sum(float(_sum(one)) for one in before)
    return moved / size if size else math.nan


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(tensor, 1, dtype=torch.float32)
    return total


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return _rounded(number) if math.isfinite(number) else None


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")

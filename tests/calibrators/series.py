"""Series of tensors whose continuation is known, and every predictor there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from dit_cache_backends import DMD, Chebyshev, Fitted, FoCa, Hermite, Newton, Predictor, Step, TaylorSeer

SHAPE = (2, 5, 6)
TOTAL = 60

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "taylorseer 1": lambda: TaylorSeer(1),
    "taylorseer 3": lambda: TaylorSeer(3),
    "foca": FoCa,
    "dmd": DMD,
    "dmd low": lambda: DMD(precision="low"),
    "dmd high": lambda: DMD(precision="high"),
    "hermite": Hermite,
    "chebyshev": Chebyshev,
    "newton 1": lambda: Newton(1),
    "newton 4": lambda: Newton(4, start=0),
    "fitted": lambda: Fitted({5: (0.5, -1.5, 2.0), 7: (-0.3, 1.3)}, (1, 0, 1, 1, 1, 0, 1, 0)),
}

Function = Callable[[int], Tensor]


def at(index: int, total: int | None = TOTAL) -> Step:
    return Step(index, total, "0", index, total)


def drawn(seed: int, *shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def combined(*terms: Callable[[int], float], shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Function:
    """A tensor for each step: the sum of the terms, each along a tensor of its own."""
    directions = [drawn(seed + number, *shape) for number in range(len(terms))]

    def function(index: int) -> Tensor:
        total = torch.zeros(shape, dtype=torch.float64)
        for term, direction in zip(terms, directions, strict=True):
            total += term(index) * direction
        return total

    return function


def polynomial(degree: int, seed: int = 0) -> Function:
    return combined(
        *((lambda index, power=power: (index / 10) ** power) for power in range(degree + 1)), seed=seed
    )


def fed(predictor: Predictor, function: Function, indices: Iterable[int]) -> Predictor:
    for index in indices:
        predictor.observe(at(index), function(index))
    return predictor


def error(predictor: Predictor, function: Function, index: int) -> float:
    """How far the forecast is off, relative to the largest number of the truth."""
    truth = function(index)
    return float((predictor.predict(at(index)).double() - truth).abs().max() / truth.abs().max())


def rising(minimum: int, maximum: int = 12, gap: int = 4) -> st.SearchStrategy[list[int]]:
    """Steps that rise by uneven gaps."""

    def steps(gaps: Sequence[int]) -> list[int]:
        found = [0]
        for each in gaps:
            found.append(found[-1] + each)
        return found

    return st.lists(st.integers(1, gap), min_size=minimum - 1, max_size=maximum - 1).map(steps)


def tensors(thing: object) -> Iterator[Tensor]:
    """Every tensor that a predictor holds on to, each once, in whatever it keeps them."""
    seen: set[int] = set()
    todo = [thing]
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, dict):
            todo.extend(each.values())
        elif isinstance(each, (list, tuple, set)) or type(each).__name__ == "deque":
            todo.extend(each)  # type: ignore[call-overload]
        else:
            todo.extend(vars(each).values() if hasattr(each, "__dict__") else ())
            todo.extend(getattr(each, name) for name in getattr(type(each), "__slots__", ()))

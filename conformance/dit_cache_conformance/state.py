"""What there is to see of a model from outside, to be compared before and after, and the tensors that are alive."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Where two states differ."""
    return sorted(key for key in {**before, **after} if before.get(key) != after.get(key))


def state_of(model: nn.Module) -> dict[str, Any]:
    """Each module's class and dictionary, and the dictionaries of all those classes, by identity."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        where = f"{type(model).__name__}.{path}".rstrip(".")
        found[f"the class of {where}"] = type(module)
        for name, value in vars(module).items():
            found[f"{where}: {name}"] = (id(value), *_entries(value))
        for cls in type(module).__mro__[:-1]:
            if f"the members of {cls.__module__}.{cls.__qualname__}" not in found:
                members = {name: id(value) for name, value in vars(cls).items()}
                found[f"the members of {cls.__module__}.{cls.__qualname__}"] = members
    return found


def _entries(value: object) -> tuple[Any, ...]:
    return tuple((key, id(item)) for key, item in value.items()) if isinstance(value, dict) else ()


@contextmanager
def newborn() -> Iterator[Callable[[], int]]:
    """Count the tensors that were made within and are still alive."""

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.freeze()  # so that only what is made from here on is looked through
    try:
        yield count
    finally:
        if not _settled:
            gc.unfreeze()


@contextmanager
def settling() -> Iterator[None]:
    """Within, ``settle`` may take what the libraries made out of the garbage collector's way."""
    _settled.append(0)
    try:
        yield
    finally:
        _settled.clear()
        gc.unfreeze()


def settle() -> None:
    """Do so where modules were imported since the last time.

    Hundreds of thousands of objects that live as long as the process would be looked through again and again: a tenth
    of the time of all checks.
    """
    if _settled and len(sys.modules) > _settled[-1] + 100:
        gc.collect()
        gc.freeze()
        _settled.append(len(sys.modules))


_settled: list[int] = []
"""How many modules there were each time; empty outside of ``settling``."""

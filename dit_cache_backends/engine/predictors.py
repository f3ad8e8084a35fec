"""How: what a skipped span would have given, from what it gave before."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.spans import Stream
from dit_cache_backends.engine.storage import PLAIN, Kept, Packed, Storage

Of = Literal["residual", "output"]


class Predictor(ABC):
    """Predicts one stream of one span on one branch, during one generation."""

    of: Of = "residual"
    """What is observed and predicted: the residual (exit minus entry), or the output of the span itself."""

    @abstractmethod
    def observe(self, step: Step, value: Tensor) -> None:
        """Told the value whenever the span has run. The tensor may be kept: nobody writes into it."""

    @abstractmethod
    def predict(self, step: Step) -> Tensor:
        """The value at ``step``, of the shape, dtype and device last observed.

        Asking must change no answer, neither to the same question nor to a later one; what follows from the
        observations may be worked out once and kept.
        """

    def kept_in(self, storage: Storage) -> "Predictor":
        """A predictor like this one that keeps its tensors in ``storage``; asked before anything is observed.

        Unless overridden, nobody has to write a predictor for it: between two calls each tensor among its attributes
        that has the shape of what it observes lies in the storage, and within a call all of them are as they were.
        """
        return Stored(self, storage)


class Reuse(Predictor):
    """The last value, as it was."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def kept_in(self, storage: Storage) -> Predictor:
        return _StoredReuse(storage) if type(self) is Reuse else Stored(self, storage)

    def observe(self, step: Step, value: Tensor) -> None:
        self._value = value

    def predict(self, step: Step) -> Tensor:
        if self._value is None:
            raise RuntimeError("Reuse was asked to predict before it had observed a value.")
        return self._value


class _StoredReuse(Predictor):
    """``Reuse`` without a search for its tensor, since it may be asked for every block."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._value: Kept | None = None

    def observe(self, step: Step, value: Tensor) -> None:
        self._value = self._storage.keep(value)

    def predict(self, step: Step) -> Tensor:
        if self._value is None:
            raise RuntimeError("Reuse was asked to predict before it had observed a value.")
        return self._storage.give(self._value)


class Stored(Predictor):
    """Another predictor, whose tensors lie in a storage from one call of it to the next."""

    def __init__(self, inner: Predictor, storage: Storage) -> None:
        self.of = inner.of
        self._inner = inner
        self._storage = storage
        self._shape: torch.Size | None = None

    def observe(self, step: Step, value: Tensor) -> None:
        self._shape = value.shape
        self._call(self._inner.observe, step, value)

    def predict(self, step: Step) -> Tensor:
        result: Tensor = self._call(self._inner.predict, step)
        return result

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # Each pair by the id of either: what is held twice stays one, and what has not changed is not packed again.
        known: dict[int, tuple[Tensor, Kept]] = {}

        def note(tensor: Tensor, kept: Kept) -> None:
            known[id(tensor)] = known[id(kept)] = (tensor, kept)

        def unpack(thing: object) -> object:
            if not isinstance(thing, Packed):
                return thing
            if id(thing) not in known:
                note(thing.give(), thing)
            return known[id(thing)][0]

        def pack(thing: object) -> object:
            if not isinstance(thing, Tensor) or thing.shape != self._shape:
                return thing
            if id(thing) not in known:
                note(thing, self._storage.keep(thing))
            return known[id(thing)][1]

        try:
            _replace(self._inner, unpack)
            return function(*arguments)
        finally:
            _replace(self._inner, pack)


def attributes(thing: object) -> list[str]:
    """The names of what an object holds, in slots or in its dictionary."""
    names: list[str] = []
    for cls in type(thing).__mro__:
        slots = getattr(cls, "__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [name for name in names if hasattr(thing, name)] + list(getattr(thing, "__dict__", ()))


def kept_in(storage: Storage, make: Callable[[Stream], Predictor]) -> Callable[[Stream], Predictor]:
    """``make``, so that what it makes keeps its tensors in ``storage``; ``make`` itself where they stay as they are."""
    if storage is PLAIN:
        return make
    return lambda stream: make(stream).kept_in(storage)


def _replace(predictor: Predictor, change: Callable[[object], object]) -> None:
    """Change everything that a predictor holds, as far as the engine looks for tensors in it (``Session.tensors``)."""
    for name in attributes(predictor):
        before = getattr(predictor, name)
        after = _replaced(before, change)
        if after is not before:
            setattr(predictor, name, after)


def _replaced(thing: object, change: Callable[[object], object]) -> object:
    if isinstance(thing, dict):
        return {key: _replaced(value, change) for key, value in thing.items()}
    if isinstance(thing, deque):
        return deque([_replaced(item, change) for item in thing], thing.maxlen)
    if isinstance(thing, (list, tuple)):
        items = [_replaced(item, change) for item in thing]
        kind: Any = type(thing)
        return kind(*items) if hasattr(thing, "_fields") else kind(items)
    if isinstance(thing, Predictor):
        _replace(thing, change)
    return change(thing)

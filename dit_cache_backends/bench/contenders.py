"""What is measured against each other: the plain model, this package, cache-dit and diffusers' FirstBlockCache.

All are put on one and the same model and taken off again: a copy lies elsewhere in memory, which alone costs up to a
per cent of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count, cycle
from typing import Any

from torch import nn

from dit_cache_backends.api import enable_cache
from dit_cache_backends.bench.peers import cache_dit_arguments, import_cache_dit
from dit_cache_backends.bench.rounds import Key

_MISSING = object()
STEPS = 10**9
"""A run without an end: what is measured is a step in the middle of it."""

Inputs = Sequence[dict[str, Any]]


class Plain:
    """The model as it is, called with each of the inputs in turn, once for each branch of a step."""

    who = "plain"

    def __init__(
        self, kind: str, model: nn.Module, inputs: Inputs, branches: Sequence[str] = ("cond",)
    ) -> None:
        self.kind = kind
        self.model = model
        self.branches = branches
        self.inputs = cycle(inputs)

    @property
    def key(self) -> Key:
        """Kind of step, and who makes it."""
        return self.kind, self.who

    def restart(self, steps: int = STEPS) -> None:
        """A new run of so many steps begins."""

    def finish(self) -> None:
        """The run is over, and told to be by what a pipeline calls at its end."""

    def enter(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def step(self) -> None:
        for branch in self.branches:
            self.call(branch)

    def call(self, branch: str) -> object:
        """One call of the transformer."""
        return self.model(**next(self.inputs))


class Ours(Plain):
    """A backend of this package, told its steps as a host does."""

    who = "ours"

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        inputs: Inputs,
        backend: str,
        options: Mapping[str, Any],
        branches: Sequence[str] = ("cond",),
    ) -> None:
        super().__init__(kind, model, inputs, branches)
        self.backend: Any = enable_cache(model, backend, **options)
        self.restart()
        self.leave()

    def restart(self, steps: int = STEPS) -> None:
        self._steps = steps
        self._indices = count()

    def enter(self) -> None:
        self.backend.resume(self.model)

    def leave(self) -> None:
        self.backend.suspend(self.model)

    def step(self) -> None:
        self._index = next(self._indices)
        super().step()

    def call(self, branch: str) -> object:
        with self.backend.step(self._index, self._steps, branch):
            return self.model(**next(self.inputs))


class Dress:
    """What a library has changed on the modules of a model, to be taken off and put on again.

    Libraries that leave something behind when they are disabled could not take turns on one model without it.
    """

    def __init__(self, model: nn.Module, put_on: Callable[[], object]) -> None:
        self._plain = [(vars(module), dict(vars(module))) for module in model.modules()]
        self._changes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._children, self._in_order = model._modules, dict(model._modules)
        put_on()
        self.off()

    def on(self) -> None:
        """Put it on again."""
        for attributes, changed in self._changes:
            _change(attributes, changed)

    def off(self) -> None:
        """Leave the modules as they were, and remember what was on them."""
        self._changes = []
        for attributes, plain in self._plain:
            names = [name for name in {*attributes, *plain} if attributes.get(name) is not plain.get(name)]
            if names:
                self._changes.append((attributes, {name: attributes.get(name, _MISSING) for name in names}))
                _change(attributes, {name: plain.get(name, _MISSING) for name in names})
        # cache-dit exchanges the lists of blocks in every call, which leaves the children in another order:
        # FirstBlockCache takes the first list for the one with the first block.
        self._children.clear()
        self._children.update(self._in_order)


def _change(attributes: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is _MISSING:
            attributes.pop(name, None)
        else:
            attributes[name] = value


class Dressed(Plain):
    """A library that is put on the model and taken off as a dress."""

    _dress: Dress

    def enter(self) -> None:
        self._dress.on()

    def leave(self) -> None:
        self._dress.off()


class CacheDiT(Dressed):
    """The cache-dit library on a bare transformer, which counts its steps by itself."""

    who = "cache-dit"

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        inputs: Inputs,
        backend: str,
        options: Mapping[str, Any],
        branches: Sequence[str] = ("cond",),
        steps: int | None = None,
    ) -> None:
        super().__init__(kind, model, inputs, branches)
        self._library = import_cache_dit()
        arguments = cache_dit_arguments(backend, options, steps)
        self._dress = Dress(model, lambda: self._library.enable_cache(model, **arguments))

    def restart(self, steps: int = STEPS) -> None:
        self.enter()
        self._library.refresh_context(self.model, num_inference_steps=steps, verbose=False)
        self.leave()


class FirstBlock(Dressed):
    """diffusers' FirstBlockCache, in the cache context in which it has to be called."""

    who = "FirstBlockCache"

    def __init__(
        self,
        kind: str,
        model: Any,
        inputs: Inputs,
        threshold: float,
        branches: Sequence[str] = ("cond",),
    ) -> None:
        super().__init__(kind, model, inputs, branches)
        from diffusers import FirstBlockCacheConfig

        self._dress = Dress(model, lambda: model.enable_cache(FirstBlockCacheConfig(threshold)))

    def restart(self, steps: int = STEPS) -> None:
        self.finish()

    def finish(self) -> None:
        model: Any = self.model
        self.enter()
        model._reset_stateful_cache()
        self.leave()

    def call(self, branch: str) -> object:
        model: Any = self.model
        with model.cache_context(branch):
            return model(**next(self.inputs))
